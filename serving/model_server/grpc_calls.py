"""What every gRPC method shares: from a context to a `Call`, from an exception to a status."""

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

import grpc
from google.protobuf.message import DecodeError, Message

from serving.model_server import calls
from serving.model_server.calls import Call
from serving.model_server.errors import Code, ServingError
from serving.model_server.journal import ID_HEADER, Entry, Journal
from serving.model_server.tasks import Mailbox

_LOG = logging.getLogger(__name__)
_LONGEST_MESSAGE = 1024
_LONGEST_TIMEOUT_MS = 2**31 - 1
_STATUS = {status.value[0]: status for status in grpc.StatusCode}
_RETRY = "grpc-retry-pushback-ms"  # What gRPC's own clients heed when they retry.

Answer = Callable[[Message, Call], Awaitable[Message | bytes]]


def add_service(server: grpc.aio.Server, name: str, methods: dict) -> None:
    """Adds a service of `methods`, which `unary` has made."""
    handler = grpc.method_handlers_generic_handler(name, methods)
    server.add_generic_rpc_handlers((handler,))


def unary(
    name: str, answer: Answer, request: type[Message], mailbox: Mailbox, journal: Journal
) -> grpc.RpcMethodHandler:
    """Returns the handler of a method with one request and one response.

    Args:
        name: The method's name.
        answer: Returns the response, or its bytes, or raises a `ServingError`.
        request: The request's type.
        mailbox: That of the event loop.
        journal: Notes the calls.
    """

    async def respond(message, context):
        with noting(journal, name, context) as entry:
            try:
                response = await answer(parsed(message, request), call(context, mailbox))
                if entry:
                    entry.bytes_in, entry.bytes_out = len(message), len(serialized(response))
                return response
            except Exception as error:
                failure = explained(error)
                if entry:
                    entry.fail(failure)
        await fail(context, failure)

    return grpc.unary_unary_rpc_method_handler(respond, response_serializer=serialized)


@contextmanager
def noting(
    journal: Journal, name: str, context: grpc.aio.ServicerContext
) -> Iterator[Entry | None]:
    """Notes one call, where somebody listens, and tells the caller under which name."""
    if not journal.heard:
        yield None
        return
    headers = dict(context.invocation_metadata() or ())
    with journal.answering("GRPC", name, headers, context.peer()) as entry:
        context.set_trailing_metadata(((ID_HEADER, entry.id),))
        yield entry


def parsed(message: bytes, kind: type[Message]) -> Message:
    """Returns the request of type `kind` that `message` holds.

    Raises:
        ServingError: It holds none.
    """
    try:
        return kind.FromString(message)
    except DecodeError:
        text = f"The request is no {kind.DESCRIPTOR.full_name}"
        raise ServingError(Code.INTERNAL, text) from None


def serialized(response: Message | bytes) -> bytes:
    """Returns the bytes of a response."""
    return response if isinstance(response, bytes) else response.SerializeToString()


def call(context: grpc.aio.ServicerContext, mailbox: Mailbox) -> Call:
    """Returns how long a request can wait, and how urgent it is."""
    remaining = context.time_remaining()
    unlimited = remaining is None or remaining * 1000 > _LONGEST_TIMEOUT_MS
    timeout_ms = 0 if unlimited else max(int(remaining * 1000), 1)
    urgency = calls.USUAL
    for key, value in context.invocation_metadata():
        if key == "priority":
            urgency = calls.urgency(value)
    return Call(timeout_ms, urgency, mailbox)


def explained(error: Exception) -> ServingError:
    """Returns what the caller is told of an exception."""
    if isinstance(error, ServingError):
        return error
    _LOG.error("A request failed in the server itself", exc_info=error)
    return ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")


async def fail(context: grpc.aio.ServicerContext, error: ServingError) -> None:
    """Ends a call with the status of an error."""
    hint = ()
    if error.retry_after is not None:
        hint = ((_RETRY, str(max(round(error.retry_after * 1000), 1))),)
    await context.abort(_STATUS[error.code], _cut(error.message), hint)


def _cut(message: str) -> str:
    text = message.encode(errors="replace")
    if len(text) <= _LONGEST_MESSAGE:
        return message
    return text[:_LONGEST_MESSAGE].decode(errors="ignore") + "...TRUNCATED"
