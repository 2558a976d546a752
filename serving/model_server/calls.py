"""Who asks: how long they can wait, how urgent it is, and how they wait.

The core's methods are coroutines that wait for nothing but runs of a graph, and for those by way
of a `Call`. One call blocks its thread; another lets its event loop go on.
"""

import asyncio
import math
import time
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from concurrent import futures
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any, Protocol

import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from serving.model_server.batch_padding import Padding
from serving.model_server.errors import Code, Expired, ServingError, caller_gone
from serving.model_server.tasks import Mailbox

USUAL = 3  # Urgency is from 0, the most urgent, to 7, as in RFC 9218.
PULSE = 0.05  # Seconds between two looks whether the caller of a waiting thread is still there.
_PATIENCE = 0.9  # The share of its time after which a caller that cancels has run out of it.


class Call:
    """A request's own.

    Args:
        timeout_ms: Longest time to take; 0 for any.
        urgency: What is more urgent (0) runs before what is less (7).
        mailbox: Where an event loop gets its answers; without it, the thread waits.
        shares: Whether it may share a batch, which another thread runs.
        is_gone: Tells a thread that waits whether its caller has left. An event loop is told
            unasked.
    """

    def __init__(
        self,
        timeout_ms: int = 0,
        urgency: int = USUAL,
        mailbox: Mailbox | None = None,
        shares: bool = True,
        is_gone: Callable[[], bool] = lambda: False,
    ):
        now = time.monotonic()
        self.deadline = now + timeout_ms / 1000 if timeout_ms else None
        self._given_up_from = now + _PATIENCE * timeout_ms / 1000 if timeout_ms else math.inf
        self.urgency = urgency
        self.mailbox = mailbox
        self.shares = shares
        self._is_gone = is_gone

    async def run(
        self, servable: "Runner", feeds: Mapping[str, np.ndarray], fetches: Sequence[str]
    ) -> list[np.ndarray]:
        """Returns the tensors named in `fetches`; see `Servable.run`."""
        if self.mailbox is None:
            return servable.run(feeds, fetches, self)
        with self._in_time():
            return await servable.start(feeds, fetches, self)

    async def wait(self, future: Future) -> None:
        """Waits for another thread.

        Raises:
            ServingError: The time is over.
        """
        if self.mailbox is not None:
            with self._in_time():
                return await asyncio.wrap_future(future)
        try:
            self.result(future)
        except futures.TimeoutError:  # not the built-in one before Python 3.11
            raise ServingError(
                Code.DEADLINE_EXCEEDED, "Timed out waiting for notification"
            ) from None

    def result(self, future: Future) -> Any:
        """Returns what another thread finds, while this one waits.

        Raises:
            TimeoutError: The time is over.
            ServingError: The other thread failed, or the caller has gone.
        """
        while True:
            left = math.inf if self.deadline is None else self.deadline - time.monotonic()
            try:
                return future.result(max(min(left, PULSE), 0))
            except futures.TimeoutError:
                if left <= PULSE:
                    raise
            if self._is_gone():
                raise caller_gone()

    @contextmanager
    def _in_time(self) -> Iterator[None]:
        """Tells, where gRPC gives up the request, whether its time is over.

        The caller's clock started before ours, and at its end the caller cancels: what is cancelled
        just before our deadline was not given up for another reason.
        """
        try:
            yield
        except asyncio.CancelledError:
            if time.monotonic() < self._given_up_from:
                raise
            raise Expired from None

    def timeout_ms(self) -> int:
        """Returns the time that is left, at least 1; 0 where there is no limit."""
        return timeout_ms(self.deadline)


class Runner(Protocol):
    """A loaded version, as requests see it."""

    signatures: Mapping[str, SignatureDef]
    paddings: Sequence[Padding]
    alone: "Runner"  # The same without batching.

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], call: Call
    ) -> list[np.ndarray]:
        """Returns the tensors named in `fetches`; the thread waits."""

    async def start(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], call: Call
    ) -> list[np.ndarray]:
        """Returns the tensors named in `fetches`; the event loop goes on."""

    def cancel(self) -> None:
        """Ends what runs."""

    def close(self) -> None:
        """Lets what runs end, and gives back the memory."""


def now(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Returns what a coroutine of a blocking call returns."""
    try:
        coroutine.send(None)
    except StopIteration as returned:
        return returned.value
    coroutine.close()
    raise RuntimeError("A coroutine waited for an event loop where there is none")


def timeout_ms(deadline: float | None) -> int:
    """Returns the milliseconds until `deadline`, at least 1; 0 where there is none."""
    return 0 if deadline is None else max(int((deadline - time.monotonic()) * 1000), 1)


def urgency(priority: str) -> int:
    """Returns the urgency that a priority header asks for: `u=0` for the most urgent.

    As RFC 9218 wants it, what is not understood is passed over.
    """
    for part in priority.split(","):
        key, _, value = part.strip().partition("=")
        if key == "u" and value in _URGENCIES:
            return int(value)
    return USUAL


_URGENCIES = frozenset("01234567")
