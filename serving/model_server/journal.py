"""What is noted of a request while it is answered, for those who want to know once it is."""

import asyncio
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import NamedTuple

from serving.model_server.errors import Code, ServingError, why_given_up

ID_HEADER = "x-request-id"
_LONGEST_ID = 128


class Part(NamedTuple):
    """A part of the time that a request took; both in seconds, the start on the wall's clock."""

    name: str
    start: float
    seconds: float


class Entry:
    """One request: who asked what of whom, how it ended, and where its time went."""

    def __init__(self, entrypoint: str, method: str, headers: Mapping[str, str], peer: str):
        self.entrypoint = entrypoint
        self.method = method
        self.headers = headers
        self.peer = peer
        self.id = headers.get(ID_HEADER, "")[:_LONGEST_ID] or uuid.uuid4().hex
        self.model = self.signature = ""
        self.version = 0
        self.code = Code.OK
        self.message = ""
        self.bytes_in = self.bytes_out = 0
        self.parts: list[Part] = []
        self.start = time.time()
        self.seconds = 0.0

    def fail(self, error: ServingError) -> None:
        """Notes that the request failed."""
        self.code, self.message = error.code, error.message


Listener = Callable[[Entry], None]
_current: ContextVar[Entry | None] = ContextVar("entry", default=None)


class Journal:
    """Notes requests where somebody listens, and costs next to nothing where nobody does.

    Args:
        listeners: Each is called with every request once it is answered.
    """

    def __init__(self, listeners: Sequence[Listener] = ()):
        self._listeners = tuple(listeners)

    @property
    def heard(self) -> bool:
        """Whether anybody listens."""
        return bool(self._listeners)

    @contextmanager
    def answering(
        self, entrypoint: str, method: str, headers: Mapping[str, str], peer: str
    ) -> Iterator[Entry]:
        """Notes one request, from here to the end of the context.

        Args:
            entrypoint: `GRPC` or `REST`.
            method: What is asked.
            headers: What the caller says beside the request, by lower-case name.
            peer: Who the caller is.
        """
        entry = Entry(entrypoint, method, headers, peer)
        token = _current.set(entry)
        start = time.perf_counter()
        try:
            yield entry
        except asyncio.CancelledError as error:
            entry.code = why_given_up(error)
            raise
        finally:
            entry.seconds = time.perf_counter() - start
            _current.reset(token)
            for listener in self._listeners:
                listener(entry)


class part:  # noqa: N801
    """A context whose time is noted as a part of the request that it is in, if it is in one."""

    __slots__ = ("_name", "_start")

    def __init__(self, name: str):
        self._name = name

    def __enter__(self) -> None:
        self._start = time.perf_counter()

    def __exit__(self, *_) -> None:
        if entry := _current.get():
            seconds = time.perf_counter() - self._start
            entry.parts.append(Part(self._name, time.time() - seconds, seconds))


def note_wait(since: float, seconds: float) -> None:
    """Notes a part of the run, the time before it began, from `since` by `time.monotonic`."""
    if entry := _current.get():
        entry.parts.append(Part("queue", time.time() - time.monotonic() + since, seconds))


def note_model(model: str, version: int, signature: str) -> None:
    """Notes who answers the request."""
    if entry := _current.get():
        entry.model, entry.version, entry.signature = model, version, signature
