"""Batches: what shares one, what comes back, and what happens where it goes wrong."""

import asyncio
import http.client
import json
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.model_server import batch_parameters, batch_tensors, calls, protos
from serving.model_server.batch_parameters import Parameters
from serving.model_server.batch_scheduler import Queue, Scheduler, _Crowd
from serving.model_server.batching import BatchedServable, Batching, Line
from serving.model_server.calls import USUAL, Call
from serving.model_server.errors import ServingError, invalid
from serving.model_server.flags import Options
from serving.model_server.loader import Loader
from serving.model_server.metrics import Metrics
from serving.model_server.server import Server
from serving.model_server.tasks import Mailbox, Task, deliver


class Graph:
    """y = x + 1; it fails at negative numbers, and waits until it is let go on."""

    bounded = False

    def __init__(self):
        self.signatures = {}
        self.go_on = threading.Event()
        self.go_on.set()
        self.begun = threading.Semaphore(0)
        self.seen = []
        self.closed = False

    def run(self, feeds, fetches, timeout_ms=0):
        x = feeds["x"]
        self.seen.append((x.tolist(), timeout_ms))
        self.begun.release()
        assert self.go_on.wait(20)
        if x.dtype != object and (x < 0).any():
            raise invalid("negative")
        answers = {"y": x if x.dtype == object else x + 1, "sum": x.sum(), "first": x[:1]}
        return [np.asarray(answers[name]) for name in fetches]

    def close(self):
        self.closed = True

    @property
    def batches(self):
        return [x for x, _ in self.seen]


@pytest.fixture
def graph():
    return Graph()


@pytest.fixture
def metrics():
    return Metrics()


@pytest.fixture
def batched(graph, metrics):
    """Makes a batcher before the graph, with one thread."""
    scheduler = Scheduler(1, "threads")

    def make(**parameters):
        return BatchedServable(graph, Parameters(**parameters), scheduler, metrics)

    yield make
    graph.go_on.set()
    scheduler.close()


class Ask:
    """A request in a thread of its own."""

    def __init__(self, servable, x, fetch="y", **call):
        self._answer = None
        self._thread = threading.Thread(target=self._run, args=[servable, x, fetch, call])
        self._thread.start()

    def _run(self, servable, x, fetch, call):
        try:
            (y,) = servable.run({"x": np.asarray(x)}, [fetch], Call(**call))
            self._answer = y.tolist()
        except ServingError as error:
            self._answer = str(error)

    @property
    def alive(self):
        return self._thread.is_alive()

    @property
    def answer(self):
        self._thread.join(20)
        return self._answer


def waiting(servable):
    """Returns how many requests wait in the queues of a batcher."""
    queues = list(servable._queues.values())
    batches = [batch for queue in queues for batch in [*queue._open.values(), *queue._closed]]
    return sum(len(batch.tasks) for batch in batches)


def together(graph, servable, *requests, **how):
    """Returns the answers to requests that come while the graph is busy with another."""
    graph.go_on.clear()
    busy = Ask(servable, [0.0])
    assert graph.begun.acquire(timeout=20)
    asked = []
    for request in requests:
        before = waiting(servable)
        asked.append(Ask(servable, request, **how))
        while waiting(servable) == before and asked[-1].alive:
            time.sleep(0.001)
    graph.go_on.set()
    assert busy.answer == [1]
    return [each.answer for each in asked]


def test_what_comes_while_the_graph_is_busy_shares_a_batch(graph, batched, metrics):
    answers = together(graph, batched(), [1.0], [2.0, 3.0], [4.0])
    assert answers == [[2], [3, 4], [5]]
    assert graph.batches == [[0], [1, 2, 3, 4]]
    assert metrics.batches.total() == 2
    assert metrics.queuing_latency.total() == 4
    assert ':batch_size_sum{model_name="",op_name=""} 5' in metrics.page()


def test_a_lone_request_waits_for_others_as_long_as_told(graph, batched):
    servable = batched(timeout=1, largest_batch=3)
    start = time.monotonic()
    first, second = Ask(servable, [1.0]), Ask(servable, [2.0])
    assert [first.answer, second.answer] == [[2], [3]]
    assert time.monotonic() - start > 0.99
    assert len(graph.batches) == 1


