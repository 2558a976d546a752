"""Queues of batches, and the threads that take from them."""

import collections
import threading
import time
from collections.abc import Callable, Hashable, Iterator
from concurrent import futures
from concurrent.futures import Future

from serving.model_server.errors import Code, ServingError

_EXPIRED = "Run() timeout exceeded while waiting in batching queue"


class Task:
    """A request on its way: what it asks, and, in time, its answer.

    Args:
        request: What is asked.
        size: How many rows it has.
        kind: Only tasks of one kind share a batch.
        deadline: When it is no longer wanted, by `time.monotonic`; None for never.
    """

    def __init__(self, request, size: int, kind: Hashable, deadline: float | None):
        self.request = request
        self.size = size
        self.kind = kind
        self.deadline = deadline
        self.since = time.monotonic()
        self.answer: Future = Future()

    def fail(self, error: ServingError) -> None:
        """Answers with an error of its own, since callers may not share a traceback."""
        self.answer.set_exception(ServingError(error.code, error.message))


class _Batch:
    def __init__(self, kind: Hashable):
        self.kind = kind
        self.tasks: list[Task] = []
        self.size = 0
        self.since = time.monotonic()


class Queue:
    """The batches that wait for one graph and one set of its inputs and outputs.

    Args:
        largest: Most rows in a batch.
        most: Most batches that may wait.
        timeout: Seconds that a batch that is not full waits for more.
        run: Answers the tasks of a batch; raises nothing.
    """

    def __init__(self, largest: int, most: int, timeout: float, run: Callable[[list[Task]], None]):
        self.run = run
        self._largest = largest
        self._most = most
        self._timeout = timeout
        self._batches: list[_Batch] = []
        self._open: dict[Hashable, _Batch] = {}

    @property
    def empty(self) -> bool:
        """Whether nothing waits."""
        return not self._batches

    def add(self, task: Task) -> None:
        """Puts a task in the open batch of its kind, or in a new one."""
        batch = self._open.get(task.kind)
        if batch is None or batch.size + task.size > self._largest:
            if len(self._batches) >= self._most:
                raise ServingError(
                    Code.UNAVAILABLE,
                    "The batch scheduling queue to which this task was submitted is full; "
                    f"currently {len(self._batches)} batches enqueued and "
                    f"max_enqueued_batches is {self._most}",
                )
            batch = self._open[task.kind] = _Batch(task.kind)
            self._batches.append(batch)
        batch.tasks.append(task)
        batch.size += task.size

    def remove(self, task: Task) -> bool:
        """Takes a task out; tells whether it was there."""
        for batch in self._batches:
            if task in batch.tasks:
                batch.tasks.remove(task)
                batch.size -= task.size
                if not batch.tasks:
                    self._take(batch)
                return True
        return False

    def next(self, now: float) -> list[Task]:
        """Takes the first batch that is full or has waited long enough; nothing if none is."""
        for batch in self._batches:
            if self._due(batch) <= now:
                self._take(batch)
                return batch.tasks
        return []

    def due(self) -> Iterator[float]:
        """Yields when each batch is to be run at the latest."""
        return map(self._due, self._batches)

    def _due(self, batch: _Batch) -> float:
        closed = batch.size >= self._largest or self._open.get(batch.kind) is not batch
        return batch.since if closed else batch.since + self._timeout

    def _take(self, batch: _Batch) -> None:
        self._batches.remove(batch)
        if self._open.get(batch.kind) is batch:
            del self._open[batch.kind]


class Scheduler:
    """Threads that run the batches of all queues, a batch of each in turn.

    Args:
        threads: How many.
        name: What they are called.
    """

    def __init__(self, threads: int, name: str):
        self.name = name
        self._queues: collections.deque[Queue] = collections.deque()
        self._running: collections.Counter[Queue] = collections.Counter()
        self._changed = threading.Condition()
        self._closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]
        for thread in self._threads:
            thread.start()

    def add(self, queue: Queue) -> None:
        """Takes from `queue`, too."""
        with self._changed:
            self._queues.append(queue)

    def remove(self, queue: Queue) -> None:
        """Waits for the batches of `queue`, and takes from it no more."""
        with self._changed:
            self._changed.wait_for(lambda: queue.empty and not self._running[queue])
            self._queues.remove(queue)
            del self._running[queue]

    def submit(self, queue: Queue, task: Task) -> None:
        """Puts a task in a queue.

        Raises:
            ServingError: The queue is full.
        """
        with self._changed:
            queue.add(task)
            self._changed.notify_all()

    def result(self, queue: Queue, task: Task):
        """Returns the answer to a task; a task that waits beyond its deadline leaves the queue.

        Raises:
            ServingError: The task failed, or there was no answer in time.
        """
        left = None if task.deadline is None else max(task.deadline - time.monotonic(), 0)
        try:
            return task.answer.result(left)
        except futures.TimeoutError:  # not the built-in one before Python 3.11
            pass
        with self._changed:
            waiting = queue.remove(task)
            self._changed.notify_all()
        if waiting:
            raise expired()
        raise ServingError(Code.DEADLINE_EXCEEDED, "Timed out waiting for notification")

    def close(self) -> None:
        """Ends the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        while found := self._next():
            queue, tasks = found
            queue.run(tasks)
            with self._changed:
                self._running[queue] -= 1
                self._changed.notify_all()

    def _next(self) -> tuple[Queue, list[Task]] | None:
        with self._changed:
            while not self._closed:
                if found := self._take():
                    self._running[found[0]] += 1
                    return found
                self._changed.wait(self._until_due())
        return None

    def _take(self) -> tuple[Queue, list[Task]] | None:
        now = time.monotonic()
        for _ in range(len(self._queues)):
            queue = self._queues[0]
            self._queues.rotate(-1)
            if tasks := queue.next(now):
                return queue, tasks
        return None

    def _until_due(self) -> float | None:
        first = min((due for queue in self._queues for due in queue.due()), default=None)
        return None if first is None else max(first - time.monotonic(), 0)


def expired() -> ServingError:
    """Returns the error of a task whose deadline came before its turn."""
    return ServingError(Code.RESOURCE_EXHAUSTED, _EXPIRED)
