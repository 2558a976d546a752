"""What is counted, under TF Serving's names, and the page that Prometheus reads.

Every metric of the server is an attribute of `Metrics`; nothing is counted anywhere else.
"""

import asyncio
import bisect
import itertools
import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from serving.model_server.errors import Code, ServingError, why_given_up

DEFAULT_PATH = "/monitoring/prometheus/metrics"
Queue = tuple[str, str]  # A model and a signature.
_MOST_CELLS = 10_000  # A label may hold what a caller sent; memory must not grow with it.


def _exponential(scale: float, growth: float, count: int) -> list[float]:
    return [scale * growth**power for power in range(count)]


_MICROSECONDS = _exponential(10, 1.8, 33)
_EXAMPLES = _exponential(1, 2, 15)
_ROWS = _exponential(2 / 3, 2, 15)
_BATCH_ROWS = _exponential(1, 1.5, 20)
_DELAYS = _exponential(1, 2, 27)


class Counter:
    """A sum for every combination of label values."""

    kind = "counter"

    def __init__(self, name: str, *labels: str):
        self.name = name
        self._labels = labels
        self._cells: dict[tuple[str, ...], Any] = {}
        self._lock = threading.Lock()

    def add(self, *values: str, by: int = 1) -> None:
        """Adds `by` to the cell of these label values."""
        with self._lock:
            if values in self._cells or len(self._cells) < _MOST_CELLS:
                self._cells[values] = self._cells.get(values, 0) + by

    def forget(self, *values: str) -> None:
        """Drops the cells whose labels begin with these values."""
        with self._lock:
            self._cells = _without(self._cells, values)

    def total(self) -> int:
        """Returns the sum over all cells."""
        with self._lock:
            return sum(map(_now, self._cells.values()))

    def lines(self, name: str) -> Iterator[str]:
        """Yields the lines of the page."""
        with self._lock:
            cells = sorted(self._cells.items(), key=lambda cell: cell[0])
        for values, count in cells:
            yield f"{name}{{{','.join(_pairs(self._labels, values))}}} {_now(count)}"


class Gauge(Counter):
    """A present value for every combination of label values."""

    kind = "gauge"

    def set(self, *values: str, to: int | Callable[[], int]) -> None:
        """Puts `to`, or what it returns whenever it is asked, in the cell of these label values."""
        with self._lock:
            if values in self._cells or len(self._cells) < _MOST_CELLS:
                self._cells[values] = to


class Histogram:
    """A distribution for every combination of label values."""

    kind = "histogram"

    def __init__(self, name: str, *labels: str, limits: list[float] = _MICROSECONDS):
        self.name = name
        self._labels = labels
        self._limits = limits
        self._cells: dict[tuple[str, ...], tuple[list[int], list[float]]] = {}
        self._lock = threading.Lock()

    def add(self, *values: str, amount: float) -> None:
        """Adds `amount` to the cell of these label values."""
        bucket = bisect.bisect_right(self._limits, amount)
        with self._lock:
            if values not in self._cells:
                if len(self._cells) >= _MOST_CELLS:
                    return
                self._cells[values] = ([0] * (len(self._limits) + 1), [0.0])
            counts, total = self._cells[values]
            counts[bucket] += 1
            total[0] += amount

    def forget(self, *values: str) -> None:
        """Drops the cells whose labels begin with these values."""
        with self._lock:
            self._cells = _without(self._cells, values)

    def total(self) -> int:
        """Returns how many amounts there were, over all cells."""
        with self._lock:
            return sum(sum(counts) for counts, _ in self._cells.values())

    def lines(self, name: str) -> Iterator[str]:
        """Yields the lines of the page."""
        with self._lock:
            cells = [(v, list(counts), total[0]) for v, (counts, total) in self._cells.items()]
        limits = [*(f"{limit:g}" for limit in self._limits), "+Inf"]
        for values, counts, total in sorted(cells):
            pairs = _pairs(self._labels, values)
            sums = list(itertools.accumulate(counts))
            for limit, count in zip(limits, sums, strict=True):
                yield f"{name}_bucket{{{','.join([*pairs, _pair('le', limit)])}}} {count}"
            yield f"{name}_sum{{{','.join(pairs)}}} {total:g}"
            yield f"{name}_count{{{','.join(pairs)}}} {sums[-1]}"