def test_a_full_batch_does_not_wait(graph, batched):
    servable = batched(timeout=30, largest_batch=2)
    first, second = Ask(servable, [1.0]), Ask(servable, [2.0])
    assert [first.answer, second.answer] == [[2], [3]]


def test_a_batch_into_which_the_next_does_not_fit_does_not_wait(graph, batched):
    servable = batched(timeout=30, largest_request=3, largest_batch=3)
    first = Ask(servable, [1.0, 2.0])
    time.sleep(0.1)
    second = Ask(servable, [3.0, 4.0, 5.0])
    assert [first.answer, second.answer] == [[2, 3], [4, 5, 6]]


def test_a_batch_is_filled_up_to_an_allowed_size_with_the_last_requests_first_row(graph, batched):
    servable = batched(allowed_sizes=(1, 4, 8), largest_batch=8)
    assert together(graph, servable, [1.0], [2.0, 3.0]) == [[2], [3, 4]]
    assert graph.batches[1] == [1, 2, 3, 2]


def test_requests_of_other_shapes_and_types_do_not_share_a_batch(graph, batched):
    requests = [[1.0]], [[1.0, 2.0]], [[2.0]], [1], [[b"a"]]
    answers = together(graph, batched(), *map(_array, requests))
    assert answers == [[[2]], [[2, 3]], [[3]], [2], [[b"a"]]]
    assert graph.batches[1:] == [[[1], [2]], [[1, 2]], [1], [[b"a"]]]


def _array(value):
    array = np.asarray(value)
    return array.astype(object) if array.dtype.kind == "S" else array


def test_where_told_shorter_inputs_are_lengthened_with_their_own_first_element(graph, batched):
    requests = [[5.0]], [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]
    answers = together(graph, batched(pad=True), *requests)
    assert graph.batches[1] == [[5, 5, 5], [1, 2, 3], [4, 5, 6]]
    assert answers == [[[6, 6, 6]], [[2, 3, 4], [5, 6, 7]]]


def test_an_empty_input_cannot_be_lengthened_and_runs_alone(graph, batched):
    answers = together(graph, batched(pad=True), np.zeros([1, 0]), [[1.0]])
    assert answers == [[[]], [[2]]]


def test_other_outputs_have_a_queue_of_their_own(graph, batched):
    servable = batched()
    graph.go_on.clear()
    busy = Ask(servable, [0.0])
    assert graph.begun.acquire(timeout=20)
    asked = [Ask(servable, [1.0], fetch) for fetch in ("y", "first", "y")]
    while waiting(servable) < 3:
        time.sleep(0.001)
    graph.go_on.set()
    assert [each.answer for each in (busy, *asked)] == [[1], [2], [1], [2]]
    assert sorted(graph.batches) == [[0], [1], [1, 1]]


def test_a_bad_row_fails_alone(graph, batched):
    answers = together(graph, batched(), [1.0], [-1.0], [2.0])
    assert answers == [[2], "INVALID_ARGUMENT: negative", [3]]


def test_to_find_one_bad_row_among_many_takes_few_runs(graph, batched):
    requests = [[float(number)] for number in (1, 2, 3, 4, 5, 6, -7, 8)]
    answers = together(graph, batched(), *requests)
    assert answers == [[2], [3], [4], [5], [6], [7], "INVALID_ARGUMENT: negative", [9]]
    assert [len(x) for x in graph.batches] == [1, 8, 4, 4, 2, 2, 1, 1]


def test_a_long_request_is_cut_where_told(graph, batched):
    servable = batched(largest_request=5, largest_batch=2)
    assert Ask(servable, [1.0, 2, 3, 4, 5]).answer == [2, 3, 4, 5, 6]
    assert sorted(graph.batches) == [[1, 2], [3, 4], [5]]


def test_no_rows_are_no_batch(graph, batched):
    assert Ask(batched(timeout=30), np.zeros([0])).answer == []


