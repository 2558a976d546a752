"""Queues of batches, and the threads that take from them."""

import collections
import heapq
import itertools
import threading
import time
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent import futures
from contextlib import contextmanager

from serving.model_server.calls import Call
from serving.model_server.errors import Code, ServingError
from serving.model_server.tasks import Mailbox, Task

_EXPIRED = "Run() timeout exceeded while waiting in batching queue"
_SHORTEST_HINT = 0.001
_SMOOTHING = 0.1
_QUICK = 0.0005  # Seconds below which changing threads takes longer than the run.
_STALL = 0.02  # After so long a run in an event loop, others are run elsewhere:
_BARRED, _BARRED_BRIEFLY = 1000, 50  # Where the graph took the time; where the thread waited.
_numbers = itertools.count()


class _Batch:
    def __init__(self, kind: Hashable, urgency: int):
        self.kind = kind
        self.urgency = urgency
        self.tasks: list[Task] = []
        self.size = 0
        self.since = time.monotonic()
        self.order = (urgency, next(_numbers))

    def __lt__(self, other: "_Batch") -> bool:
        return self.order < other.order


class Queue:
    """The batches that wait for one graph and one set of its inputs and outputs.

    The most urgent go first, the oldest of them before the others.

    Args:
        run: Answers the tasks of a batch, wholly in this thread where told; raises nothing.
        largest: Most rows in a batch.
        most: Most batches of one urgency, and of what is more urgent, that may wait; None for any.
        timeout: Seconds that a batch that is not full waits for more.
        bounded: Whether runs are known to end soon, whatever is asked; if they have been quick
            lately, an event loop may run them itself.
    """

    def __init__(
        self,
        run: Callable[[list[Task], bool], None],
        largest: int = 1,
        most: int | None = None,
        timeout: float = 0.0,
        bounded: bool = False,
    ):
        self._run = run
        self._largest = largest
        self._most = most
        self._timeout = timeout
        self._open: dict[tuple[Hashable, int], _Batch] = {}
        self._closed: list[_Batch] = []  # A heap; what was emptied since is still there.
        self._waiting: collections.Counter[int] = collections.Counter()  # Batches by urgency.
        self._seconds = 0.0  # That a batch takes, lately.
        self._bounded = bounded
        self._recent: collections.deque[float] = collections.deque(maxlen=16)
        self._barred = 0

    def __len__(self) -> int:
        """Returns how many batches wait."""
        return self._waiting.total()

    def add(self, task: Task) -> None:
        """Puts a task in the open batch of its kind, or in a new one.

        Raises:
            ServingError: There is no room.
        """
        key = (task.kind, task.urgency)
        batch = self._open.get(key)
        if batch is None or batch.size + task.size > self._largest:
            self._check_room(task.urgency)
            if batch:
                self._close(batch)
            batch = self._open[key] = _Batch(*key)
            self._waiting[task.urgency] += 1
        batch.tasks.append(task)
        batch.size += task.size
        task.batch = batch
        if batch.size >= self._largest:
            self._close(batch)

    def remove(self, task: Task) -> bool:
        """Takes a task out; tells whether it was there."""
        batch, task.batch = task.batch, None
        if batch is None:
            return False
        batch.tasks.remove(task)
        batch.size -= task.size
        if not batch.tasks:
            self._waiting[batch.urgency] -= 1
            self._open_no_more(batch)
        return True

    def next(self, now: float) -> list[Task]:
        """Takes the first batch that is full or has waited long enough; nothing if none is."""
        while self._closed and not self._closed[0].tasks:
            heapq.heappop(self._closed)
        due = (batch for batch in self._open.values() if batch.since + self._timeout <= now)
        batch = min(due, default=None)
        if self._closed and (batch is None or self._closed[0] < batch):
            batch = heapq.heappop(self._closed)
        if batch is None:
            return []
        self._waiting[batch.urgency] -= 1
        self._open_no_more(batch)
        for task in batch.tasks:
            task.batch = None
        return batch.tasks

    def due(self) -> Iterator[float]:
        """Yields when each open batch is to be run at the latest."""
        return (batch.since + self._timeout for batch in self._open.values())

    @property
    def quick(self) -> bool:
        """Whether an event loop may run a batch itself.

        The shortest of the recent times counts: the others hold waits for Python's lock.
        """
        known = self._bounded and not self._barred and len(self._recent) == self._recent.maxlen
        return known and min(self._recent) < _QUICK

    def run(self, tasks: list[Task], in_loop: bool = False) -> None:
        """Answers the tasks of a batch, and learns how long that takes."""
        start, worked = time.monotonic(), time.thread_time()
        self._run(tasks, self.quick)
        took, worked = time.monotonic() - start, time.thread_time() - worked
        self._recent.append(took)
        if in_loop and took > _STALL:  # Perhaps it waited for Python's lock, as others had it.
            self._barred = _BARRED if worked > _STALL else _BARRED_BRIEFLY
        else:
            self._barred = max(self._barred - 1, 0)
        self._seconds += _SMOOTHING * (took - self._seconds) if self._seconds else took

    def _check_room(self, urgency: int) -> None:
        if self._most is None:
            return
        waiting = sum(count for each, count in self._waiting.items() if each <= urgency)
        if waiting >= self._most:
            raise ServingError(
                Code.UNAVAILABLE,
                "The batch scheduling queue to which this task was submitted is full; "
                f"currently {waiting} batches enqueued and max_enqueued_batches is {self._most}",
                retry_after=max(self._seconds * waiting, self._timeout, _SHORTEST_HINT),
            )

    def _close(self, batch: _Batch) -> None:
        self._open_no_more(batch)
        heapq.heappush(self._closed, batch)

    def _open_no_more(self, batch: _Batch) -> None:
        key = (batch.kind, batch.urgency)
        if self._open.get(key) is batch:
            del self._open[key]