class Metrics:
    """The metrics of one server.

    TensorFlow also has percentiles (`batching/padding_size` and so on, without `_v2`) and a text
    (`allowed_batch_sizes`), of which TF Serving's page makes zeros, and `costs`, which nothing in
    it measures: these are not here.
    """

    def __init__(self):
        serving = "/tensorflow/serving/"
        self.requests = Counter(f"{serving}request_count", "model_name", "status")
        self.request_latency = Histogram(
            f"{serving}request_latency", "model_name", "API", "entrypoint"
        )
        self.runtime_latency = Histogram(
            f"{serving}runtime_latency", "model_name", "API", "runtime"
        )
        self.example_counts = Histogram(
            f"{serving}request_example_counts", "model", limits=_EXAMPLES
        )
        self.examples = Counter(f"{serving}request_example_count_total", "model")
        self.warmup_latency = Histogram(f"{serving}model_warmup_latency", "model_path", "status")
        self.warmup_records = Counter(f"{serving}model_warmup_records_read", "model_path", "status")
        self.load_attempts = Counter(
            "/tensorflow/cc/saved_model/load_attempt_count", "model_path", "status"
        )
        self.load_latency = Counter("/tensorflow/cc/saved_model/load_latency", "model_path")
        self.mlmd_map = Gauge(f"{serving}mlmd_map", "model_name", "version", "uuid")
        self.request_logs = Counter(f"{serving}request_log_count", "model_name", "status_code")
        signature = ("model_name", "version", "signature_name", "API")
        self.signature_requests = Counter(
            "/transduce/serving/signature_request_count", *signature, "status"
        )
        self.signature_latency = Histogram("/transduce/serving/signature_latency", *signature)
        self.runs = Counter("/tensorflow/core/direct_session_runs")
        session, batching = f"{serving}batching_session/", f"{serving}batching/"
        self.queuing_latency = Histogram(f"{session}queuing_latency", "thread_pool_name")
        self.batches = Counter(f"{session}wrapped_run_count")
        queue = "model_name", "op_name"  # The operation is the signature here.
        self.input_rows = Histogram(f"{batching}input_batch_size_v2", *queue, limits=_ROWS)
        self.batch_rows = Histogram(f"{batching}batch_size", *queue, limits=_BATCH_ROWS)
        self.batch_sizes = Counter(f"{batching}processed_batch_size_v2", *queue, "batch_size")
        self.batch_padding = Histogram(
            f"{batching}padding_size_v2",
            *("model_name", "execution_batch_size", "op_name"),
            limits=[-2 / 3, *_exponential(2 / 3, 2, 16)],
        )
        self.batch_delay = Histogram(
            f"{batching}batch_delay_us_v2", *queue, "processed_batch_size", limits=_DELAYS
        )
        self.batch_timeout = Gauge(f"{batching}batch_timeout_micros", *queue)
        self.largest_batch = Gauge(f"{batching}max_batch_size", *queue)
        self.most_batches = Gauge(f"{batching}max_enqueued_batches", *queue)
        self.batch_threads = Gauge(f"{batching}num_batch_threads", *queue)
        self.batch_splitting = Gauge(f"{batching}enable_large_batch_splitting", *queue)
        self.waiting_batches = Gauge("/transduce/serving/waiting_batches", *queue)
        self.sequences = Gauge("/transduce/serving/sequences", "model_name")

    @contextmanager
    def request(self, model: str, api: str, entrypoint: str) -> Iterator[None]:
        """Counts one request by how it ends, and how long it takes where it ends well."""
        start = time.perf_counter()
        try:
            yield
        except ServingError as error:
            self.requests.add(model, error.code.name)
            raise
        except asyncio.CancelledError as error:
            self.requests.add(model, why_given_up(error).name)
            raise
        except Exception:
            self.requests.add(model, Code.INTERNAL.name)
            raise
        self.request_latency.add(model, api, entrypoint, amount=_microseconds(start))
        self.requests.add(model, Code.OK.name)

    @contextmanager
    def runtime(self, model: str, version: int, signature: str, api: str) -> Iterator[None]:
        """Counts one run of a graph by how it ends, and how long it takes where it ends well."""
        start = time.perf_counter()
        labels = (model, str(version), signature, api)
        try:
            yield
        except ServingError as error:
            self.signature_requests.add(*labels, error.code.name)
            raise
        except asyncio.CancelledError as error:
            self.signature_requests.add(*labels, why_given_up(error).name)
            raise
        took = _microseconds(start)
        self.runtime_latency.add(model, api, "TF1", amount=took)
        self.signature_latency.add(*labels, amount=took)
        self.signature_requests.add(*labels, Code.OK.name)

    def forget(self, model: str, version: int) -> None:
        """Drops what is counted of a version, which has gone."""
        for metric in (self.signature_requests, self.signature_latency, self.mlmd_map):
            metric.forget(model, str(version))

    @contextmanager
    def load(self, path: str) -> Iterator[None]:
        """Counts one attempt to load a version, and how long it takes where it ends well."""
        start = time.perf_counter()
        try:
            yield
        except Exception:
            self.load_attempts.add(path, "fail")
            raise
        self.load_attempts.add(path, "success")
        self.load_latency.add(path, by=round(_microseconds(start)))

    def given_examples(self, model: str, count: int) -> None:
        """Counts the `tf.Example`s of one request."""
        self.example_counts.add(model, amount=count)
        self.examples.add(model, by=count)

    def queue(
        self,
        queue: Queue,
        timeout: float,
        largest: int,
        most: int,
        threads: int,
        splits: bool,
        waiting: Callable[[], int],
    ) -> None:
        """Tells how a queue is set up, and from now on how many batches wait in it.

        Args:
            queue: Which.
            timeout: Seconds that a batch waits for more.
            largest: Rows of a batch at most.
            most: Batches that may wait.
            threads: How many run batches, those of other queues as well.
            splits: Whether a request may be longer than a batch.
            waiting: Returns how many batches wait.
        """
        self.batch_timeout.set(*queue, to=round(timeout * 1e6))
        self.largest_batch.set(*queue, to=largest)
        self.most_batches.set(*queue, to=most)
        self.batch_threads.set(*queue, to=threads)
        self.batch_splitting.set(*queue, to=int(splits))
        self.waiting_batches.set(*queue, to=waiting)

    def queued(self, pool: str, queue: Queue, rows: int, seconds: float) -> None:
        """Counts one request that has waited for its batch."""
        self.queuing_latency.add(pool, amount=seconds * 1e6)
        self.input_rows.add(*queue, amount=rows)

    def batch(self, queue: Queue, rows: int, size: int, seconds: float) -> None:
        """Counts one batch of `rows` rows, filled up to `size`, whose oldest waited so long."""
        self.batches.add()
        self.batch_rows.add(*queue, amount=rows)
        self.batch_sizes.add(*queue, str(size))
        self.batch_padding.add(queue[0], str(size), queue[1], amount=size - rows)
        self.batch_delay.add(*queue, str(size), amount=seconds * 1e6)

    def total(self, name: str) -> int:
        """Returns the sum of the metric of this name; 0 where there is none."""
        return sum(each.total() for each in self._all() if name in (each.name, _page_name(each)))

    def page(self) -> str:
        """Returns all metrics as Prometheus reads them."""
        lines = []
        for metric in self._all():
            name = _page_name(metric)
            lines += [f"# TYPE {name} {metric.kind}", *metric.lines(name)]
        return "\n".join(lines) + "\n"

    def _all(self) -> list[Counter | Histogram]:
        return sorted(vars(self).values(), key=lambda metric: metric.name)


def _now(count: int | Callable[[], int]) -> int:
    return count() if callable(count) else count


def _without(cells: dict[tuple[str, ...], Any], values: tuple[str, ...]) -> dict:
    return {key: cell for key, cell in cells.items() if key[: len(values)] != values}


def _microseconds(start: float) -> float:
    return (time.perf_counter() - start) * 1e6


def _page_name(metric: Counter | Histogram) -> str:
    return re.sub("[^a-zA-Z0-9_]", ":", metric.name)


def _pairs(names: tuple[str, ...], values: tuple[str, ...]) -> list[str]:
    return [_pair(name, value) for name, value in zip(names, values, strict=True)]


def _pair(name: str, value: str) -> str:
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'{name}="{escaped}"'
