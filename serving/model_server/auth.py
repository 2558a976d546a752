"""Bearer tokens: who may ask."""

import hmac

import grpc

from serving.model_server import grpc_calls
from serving.model_server.errors import Code, ServingError, invalid, not_found
from serving.model_server.journal import Journal

_OPEN_TO_ALL = "/grpc.health.v1."


class Tokens:
    """The tokens that callers may show, any of them.

    Args:
        file: Holds a token a line.

    Raises:
        ServingError: There is no such file, or no token in it.
    """

    def __init__(self, file: str):
        try:
            with open(file, "rb") as lines:
                self._tokens = [line.strip() for line in lines if line.strip()]
        except OSError as error:
            raise not_found(f"--auth_token_file={file}: {error.strerror}") from None
        if not self._tokens:
            raise invalid(f"--auth_token_file={file} must hold a token a line; it holds none")

    def check(self, authorization: str) -> None:
        """Raises a ServingError unless the header is `Bearer` and one of the tokens."""
        scheme, _, shown = authorization.partition(" ")
        token = shown.strip().encode()
        # Each is compared, and to its end, so that the time taken tells nothing.
        matches = [hmac.compare_digest(token, known) for known in self._tokens]
        if scheme.lower() != "bearer" or not any(matches):
            raise ServingError(
                Code.UNAUTHENTICATED, "Requests must have the header `authorization: Bearer TOKEN`"
            )


class Guard(grpc.aio.ServerInterceptor):
    """Refuses gRPC calls without a token, but for those that ask for the server's health.

    Args:
        tokens: One of which is to be shown.
        journal: Notes the calls that are refused.
    """

    def __init__(self, tokens: Tokens, journal: Journal):
        self._tokens = tokens
        self._journal = journal

    async def intercept_service(self, continuation, handler_call_details):
        """Returns what answers a call."""
        if handler_call_details.method.startswith(_OPEN_TO_ALL):
            return await continuation(handler_call_details)
        metadata = dict(handler_call_details.invocation_metadata or ())
        try:
            self._tokens.check(metadata.get("authorization", ""))
        except ServingError as error:
            _, _, name = handler_call_details.method.rpartition("/")
            return _refusal(name, error, self._journal)
        return await continuation(handler_call_details)


def _refusal(name: str, error: ServingError, journal: Journal) -> grpc.RpcMethodHandler:
    async def refuse(_, context: grpc.aio.ServicerContext):
        with grpc_calls.noting(journal, name, context) as entry:
            if entry:
                entry.fail(error)
        await grpc_calls.fail(context, error)

    return grpc.stream_stream_rpc_method_handler(refuse)
