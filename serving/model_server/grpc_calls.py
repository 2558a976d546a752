"""What every gRPC method shares: from a context to a `Call`, from an exception to a status."""

import logging
from collections.abc import Awaitable, Callable

import grpc
from google.protobuf.message import Message

from serving.model_server import calls
from serving.model_server.calls import Call
from serving.model_server.errors import Code, ServingError
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


def unary(answer: Answer, request: type[Message], mailbox: Mailbox) -> grpc.RpcMethodHandler:
    """Returns the handler of a method with one request and one response.

    Args:
        answer: Returns the response, or its bytes, or raises a `ServingError`.
        request: The request's type.
        mailbox: That of the event loop.
    """

    async def respond(message, context):
        try:
            return await answer(message, call(context, mailbox))
        except Exception as error:
            failure = error
        await fail(context, failure)

    return grpc.unary_unary_rpc_method_handler(respond, request.FromString, serialized)


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


async def fail(context: grpc.aio.ServicerContext, error: Exception) -> None:
    """Ends a call with the status that an exception stands for."""
    if not isinstance(error, ServingError):
        _LOG.error("A request failed in the server itself", exc_info=error)
        error = ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")
    hint = ()
    if error.retry_after is not None:
        hint = ((_RETRY, str(max(round(error.retry_after * 1000), 1))),)
    await context.abort(_STATUS[error.code], _cut(error.message), hint)


def _cut(message: str) -> str:
    if len(message) <= _LONGEST_MESSAGE:
        return message
    return message[:_LONGEST_MESSAGE] + "...TRUNCATED"