@pytest.mark.parametrize(
    ("feeds", "fetch", "error"),
    [
        ({}, "y", "INVALID_ARGUMENT: Batching Run() must have at least one input tensor"),
        (
            {"x": np.float32(1)},
            "y",
            "INVALID_ARGUMENT: Batching Run() input tensors must have at least one dimension",
        ),
        (
            {"x": np.zeros([2]), "z": np.zeros([3])},
            "y",
            "INVALID_ARGUMENT: Batching Run() input tensors must have equal 0th-dimension size",
        ),
        (
            {"x": np.zeros([9])},
            "y",
            "INVALID_ARGUMENT: Task size 9 is larger than maximum input batch size 8",
        ),
        (
            {"x": np.zeros([2])},
            "sum",
            "FAILED_PRECONDITION: Batched output tensor has 0 dimensions",
        ),
        (
            {"x": np.zeros([2])},
            "first",
            "FAILED_PRECONDITION: Batched output tensor's 0th dimension does not equal the sum of "
            "the 0th dimension sizes of the input tensors",
        ),
    ],
    ids=range(6),
)
def test_what_cannot_be_batched_fails_as_in_tensorflow_serving(batched, feeds, fetch, error):
    servable = batched(largest_request=8, largest_batch=8)
    with pytest.raises(ServingError) as raised:
        servable.run(feeds, [fetch], Call())
    assert str(raised.value) == error


def test_a_full_queue_refuses(graph, batched):
    servable = batched(largest_request=1, largest_batch=1, most_batches=2)
    answers = together(graph, servable, [1.0], [2.0], [3.0])
    assert answers == [
        [2],
        [3],
        "UNAVAILABLE: The batch scheduling queue to which this task was submitted is full; "
        "currently 2 batches enqueued and max_enqueued_batches is 2",
    ]


def test_a_full_queue_tells_when_there_may_be_room(graph, batched):
    graph.go_on.clear()
    servable = batched(largest_request=1, largest_batch=1, most_batches=1, timeout=0.25)
    asked = [Ask(servable, [1.0])]
    assert graph.begun.acquire(timeout=20)
    asked.append(Ask(servable, [1.0]))
    while not waiting(servable):
        time.sleep(0.001)
    with pytest.raises(ServingError) as raised:
        servable.run({"x": np.zeros([1])}, ["y"], Call())
    assert raised.value.retry_after == 0.25
    graph.go_on.set()
    assert [each.answer for each in asked] == [[2], [2]]


def test_the_most_urgent_go_first_and_others_in_their_order(graph, batched):
    servable = batched(largest_request=1, largest_batch=1)
    graph.go_on.clear()
    asked = [Ask(servable, [0.0])]
    assert graph.begun.acquire(timeout=20)
    for number, urgency in enumerate([3, 7, 0, 3, 0], start=1):
        asked.append(Ask(servable, [float(number)], urgency=urgency))
        while waiting(servable) < number:
            time.sleep(0.001)
    graph.go_on.set()
    assert [each.answer for each in asked] == [[number + 1] for number in range(6)]
    assert graph.batches == [[0], [3], [5], [1], [4], [2]]


def test_what_is_less_urgent_does_not_take_the_room_of_what_is_more(graph, batched):
    servable = batched(largest_request=1, largest_batch=1, most_batches=1)
    graph.go_on.clear()
    asked = [Ask(servable, [0.0])]
    assert graph.begun.acquire(timeout=20)
    asked.append(Ask(servable, [1.0], urgency=3))
    while not waiting(servable):
        time.sleep(0.001)
    asked.append(Ask(servable, [2.0], urgency=1))
    while waiting(servable) < 2:
        time.sleep(0.001)
    for urgency in (1, 3, 5):
        assert Ask(servable, [3.0], urgency=urgency).answer.startswith("UNAVAILABLE")
    graph.go_on.set()
    assert [each.answer for each in asked] == [[1], [2], [3]]


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ("u=0", 0),
        ("i, u=7", 7),
        ("u=5, i", 5),
        ("", 3),
        ("u=8", 3),
        ("u=-1", 3),
        ("u=", 3),
        ("urgent", 3),
    ],
)
def test_urgency_is_read_as_in_rfc_9218(header, expected):
    assert calls.urgency(header) == expected


