"""Requests that come at the same time, answered by one run of the graph.

A batcher stands before a servable and looks like one. Only requests of one version, for the same
inputs and outputs and of the same inner shape, share a batch.
"""

import logging
import threading
import time
from collections.abc import Mapping, Sequence

import numpy as np

from serving.model_server import batch_parameters, batch_tensors
from serving.model_server.batch_parameters import Parameters
from serving.model_server.batch_scheduler import Queue, Scheduler, Task, expired
from serving.model_server.errors import Code, ServingError, invalid
from serving.model_server.flags import Options
from serving.model_server.metrics import Metrics
from serving.model_server.servable import Servable

_LOG = logging.getLogger(__name__)
_OF_ALL = frozenset({Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNAVAILABLE})


class Batching:
    """Puts batchers before servables, as the flags say.

    Args:
        options: The flags.
        metrics: Counts batches.

    Raises:
        ServingError: The parameters are not sound.
    """

    def __init__(self, options: Options, metrics: Metrics):
        self._metrics = metrics
        self._by_version = options.enable_per_model_batching_parameters
        self._scheduler: Scheduler | None = None
        if options.enable_batching:
            self._parameters, pool = batch_parameters.of_server(options)
            self._scheduler = Scheduler(pool.threads, pool.name)

    def wrap(self, path: str, servable: Servable) -> "Servable | BatchedServable":
        """Returns the servable in the folder `path`, behind a batcher where it is to have one."""
        if not self._scheduler:
            return servable
        parameters = self._parameters
        if self._by_version:
            parameters = batch_parameters.of_version(path)
        if not parameters:
            return servable
        return BatchedServable(servable, parameters, self._scheduler, self._metrics)

    def close(self) -> None:
        """Ends the threads."""
        if self._scheduler:
            self._scheduler.close()


class BatchedServable:
    """A servable whose runs are batched.

    Args:
        servable: Runs the batches.
        parameters: How to batch.
        scheduler: Says when.
        metrics: Counts batches.
    """

    def __init__(
        self, servable: Servable, parameters: Parameters, scheduler: Scheduler, metrics: Metrics
    ):
        self.signatures = servable.signatures
        self._servable = servable
        self._parameters = parameters
        self._scheduler = scheduler
        self._metrics = metrics
        self._queues: dict[tuple, Queue] = {}
        self._lock = threading.Lock()

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> list[np.ndarray]:
        """Returns the tensors named in `fetches`; see `Servable.run`."""
        size = batch_tensors.rows(feeds)
        if not size:
            return self._servable.run(feeds, fetches, timeout_ms)
        if size > self._parameters.largest_request:
            limit = self._parameters.largest_request
            raise invalid(f"Task size {size} is larger than maximum input batch size {limit}")
        deadline = time.monotonic() + timeout_ms / 1000 if timeout_ms else None
        queue = self._queue(tuple(sorted(feeds)), tuple(fetches))
        tasks = []
        for piece in batch_tensors.cut(feeds, self._parameters.largest_batch):
            kind = batch_tensors.kind(piece, self._parameters.pad)
            tasks.append(Task(piece, batch_tensors.rows(piece), kind, deadline))
            self._scheduler.submit(queue, tasks[-1])
        return batch_tensors.join([self._scheduler.result(queue, task) for task in tasks])

    def close(self) -> None:
        """Waits for the batches under way, and gives back the session's memory."""
        for queue in self._queues.values():
            self._scheduler.remove(queue)
        self._servable.close()

    def _queue(self, inputs: tuple[str, ...], outputs: tuple[str, ...]) -> Queue:
        with self._lock:
            key = (inputs, outputs)
            if key not in self._queues:
                parameters = self._parameters
                self._queues[key] = Queue(
                    *(parameters.largest_batch, parameters.most_batches, parameters.timeout),
                    lambda tasks: self._run(tasks, outputs),
                )
                self._scheduler.add(self._queues[key])
            return self._queues[key]

    def _run(self, tasks: Sequence[Task], fetches: Sequence[str]) -> None:
        now = time.monotonic()
        wanted = []
        for task in tasks:
            waited = (now - task.since) * 1e6
            self._metrics.queuing_latency.add(self._scheduler.name, amount=waited)
            if task.deadline is None or task.deadline > now:
                wanted.append(task)
            else:
                task.fail(expired())
        if wanted:
            self._answer(wanted, fetches)

    def _answer(self, tasks: Sequence[Task], fetches: Sequence[str]) -> None:
        """Runs a batch; where one row fails it, every task alone, so that only that one fails."""
        try:
            size, outputs = self._run_once(tasks, fetches)
            parts = batch_tensors.split(outputs, [task.size for task in tasks], size)
        except _RunFailed as failed:
            if len(tasks) == 1 or failed.error.code in _OF_ALL:
                return _fail(tasks, failed.error)
            for task in tasks:
                self._answer([task], fetches)
        except ServingError as error:
            _fail(tasks, error)
        except Exception as error:
            _LOG.exception("A batch failed in the server itself")
            _fail(tasks, ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}"))
        else:
            for task, part in zip(tasks, parts, strict=True):
                task.answer.set_result(part)

    def _run_once(
        self, tasks: Sequence[Task], fetches: Sequence[str]
    ) -> tuple[int, list[np.ndarray]]:
        rows = sum(task.size for task in tasks)
        size = self._parameters.padded_size(rows)
        requests = [task.request for task in tasks]
        self._metrics.batch(rows, size)
        try:
            feeds = batch_tensors.merge(requests, size, self._parameters.pad)
            return size, self._servable.run(feeds, fetches, _timeout_ms(tasks))
        except ServingError as error:
            raise _RunFailed(error) from None


class _RunFailed(Exception):
    def __init__(self, error: ServingError):
        super().__init__(str(error))
        self.error = error


def _fail(tasks: Sequence[Task], error: ServingError) -> None:
    for task in tasks:
        task.fail(error)


def _timeout_ms(tasks: Sequence[Task]) -> int:
    """Returns how long the last of the tasks can wait; 0 where one can wait for ever."""
    deadlines = [task.deadline for task in tasks]
    if None in deadlines:
        return 0
    return max(int((max(deadlines) - time.monotonic()) * 1000), 1)