class _Crowd:
    """Whether it pays to wait for further requests, as they come thick and fast.

    A gRPC server hands its calls to an event loop one by one; a run for each would take longer
    than all else. Where nobody else came the last times, it seldom tries again.
    """

    _THICK = 0.0006  # Seconds between requests that are close to one another.
    _PAUSE = 0.0004  # After so long without one the crowd has come.
    _LONGEST = 0.002  # As long waits the first of them.
    _TRIES, _REST = 8, 16

    def __init__(self):
        self._interval = 1.0  # Lately.
        self._first = self._last = 0.0
        self._count = 0
        self._alone = 0  # So many times nobody else came.

    def add(self, now: float) -> None:
        """Notes a request."""
        self._interval += _SMOOTHING * (min(now - self._last, 1.0) - self._interval)
        self._last = now
        if not self._count:
            self._first = now
        self._count += 1

    def may_grow(self, now: float) -> bool:
        """Tells whether to wait for another."""
        if self._alone >= self._TRIES and self._alone % self._REST:
            return False
        in_time = now - self._last < self._PAUSE and now - self._first < self._LONGEST
        return in_time and self._interval < self._THICK

    def end(self) -> None:
        """Lets those that have come go."""
        self._alone = self._alone + 1 if self._count == 1 else 0
        self._count = 0