def test_a_cancelled_request_leaves_the_queue_and_is_not_run(graph, batched):
    servable = batched()
    graph.go_on.clear()
    busy = Ask(servable, [0.0])
    assert graph.begun.acquire(timeout=20)

    async def ask():
        call = Call(mailbox=Mailbox())
        asked = [asyncio.ensure_future(call.run(servable, feed(x), ["y"])) for x in (1.0, 2.0)]
        while waiting(servable) < 2:
            await asyncio.sleep(0.001)
        asked[0].cancel()
        while waiting(servable) > 1:
            await asyncio.sleep(0.001)
        graph.go_on.set()
        return await asyncio.gather(*asked, return_exceptions=True)

    cancelled, (answer,) = asyncio.run(ask())
    assert isinstance(cancelled, asyncio.CancelledError)
    assert (busy.answer, answer.tolist()) == ([1], [3])
    assert graph.batches == [[0], [2]]


def feed(*values):
    return {"x": np.array(values)}


def test_an_event_loop_asks_for_all_that_it_has_at_once(graph, batched):
    servable = batched()

    async def ask():
        call = Call(mailbox=Mailbox())
        return await asyncio.gather(
            *(call.run(servable, feed(float(number)), ["y"]) for number in range(50))
        )

    assert [y.tolist() for (y,) in asyncio.run(ask())] == [[number + 1] for number in range(50)]
    assert graph.batches == [list(range(50))]


class QuickGraph(Graph):
    """Ends soon whatever is asked, if it need not wait; notes which thread runs it."""

    bounded = True

    def __init__(self):
        super().__init__()
        self.threads = []
        self.seconds, self.spend = 0.0, time.sleep

    def run_here(self, feeds, fetches):
        return self.run(feeds, fetches)

    def run(self, feeds, fetches, timeout_ms=0):
        self.spend(self.seconds)
        self.threads.append(threading.current_thread())
        return super().run(feeds, fetches, timeout_ms)


@pytest.fixture
def quick():
    return QuickGraph()


@pytest.mark.parametrize("batching", [True, False])
def test_an_event_loop_runs_what_has_been_quick_itself(quick, metrics, batching):
    scheduler = Scheduler(1, "threads")
    servable = Line(quick, scheduler)
    if batching:
        servable = BatchedServable(quick, Parameters(), scheduler, metrics)

    async def ask(count):
        for number in range(count):
            (y,) = await Call(mailbox=Mailbox()).run(servable, feed(float(number)), ["y"])
            assert y.tolist() == [number + 1]

    asyncio.run(ask(40))
    assert threading.current_thread() not in quick.threads[:16]
    assert threading.current_thread() in quick.threads[16:]
    scheduler.close()


def work(seconds):
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


@pytest.mark.parametrize(("spend", "runs"), [(time.sleep, 50), (work, 1000)])
def test_a_run_that_stalls_an_event_loop_keeps_others_out_longer_where_it_works_than_waits(
    quick, spend, runs
):
    scheduler = Scheduler(1, "threads")
    servable = Line(quick, scheduler)

    async def ask():
        await Call(mailbox=Mailbox()).run(servable, feed(1.0), ["y"])
        return quick.threads[-1] is threading.current_thread()

    async def stall():
        while not servable._queue.quick:
            await ask()
        quick.seconds, quick.spend = 0.05, spend
        assert await ask()
        quick.seconds = 0.0
        return [await ask() for _ in range(runs + 2)].index(True)

    assert asyncio.run(stall()) in (runs, runs + 1), "a thread notes a run after it has answered"
    scheduler.close()


def test_an_event_loop_runs_nothing_that_takes_long_or_may(graph, quick, metrics):
    scheduler = Scheduler(1, "threads")
    quick.seconds = 0.001
    threads = set()

    async def ask(servable):
        for _ in range(40):
            await Call(mailbox=Mailbox()).run(servable, feed(1.0), ["y"])

    of_graph = graph.run

    def noted(*args):
        threads.add(threading.current_thread())
        return of_graph(*args)

    graph.run = noted
    for each in (graph, quick):
        asyncio.run(ask(BatchedServable(each, Parameters(), scheduler, metrics)))
    assert threading.current_thread() not in threads
    assert threading.current_thread() not in quick.threads
    scheduler.close()


def test_requests_that_come_one_by_one_but_fast_wait_for_one_another(quick, metrics):
    scheduler = Scheduler(1, "threads", gathers=True)
    servable = BatchedServable(quick, Parameters(), scheduler, metrics)

    async def ask():
        call, asked = Call(mailbox=Mailbox()), []
        for number in range(400):
            asked.append(asyncio.ensure_future(call.run(servable, feed(float(number)), ["y"])))
            for _ in range(3):  # As a gRPC server does it, which has other things to do.
                await asyncio.sleep(0)
        return [y.tolist() for (y,) in await asyncio.gather(*asked)]

    assert asyncio.run(ask()) == [[number + 1] for number in range(400)]
    assert len(quick.batches) < 200
    scheduler.close()


