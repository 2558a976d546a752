"""Requests that come at the same time, answered by one run of the graph.

A batcher stands before a servable and looks like one. Only requests of one version, for the same
inputs and outputs and of the same inner shape, share a batch. Where there is no batching, requests
stand in a line, so that an event loop need not wait for a graph.
"""

import functools
import logging
import threading
import time
import weakref
from collections.abc import Mapping, Sequence

import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from serving.model_server import batch_padding, batch_parameters, batch_tensors, journal
from serving.model_server.batch_parameters import Parameters
from serving.model_server.batch_scheduler import Queue, Scheduler, expired
from serving.model_server.calls import Call, Runner, timeout_ms
from serving.model_server.errors import Code, ServingError, invalid
from serving.model_server.flags import Options
from serving.model_server.metrics import Metrics
from serving.model_server.servable import Servable
from serving.model_server.tasks import Task, deliver

_LOG = logging.getLogger(__name__)
_OF_ALL = frozenset({Code.DEADLINE_EXCEEDED, Code.CANCELLED, Code.UNAVAILABLE})


class Batching:
    """Puts batchers before servables, as the flags say, and lines before the others.

    Args:
        options: The flags.
        metrics: Counts batches.

    Raises:
        ServingError: The parameters are not sound.
    """

    def __init__(self, options: Options, metrics: Metrics):
        self._metrics = metrics
        self._by_version = options.enable_per_model_batching_parameters
        self._parameters = None
        pool = None
        if options.enable_batching:
            self._parameters, pool = batch_parameters.of_server(options)
        self._single = Scheduler(max(options.grpc_max_threads, 1), "runs")
        self._batches = self._single
        if pool:
            self._batches = Scheduler(pool.threads, pool.name, gathers=True)

    def wrap(self, path: str, servable: Servable, model: str) -> Runner:
        """Returns the servable in the folder `path`, behind a batcher where it is to have one."""
        parameters = self._parameters
        if parameters and self._by_version:
            parameters = batch_parameters.of_version(path)
        if not parameters:
            return Line(servable, self._single)
        return BatchedServable(servable, parameters, self._batches, self._metrics, model)

    def close(self) -> None:
        """Ends the threads."""
        for scheduler in {self._single, self._batches}:
            scheduler.close()


class Line:
    """A servable whose runs are not batched.

    Args:
        servable: Runs them.
        scheduler: Runs those that event loops wait for.
    """

    paddings = ()

    def __init__(self, servable: Servable, scheduler: Scheduler):
        self.signatures = servable.signatures
        self._servable = servable
        self._scheduler = scheduler
        self._queue = Queue(self._answer, bounded=servable.bounded)
        self.alone = self

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], call: Call
    ) -> list[np.ndarray]:
        """Returns the tensors named in `fetches`, run in this thread; see `Servable.run`."""
        return self._servable.run(feeds, fetches, call.timeout_ms())

    async def start(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], call: Call
    ) -> list[np.ndarray]:
        """Returns the tensors named in `fetches`, run in another thread."""
        task = Task((feeds, fetches), 1, None, call.deadline, call.urgency, call.mailbox)
        with self._scheduler.submitted(self._queue, [task]):
            return await task.answer

    def cancel(self) -> None:
        """Ends the runs under way; see `Servable.cancel`."""
        self._servable.cancel()

    def close(self) -> None:
        """Waits for the runs under way, and gives back the session's memory."""
        self._scheduler.drain(self._queue)
        self._servable.close()

    def _answer(self, tasks: Sequence[Task], here: bool) -> None:
        for task in tasks:
            try:
                task.succeed(_run(self._servable, *task.request, timeout_ms(task.deadline), here))
            except ServingError as error:
                task.fail(error)
            except Exception as error:
                _LOG.exception("A run failed in the server itself")
                task.fail(_internal(error))
        deliver(tasks)