class Scheduler:
    """Threads that run the batches of all queues, a batch of each in turn.

    Args:
        threads: How many there may be; each begins when it is first needed.
        name: What they are called.
        gathers: Whether requests that come thick and fast wait a little for one another.
    """

    def __init__(self, threads: int, name: str, gathers: bool = False):
        self.name = name
        self._gathers = gathers
        self.most_threads = threads
        self._threads: list[threading.Thread] = []
        self._waiting: dict[Queue, None] = {}  # Queues that are not empty, in their turns.
        self._running: collections.Counter[Queue] = collections.Counter()
        lock = threading.Lock()
        self._work = threading.Condition(lock)
        self._done = threading.Condition(lock)
        self._idle = 0  # Threads that wait for work and that no work has been sent to yet.
        self._gathering = False  # Whether an event loop is about to see to what it has put in.
        self._crowd = _Crowd()
        self._closed = False

    @contextmanager
    def submitted(self, queue: Queue, tasks: Sequence[Task]) -> Iterator[None]:
        """Puts tasks in a queue; those that still wait when this context fails leave it.

        Raises:
            ServingError: The queue is full.
        """
        try:
            with self._work:
                for task in tasks:
                    queue.add(task)
                    self._waiting[queue] = None
                    if task.mailbox:
                        self._soon(task.mailbox)
                    else:
                        self._wake_one()
            yield
        except BaseException:
            for task in tasks:
                task.answer.cancel()
                self._remove(queue, task)
            raise

    def result(self, queue: Queue, task: Task, call: Call):
        """Returns the answer to a task; a task that waits beyond its deadline leaves the queue.

        Raises:
            ServingError: The task failed, or there was no answer in time, or nobody to tell it.
        """
        try:
            return call.result(task.answer)
        except futures.TimeoutError:  # not the built-in one before Python 3.11
            pass
        if self._remove(queue, task):
            raise expired()
        raise ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")

    def drain(self, queue: Queue) -> None:
        """Waits until no batch of `queue` waits or runs."""
        with self._done:
            self._done.wait_for(lambda: not len(queue) and not self._running[queue])
            del self._running[queue]

    def close(self) -> None:
        """Ends the threads."""
        with self._work:
            self._closed = True
            self._work.notify_all()
        for thread in self._threads:
            thread.join()

    def _remove(self, queue: Queue, task: Task) -> bool:
        with self._done:
            removed = queue.remove(task)
            self._done.notify_all()
        return removed

    def _soon(self, mailbox: Mailbox) -> None:
        """Sees to what an event loop has put in once that has put in all that it has at hand."""
        self._crowd.add(time.monotonic())
        if not self._gathering:
            self._gathering = True
            mailbox.call_soon(self._gather, mailbox)

    def _gather(self, mailbox: Mailbox) -> None:
        if self._gathers and self._crowd.may_grow(time.monotonic()):
            mailbox.call_soon(self._gather, mailbox)
            return
        self._gathering = False
        self._crowd.end()
        while found := self._next_quick():
            self._run(*found, in_loop=True)

    def _next_quick(self) -> tuple[Queue, list[Task]] | None:
        """Takes what is quick; leaves the rest to a thread."""
        with self._work:
            if found := self._take(quick=True):
                return found
            if self._waiting:
                self._wake_one()
        return None

    def _wake_one(self) -> None:
        if self._idle:
            self._idle -= 1
        elif len(self._threads) < self.most_threads:
            name = f"{self.name}-{len(self._threads)}"
            self._threads.append(threading.Thread(target=self._serve, name=name, daemon=True))
            self._threads[-1].start()
        self._work.notify()

    def _serve(self) -> None:
        while found := self._next():
            self._run(*found)

    def _run(self, queue: Queue, tasks: list[Task], in_loop: bool = False) -> None:
        try:
            queue.run(tasks, in_loop)
        finally:
            with self._done:
                self._running[queue] -= 1
                self._done.notify_all()

    def _next(self) -> tuple[Queue, list[Task]] | None:
        with self._work:
            while not self._closed:
                if found := self._take():
                    if self._waiting:
                        self._wake_one()
                    return found
                self._idle += 1
                if not self._work.wait(self._until_due()) and self._idle:
                    self._idle -= 1
        return None

    def _take(self, quick: bool = False) -> tuple[Queue, list[Task]] | None:
        now = time.monotonic()
        for queue in list(self._waiting):
            if quick and not queue.quick:
                continue
            tasks = queue.next(now)
            del self._waiting[queue]
            if len(queue):
                self._waiting[queue] = None  # Behind the others.
            if tasks:
                self._running[queue] += 1
                return queue, tasks
        return None

    def _until_due(self) -> float | None:
        first = min((due for queue in self._waiting for due in queue.due()), default=None)
        return None if first is None else max(first - time.monotonic(), 0)


def expired() -> ServingError:
    """Returns the error of a task whose deadline came before its turn."""
    return ServingError(Code.RESOURCE_EXHAUSTED, _EXPIRED)