def test_a_lone_client_waits_for_nobody():
    crowd = _Crowd()
    waited = 0
    for number in range(1000):
        now = number * 0.0005
        crowd.add(now)
        waited += crowd.may_grow(now)
        crowd.end()
    assert waited < 1000 / 10


@pytest.mark.parametrize(
    ("model", "bounded"), [("half_plus", True), ("words", True), ("slow", False)]
)
def test_a_graph_with_a_loop_may_take_any_time(model_root, metrics, model, bounded):
    loader = Loader(Options(), metrics, Batching(Options(), metrics))
    servable = loader._session(str(next((model_root / model).glob("[1-9]"))))
    assert servable.bounded is bounded
    servable.close()


def test_a_run_in_this_thread_gives_the_same(model_root, metrics):
    loader = Loader(Options(), metrics, Batching(Options(), metrics))
    servable = loader._session(str(model_root / "half_plus/2"))
    signature = servable.signatures["serving_default"]
    feeds = {signature.inputs["x"].name: np.array([1, 2], np.float32)}
    fetches = [signature.outputs["y"].name]
    (first,), (second,) = servable.run(feeds, fetches), servable.run_here(feeds, fetches)
    assert first.tolist() == second.tolist() == [3.5, 4]
    servable.close()


def test_a_piece_that_fails_takes_the_others_along(graph, batched):
    servable = batched(largest_request=3, largest_batch=1, most_batches=2)

    async def ask():
        with pytest.raises(ServingError, match="queue to which this task was submitted is full"):
            await Call(mailbox=Mailbox()).run(servable, feed(1.0, 2.0, 3.0), ["y"])

    asyncio.run(ask())
    assert not waiting(servable)
    assert graph.batches == []


def test_two_versions_never_share_a_batch(metrics):
    scheduler = Scheduler(1, "threads")
    graphs = Graph(), Graph()
    versions = [BatchedServable(graph, Parameters(), scheduler, metrics) for graph in graphs]

    async def ask():
        call = Call(mailbox=Mailbox())
        asked = [call.run(versions[n % 2], feed(float(n)), ["y"]) for n in range(20)]
        return await asyncio.gather(*asked)

    assert [y.tolist() for (y,) in asyncio.run(ask())] == [[n + 1] for n in range(20)]
    assert [graph.batches for graph in graphs] == [[list(range(n, 20, 2))] for n in (0, 1)]
    scheduler.close()


EXPIRED = "RESOURCE_EXHAUSTED: Run() timeout exceeded while waiting in batching queue"


def test_a_request_that_waited_too_long_leaves_the_queue(graph, batched):
    graph.go_on.clear()
    servable = batched()
    busy = Ask(servable, [0.0])
    assert graph.begun.acquire(timeout=20)
    late, patient = Ask(servable, [1.0], timeout_ms=50), Ask(servable, [2.0])
    assert late.answer == EXPIRED
    graph.go_on.set()
    assert [busy.answer, patient.answer] == [[1], [3]]
    assert graph.batches[1] == [2]


def test_a_batch_has_the_time_of_its_most_patient_task(graph, batched):
    servable = batched(timeout=30, largest_batch=2)
    asked = [Ask(servable, [1.0], timeout_ms=timeout) for timeout in (20_000, 40_000)]
    assert [each.answer for each in asked] == [[2], [2]]
    ((_, timeout),) = graph.seen
    assert 20_000 < timeout < 40_000


def test_a_request_whose_batch_takes_too_long_is_told(graph, batched):
    graph.go_on.clear()
    asked = Ask(batched(), [1.0], timeout_ms=50)
    assert asked.answer == "DEADLINE_EXCEEDED: Timed out waiting for notification"


def test_closing_waits_for_the_batches_under_way(graph, batched):
    servable = batched()
    graph.go_on.clear()
    asked = Ask(servable, [1.0], timeout_ms=50)
    assert asked.answer.startswith("DEADLINE_EXCEEDED")
    closing = threading.Thread(target=servable.close)
    closing.start()
    time.sleep(0.05)
    assert not graph.closed
    graph.go_on.set()
    closing.join(20)
    assert graph.closed


