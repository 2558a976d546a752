"""A run of a graph on its way: what is asked, and, in time, its answer.

Threads and event loops wait for tasks alike. Waking an event loop costs more than a small run, so
that a mailbox wakes it once for all that has come meanwhile.
"""

import asyncio
import collections
import contextlib
import time
from collections.abc import Hashable, Iterable
from concurrent.futures import Future

from serving.model_server.errors import ServingError


class Task:
    """A run that somebody waits for.

    Args:
        request: What is asked.
        size: How many rows it has.
        kind: Only tasks of one kind share a batch.
        deadline: When it is no longer wanted, by `time.monotonic`; None for never.
        urgency: From 0, the most urgent, to 7.
        mailbox: That of the event loop that waits; None for a thread.
    """

    def __init__(
        self,
        request,
        size: int,
        kind: Hashable,
        deadline: float | None,
        urgency: int,
        mailbox: "Mailbox | None" = None,
    ):
        self.request = request
        self.size = size
        self.kind = kind
        self.deadline = deadline
        self.urgency = urgency
        self.mailbox = mailbox
        self.since = time.monotonic()
        self.waited = 0.0  # Seconds, once it runs.
        self.batch = None  # That in which it waits.
        self.answer = mailbox.future() if mailbox else Future()
        self._result = None
        self._error: ServingError | None = None

    def succeed(self, result) -> "Task":
        """Keeps the answer for delivery."""
        self._result = result
        return self

    def fail(self, error: ServingError) -> "Task":
        """Keeps an error of its own for delivery, since callers may not share a traceback."""
        self._error = ServingError(error.code, error.message, error.retry_after)
        return self

    def settle(self) -> None:
        """Hands the answer to who waits, if anybody does; where a loop waits, in its thread."""
        if self.answer.done():
            return
        if self._error:
            self.answer.set_exception(self._error)
        else:
            self.answer.set_result(self._result)


class Mailbox:
    """Answers for the tasks of one event loop; made in that loop."""

    def __init__(self):
        self._loop = asyncio.get_running_loop()
        self.future = self._loop.create_future
        self.call_soon = self._loop.call_soon
        self._tasks: collections.deque[Task] = collections.deque()
        self._rung = False

    def put(self, tasks: Iterable[Task]) -> None:
        """Delivers tasks from any thread; wakes the loop if it is not about to look."""
        self._tasks.extend(tasks)
        if not self._rung:
            self._rung = True
            with contextlib.suppress(RuntimeError):  # The loop has ended, and nobody waits.
                self._loop.call_soon_threadsafe(self._empty)

    def _empty(self) -> None:
        self._rung = False
        while self._tasks:
            self._tasks.popleft().settle()


def deliver(tasks: Iterable[Task]) -> None:
    """Hands out the answers of tasks."""
    by_mailbox: dict[Mailbox, list[Task]] = {}
    for task in tasks:
        if task.mailbox:
            by_mailbox.setdefault(task.mailbox, []).append(task)
        else:
            task.settle()
    for mailbox, its in by_mailbox.items():
        mailbox.put(its)
