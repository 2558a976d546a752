"""What a request or a load can fail with: a canonical code and a message."""

import asyncio
import enum


class Code(enum.IntEnum):
    """The canonical status codes, which gRPC, TensorFlow and TF Serving share."""

    OK = 0
    CANCELLED = 1
    UNKNOWN = 2
    INVALID_ARGUMENT = 3
    DEADLINE_EXCEEDED = 4
    NOT_FOUND = 5
    ALREADY_EXISTS = 6
    PERMISSION_DENIED = 7
    RESOURCE_EXHAUSTED = 8
    FAILED_PRECONDITION = 9
    ABORTED = 10
    OUT_OF_RANGE = 11
    UNIMPLEMENTED = 12
    INTERNAL = 13
    UNAVAILABLE = 14
    DATA_LOSS = 15
    UNAUTHENTICATED = 16


class ServingError(Exception):
    """A failure with the code and the message that the caller is to see.

    Args:
        code: Its kind.
        message: What is wrong.
        retry_after: Seconds after which asking again may help; None where it will not.
    """

    def __init__(self, code: Code, message: str, retry_after: float | None = None):
        super().__init__(message)
        self.code = code
        self.message = message
        self.retry_after = retry_after

    def __str__(self) -> str:
        return f"{self.code.name}: {self.message}"


class Expired(asyncio.CancelledError):
    """A request was given up because its time was over, and not because its caller wished so."""


def why_given_up(error: asyncio.CancelledError) -> Code:
    """Returns the code of a request that was given up."""
    return Code.DEADLINE_EXCEEDED if isinstance(error, Expired) else Code.CANCELLED


def invalid(message: str) -> ServingError:
    """Returns the commonest error: the caller's request is at fault."""
    return ServingError(Code.INVALID_ARGUMENT, message)


def caller_gone() -> ServingError:
    """Returns the error of a request whose caller has left; it is for the records."""
    return ServingError(Code.CANCELLED, "The caller has gone")


def not_found(message: str) -> ServingError:
    """Returns the error of a model or version that is not there to be used."""
    return ServingError(Code.NOT_FOUND, message)