def test_threads_begin_when_needed_and_end_with_their_scheduler(graph, metrics):
    def threads():
        return sum("beginners" in thread.name for thread in threading.enumerate())

    scheduler = Scheduler(3, "beginners")
    graph.go_on.clear()
    queue = Queue(
        lambda tasks, here: deliver([task.succeed(graph.go_on.wait(20)) for task in tasks])
    )
    tasks = [Task(None, 1, None, None, USUAL) for _ in range(5)]
    for count, task in enumerate(tasks):
        assert threads() == min(count, 3)
        with scheduler.submitted(queue, [task]):
            pass
    graph.go_on.set()
    assert [scheduler.result(queue, task, Call()) for task in tasks] == [True] * 5
    scheduler.close()
    assert threads() == 0


def test_tensors_of_rank_seven_cannot_be_lengthened():
    requests = [{"x": np.zeros([1] * 6 + [size])} for size in (1, 2)]
    with pytest.raises(ServingError, match="Only tensors with rank from 1 to 6 can be padded"):
        batch_tensors.merge(requests, 2, pad=True, paddings={})


def options_with(tmp_path, text):
    file = tmp_path / "batching.config"
    file.write_text(text)
    return Options(enable_batching=True, batching_parameters_file=str(file))


def test_the_parameters_are_read(tmp_path):
    text = """
        max_batch_size { value: 8 } batch_timeout_micros { value: 2000 }
        max_enqueued_batches { value: 3 } num_batch_threads { value: 5 }
        thread_pool_name { value: "pool" } allowed_batch_sizes: [2, 8]
        pad_variable_length_inputs: true
    """
    parameters, pool = batch_parameters.of_server(options_with(tmp_path, text))
    assert parameters == Parameters(8, 8, 0.002, 3, (2, 8), True)
    assert pool == (5, "pool")


def test_without_a_file_the_parameters_are_those_of_tensorflow_serving():
    parameters, pool = batch_parameters.of_server(Options(enable_batching=True))
    assert parameters == Parameters(1000, 1000, 0, 10, (), False)
    assert pool.name == "model_server_batch_threads"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: [2, 4]",
            "Last entry in allowed_batch_sizes must match max_batch_size; last entry was 4; "
            "expected 8",
        ),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: 8 "
            "enable_large_batch_splitting { value: true } max_execution_batch_size { value: 4 }",
            "Last entry in allowed_batch_sizes must be equal to max_execution_batch_size; last "
            "entry was 8; expected 4",
        ),
        (
            "max_batch_size { value: 8 } allowed_batch_sizes: [4, 2, 8]",
            "Entries of allowed_batch_sizes must rise. Received: [4, 2, 8]",
        ),
        ("max_batch_size { value: 0 }", "Sizes and numbers of batches must be positive"),
        ("batch_size { value: 0 }", "Invalid protobuf file: "),
    ],
    ids=range(5),
)
def test_bad_parameters_are_refused(tmp_path, text, message):
    with pytest.raises(ServingError) as raised:
        batch_parameters.of_server(options_with(tmp_path, text))
    assert str(raised.value).startswith(f"INVALID_ARGUMENT: {message}")


def test_splitting_allows_requests_longer_than_a_batch():
    text = (
        "max_batch_size { value: 8 } enable_large_batch_splitting { value: true } "
        "max_execution_batch_size { value: 4 }"
    )
    message = text_format.Parse(text, protos.BatchingParameters())
    parameters = batch_parameters._parameters(message)
    assert (parameters.largest_request, parameters.largest_batch) == (8, 4)


@pytest.fixture
def serve(model_root, options, free_port):
    """Starts a server of `half_plus` with batching; gives its options."""
    running = []

    def start(**changed):
        chosen = options(
            model_base_path=str(model_root / "half_plus"),
            rest_api_port=free_port(),
            enable_batching=True,
            **changed,
        )
        running.append(Server(chosen))
        running[-1].start()
        return chosen

    yield start
    for server in running:
        server.stop()


