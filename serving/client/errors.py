"""What a request can end with, each a class of its own; the texts say what would help."""

import grpc


class ServingError(Exception):
    """The server, or the way to it, refused a request.

    Attributes:
        code: The status code's name, such as `"NOT_FOUND"`.
        message: What the server said.
    """

    def __init__(self, code: str, message: str, text: str = ""):
        super().__init__(text or f"{code}: {message}")
        self.code = code
        self.message = message


class ModelNotFound(ServingError):
    """The server has no such model, or no such version, that could answer."""


class InvalidInput(ServingError):
    """The inputs are not what the model takes."""


class SignatureNotFound(ServingError):
    """The model has no signature of that name."""


class ServerUnavailable(ServingError):
    """Nothing answers at the address, or the server is overloaded."""


class DeadlineExceeded(ServingError):
    """The answer did not come in time."""


def from_grpc(error: grpc.RpcError, address: str, asked: str, timeout: float) -> ServingError:
    """Returns the exception of a failed call.

    Args:
        error: What grpc raised.
        address: The server's.
        asked: What was asked, in words.
        timeout: Seconds that it was given.
    """
    code, said = error.code().name, error.details() or ""
    kind = _KINDS.get(code, ServingError)
    if said.startswith("Serving signature key"):
        kind = SignatureNotFound
    help_text = _HELP.get(kind, "").format(address=address, timeout=timeout)
    if kind is ServerUnavailable and "queue" in said:
        help_text = "The server is overloaded; ask again later."
    return kind(code, said, f"{asked}: {code}: {said}" + (f"\n{help_text}" if help_text else ""))


_KINDS = {
    "NOT_FOUND": ModelNotFound,
    "INVALID_ARGUMENT": InvalidInput,
    "UNAVAILABLE": ServerUnavailable,
    "DEADLINE_EXCEEDED": DeadlineExceeded,
}
_HELP = {
    ModelNotFound: "See what is served, and why a model is not: `Client.status(model)`, or the "
    "log of the server at {address}.",
    ServerUnavailable: "No server answers at {address}. Start one with `transduce serve MODELS`, "
    "or give the address of one that runs: `host:port` or `unix:/path`.",
    DeadlineExceeded: "{timeout:g} s were not enough; give a longer `timeout`.",
}