class BatchedServable:
    """A servable whose runs are batched.

    Args:
        servable: Runs the batches.
        parameters: How to batch.
        scheduler: Says when.
        metrics: Counts batches.
        model: The model's name, for the metrics.
    """

    def __init__(
        self,
        servable: Servable,
        parameters: Parameters,
        scheduler: Scheduler,
        metrics: Metrics,
        model: str = "",
    ):
        self.signatures = servable.signatures
        self.paddings = parameters.paddings
        self.alone = Line(servable, scheduler)
        self._servable = servable
        self._parameters = parameters
        self._padded = batch_padding.by_tensor(parameters.paddings, servable.signatures)
        self._scheduler = scheduler
        self._metrics = metrics
        self._model = model
        self._queues: dict[tuple, Queue] = {}
        self._lock = threading.Lock()

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], call: Call
    ) -> list[np.ndarray]:
        """Returns the tensors named in `fetches`; see `Servable.run`."""
        if not batch_tensors.rows(feeds):
            return self.alone.run(feeds, fetches, call)
        queue, tasks = self._queue(feeds, fetches), self._tasks(feeds, call)
        if not call.shares:
            for task in tasks:
                queue.run([task])
            return batch_tensors.join([task.answer.result() for task in tasks])
        with self._scheduler.submitted(queue, tasks):
            answers = [self._scheduler.result(queue, task, call) for task in tasks]
        journal.note_wait(tasks[0].since, tasks[0].waited)
        return batch_tensors.join(answers)

    async def start(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], call: Call
    ) -> list[np.ndarray]:
        """Returns the tensors named in `fetches`, while the event loop goes on."""
        if not batch_tensors.rows(feeds):
            return await self.alone.start(feeds, fetches, call)
        queue, tasks = self._queue(feeds, fetches), self._tasks(feeds, call)
        with self._scheduler.submitted(queue, tasks):
            answers = [await task.answer for task in tasks]
        journal.note_wait(tasks[0].since, tasks[0].waited)
        return batch_tensors.join(answers)

    def cancel(self) -> None:
        """Ends the runs under way; see `Servable.cancel`."""
        self._servable.cancel()

    def close(self) -> None:
        """Waits for the batches under way, and gives back the session's memory."""
        for queue in self._queues.values():
            self._scheduler.drain(queue)
        self.alone.close()

    def _tasks(self, feeds: Mapping[str, np.ndarray], call: Call) -> list[Task]:
        """Returns a request as a task, or as several where it is longer than a batch."""
        parameters = self._parameters
        size, limit = batch_tensors.rows(feeds), parameters.largest_request
        if size > limit:
            raise invalid(f"Task size {size} is larger than maximum input batch size {limit}")
        kind = batch_tensors.kind(feeds, parameters.pad, self._padded.inputs)
        pieces = [feeds]
        if size > parameters.largest_batch:
            pieces = batch_tensors.cut(feeds, parameters.largest_batch)
        return [
            Task(piece, batch_tensors.rows(piece), kind, call.deadline, call.urgency, call.mailbox)
            for piece in pieces
        ]

    def _queue(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> Queue:
        key = (tuple(sorted(feeds)), tuple(fetches))
        if found := self._queues.get(key):
            return found
        with self._lock:
            if key not in self._queues:
                parameters = self._parameters
                label = self._model, _signature_of(self.signatures, *key)
                limits = parameters.largest_batch, parameters.most_batches
                run = functools.partial(self._run, fetches=key[1], label=label)
                queue = Queue(run, *limits, parameters.timeout, self._servable.bounded)
                threads, splits = self._scheduler.most_threads, parameters.splits
                waiting = functools.partial(_waiting, weakref.ref(queue))
                self._metrics.queue(label, parameters.timeout, *limits, threads, splits, waiting)
                self._queues[key] = queue
            return self._queues[key]

    def _run(
        self, tasks: Sequence[Task], here: bool, fetches: Sequence[str], label: tuple[str, str]
    ) -> None:
        now = time.monotonic()
        wanted: list[Task] = []
        late: list[Task] = []
        for task in tasks:
            task.waited = now - task.since
            self._metrics.queued(self._scheduler.name, label, task.size, task.waited)
            in_time = task.deadline is None or task.deadline > now
            (wanted if in_time else late).append(task)
        deliver([task.fail(expired()) for task in late])
        if wanted:
            self._answer(wanted, here, fetches, label)

    def _answer(
        self, tasks: Sequence[Task], here: bool, fetches: Sequence[str], label: tuple[str, str]
    ) -> None:
        """Runs a batch; where a row fails it, each half alone, until only that row's task fails."""
        try:
            parts = self._run_once(tasks, here, fetches, label)
        except _RunFailed as failed:
            if len(tasks) == 1 or failed.error.code in _OF_ALL:
                return deliver([task.fail(failed.error) for task in tasks])
            middle = len(tasks) // 2
            self._answer(tasks[:middle], here, fetches, label)
            self._answer(tasks[middle:], here, fetches, label)
        except ServingError as error:
            deliver([task.fail(error) for task in tasks])
        except Exception as error:
            _LOG.exception("A batch failed in the server itself")
            deliver([task.fail(_internal(error)) for task in tasks])
        else:
            deliver([task.succeed(part) for task, part in zip(tasks, parts, strict=True)])

    def _run_once(
        self, tasks: Sequence[Task], here: bool, fetches: Sequence[str], label: tuple[str, str]
    ) -> list[list[np.ndarray]]:
        """Returns the outputs of every task."""
        sizes = [task.size for task in tasks]
        rows = sum(sizes)
        size = self._parameters.padded_size(rows)
        requests = [task.request for task in tasks]
        waited = time.monotonic() - min(task.since for task in tasks)
        self._metrics.batch(label, rows, size, waited)
        paddings = self._padded.inputs
        try:
            feeds = batch_tensors.merge(requests, size, self._parameters.pad, paddings)
            outputs = _run(self._servable, feeds, fetches, _longest_timeout_ms(tasks), here)
        except ServingError as error:
            raise _RunFailed(error) from None
        parts = batch_tensors.split(outputs, sizes, size)
        if not self._padded.outputs:
            return parts
        return [
            batch_padding.cut_back(
                dict(zip(fetches, part, strict=True)), request, feeds, self._padded.outputs
            )
            for part, request in zip(parts, requests, strict=True)
        ]


class _RunFailed(Exception):
    def __init__(self, error: ServingError):
        super().__init__(str(error))
        self.error = error


def _run(
    servable: Servable,
    feeds: Mapping[str, np.ndarray],
    fetches: Sequence[str],
    timeout_ms: int,
    here: bool,
) -> list[np.ndarray]:
    if here:
        return servable.run_here(feeds, fetches)
    return servable.run(feeds, fetches, timeout_ms)


def _internal(error: Exception) -> ServingError:
    return ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")


def _longest_timeout_ms(tasks: Sequence[Task]) -> int:
    """Returns how long the last of the tasks can wait; 0 where one can wait for ever."""
    deadlines = [task.deadline for task in tasks]
    return 0 if None in deadlines else timeout_ms(max(deadlines))


def _waiting(queue: weakref.ref[Queue]) -> int:
    """Returns how many batches wait in a queue, which goes with its version."""
    found = queue()
    return 0 if found is None else len(found)


def _signature_of(
    signatures: Mapping[str, SignatureDef], inputs: Sequence[str], outputs: Sequence[str]
) -> str:
    """Returns the name of a signature with these tensors; nothing where they are of several."""
    for name, signature in sorted(signatures.items()):
        known = {info.name for info in signature.inputs.values()}
        given = {info.name for info in signature.outputs.values()}
        if known.issuperset(inputs) and given.issuperset(outputs):
            return name
    return ""