def predict(chosen, *values):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "default"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.array(values, np.float32)))
    with grpc.insecure_channel(f"localhost:{chosen.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return list(stub.Predict(request, timeout=20).outputs["y"].float_val)


def test_every_caller_of_a_batching_server_gets_its_own_answer(serve, tmp_path):
    file = tmp_path / "batching.config"
    file.write_text("batch_timeout_micros { value: 50000 } max_batch_size { value: 16 }")
    chosen = serve(batching_parameters_file=str(file))
    answers = {}

    def ask(number):
        answers[number] = predict(chosen, number, -number)

    threads = [threading.Thread(target=ask, args=[number]) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [number / 2 + 3, 3 - number / 2] for number in range(16)}


def ask_rest(chosen, text):
    connection = http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20)
    connection.request("POST", "/v1/models/default:predict", f'{{"inputs": {text}}}')
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


def test_a_scalar_is_refused_over_rest(serve):
    message = "Batching Run() input tensors must have at least one dimension"
    assert ask_rest(serve(), "1") == (400, {"error": message})


def test_full_queues_and_long_waits_have_their_codes(model_root, options, free_port, tmp_path):
    file = tmp_path / "batching.config"
    file.write_text(
        "max_batch_size { value: 2 } max_enqueued_batches { value: 1 } "
        "batch_timeout_micros { value: 30000000 }"
    )
    chosen = options(
        model_base_path=str(model_root / "half_plus"),
        rest_api_port=free_port(),
        rest_api_timeout_in_ms=3000,
        enable_batching=True,
        batching_parameters_file=str(file),
    )
    answers = []
    with Server(chosen) as server:
        first = threading.Thread(target=lambda: answers.append(ask_rest(chosen, "[1]")))
        first.start()
        while not server._batching._batches._waiting:
            time.sleep(0.001)
        with pytest.raises(grpc.RpcError) as raised:
            predict(chosen, 1.0, 2.0)
        connection = http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20)
        connection.request("POST", "/v1/models/default:predict", '{"inputs": [1, 2]}')
        response = connection.getresponse()
        assert (response.status, response.headers["Retry-After"]) == (503, "30")
        connection.close()
        first.join()
    assert raised.value.code() is grpc.StatusCode.UNAVAILABLE
    full = "currently 1 batches enqueued and max_enqueued_batches is 1"
    assert full in raised.value.details()
    assert dict(raised.value.trailing_metadata())["grpc-retry-pushback-ms"] == "30000"
    expired = "Run() timeout exceeded while waiting in batching queue"
    assert answers == [(429, {"error": expired})]


def test_a_rest_caller_that_leaves_takes_its_request_out_of_the_queue(
    model_root, options, free_port, tmp_path
):
    file = tmp_path / "batching.config"
    file.write_text("max_batch_size { value: 2 } batch_timeout_micros { value: 30000000 }")
    chosen = options(
        model_base_path=str(model_root / "half_plus"),
        rest_api_port=free_port(),
        enable_batching=True,
        batching_parameters_file=str(file),
    )
    with Server(chosen) as server:
        connection = http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20)
        connection.request("POST", "/v1/models/default:predict", '{"inputs": [1]}')
        while not server._batching._batches._waiting:
            time.sleep(0.001)
        (queue,) = server._batching._batches._waiting
        connection.close()
        deadline = time.monotonic() + 10
        while len(queue) or 'status="CANCELLED"' not in server._metrics.page():
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert ask_rest(chosen, "[1, 2]") == (200, {"outputs": [3.5, 4.0]})


def test_a_version_without_parameters_of_its_own_is_not_batched(
    serve, model_root, save_half_plus, options, tmp_path
):
    chosen = serve(enable_per_model_batching_parameters=True)
    assert predict(chosen, 2.0) == [4.0]
    save_half_plus(tmp_path / "m/1", 1.0)
    (tmp_path / "m/1/batching_params.pbtxt").write_text("max_batch_size { value: 1 }")
    other = options(
        model_base_path=str(tmp_path / "m"),
        enable_batching=True,
        enable_per_model_batching_parameters=True,
    )
    with Server(other):
        assert predict(other, 2.0) == [2.0]
        with pytest.raises(grpc.RpcError) as raised:
            predict(other, 2.0, 3.0)
    assert raised.value.details() == "Task size 2 is larger than maximum input batch size 1"
