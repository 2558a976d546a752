"""Sequences whose state the server holds, and streams of requests."""

import asyncio
import http.client
import json
import shutil
import time
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from serving.model_server.batching import Batching
from serving.model_server.flags import Options
from serving.model_server.loader import Loader
from serving.model_server.metrics import Metrics
from serving.model_server.server import Server

START, CONTINUE, END = 1, 0, 2


class Sums(tf.Module):
    """Sums what comes, [B, T] a step, and in the end tells the mean, too; fails at NaN."""

    def __init__(self, sizes, factor=1.0):
        self.sizes = tf.TensorSpec(sizes, tf.int32, name="batch_size")
        self.factor = factor

    def signatures(self):
        x = tf.TensorSpec([None, None], tf.float32, name="x")
        total = tf.TensorSpec([None], tf.float32, name="state_total")
        count = tf.TensorSpec([None], tf.int64, name="state_count")

        def start(batch_size):
            rows = tf.reduce_sum(batch_size)
            return {"state_total": tf.zeros([rows]), "state_count": tf.zeros([rows], tf.int64)}

        def step(x, state_total, state_count):
            with tf.control_dependencies([tf.debugging.assert_all_finite(x, "x must be finite")]):
                total = state_total + self.factor * tf.reduce_sum(x, 1)
            count = state_count + tf.shape(x, tf.int64)[1]
            return {"sum": total, "rows": tf.fill([tf.shape(x)[0]], tf.shape(x)[0])} | {
                "state_total": total,
                "state_count": count,
            }

        def end(state_total, state_count):
            return {"sum": state_total, "mean": state_total / tf.cast(state_count, tf.float32)}

        return {
            "stream_start": tf.function(start, input_signature=[self.sizes]),
            "stream_step": tf.function(step, input_signature=[x, total, count]),
            "stream_end": tf.function(end, input_signature=[total, count]),
            "serving_default": tf.function(
                lambda x: {"sum": tf.reduce_sum(x, 1)}, input_signature=[x]
            ),
        }


def save(folder, sizes=None, factor=1.0):
    module = Sums(sizes, factor)
    tf.saved_model.save(module, str(folder), signatures=module.signatures())


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    folder = tmp_path_factory.mktemp("streams")
    save(folder / "scalar/1", [])
    save(folder / "ones/1")
    module = tf.Module()
    double = tf.function(
        lambda x: {"y": 2 * x}, input_signature=[tf.TensorSpec([None], tf.float32, name="x")]
    )
    tf.saved_model.save(module, str(folder / "plain/1"), signatures=double)
    return folder


@pytest.fixture(scope="module")
def serve(models, options, free_port):
    """Starts a server of those models; gives a way to ask it."""
    running = []

    def start(**changed):
        chosen = options(**{"model_root": str(models), "rest_api_port": free_port(), **changed})
        running.append(Server(chosen))
        running[-1].start()
        channel = grpc.insecure_channel(f"localhost:{chosen.port}")
        return SimpleNamespace(
            ask=lambda *args, **named: ask(channel, *args, **named),
            stream=lambda *requests: stream(channel, requests),
            address=f"localhost:{chosen.port}",
            rest_port=chosen.rest_api_port,
            sequences=running[-1]._sequences,
            metrics=running[-1]._metrics,
        )

    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="module")
def server(serve):
    return serve()


def request(model="ones", wanted=(), signature="stream_step", version=0, **inputs):
    message = predict_pb2.PredictRequest(output_filter=wanted)
    message.model_spec.name = model
    message.model_spec.signature_name = signature
    if version:
        message.model_spec.version.value = version
    for name, value in inputs.items():
        message.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return message


def held(control=None, number=None):
    """Returns the inputs that stand for the state."""
    inputs = {}
    if control is not None:
        inputs["sequence_control_input"] = np.array([control], np.uint32)
    if number is not None:
        inputs["sequence_id"] = np.array([number], np.uint64)
    return inputs


def x(*values):
    return np.array([values], np.float32)


def decoded(response):
    return {name: tf.make_ndarray(proto).tolist() for name, proto in response.outputs.items()}


def ask(channel, *args, **named):
    method = channel.unary_unary(
        "/tensorflow.serving.PredictionService/Predict",
        predict_pb2.PredictRequest.SerializeToString,
        predict_pb2.PredictResponse.FromString,
    )
    return decoded(method(request(*args, **named), timeout=20))


def stream(channel, requests):
    method = channel.stream_stream(
        "/transduce.serving.StreamingService/PredictStream",
        predict_pb2.PredictRequest.SerializeToString,
        predict_pb2.PredictResponse.FromString,
    )
    return [decoded(response) for response in method(iter(requests), timeout=20)]


def refusal(call, *args, **named):
    with pytest.raises(grpc.RpcError) as raised:
        call(*args, **named)
    return raised.value.code().name, raised.value.details()


MISSING = "NOT_FOUND", "Sequence with provided ID does not exist"


@pytest.mark.parametrize("model", ["ones", "scalar"])
@pytest.mark.parametrize("batching", [False, True])
def test_a_sequence_goes_on_where_it_was(serve, model, batching):
    server = serve(enable_batching=batching)
    assert server.ask(model, x=x(1, 2), **held(START, 7)) == {
        "sum": [3],
        "rows": [1],
        "sequence_id": [7],
    }
    assert server.ask(model, x=x(4), **held(CONTINUE, 7))["sum"] == [7]
    assert server.ask(model, x=x(5), **held(number=7))["sum"] == [12]
    assert server.ask(model, x=x(8), **held(END, 7)) == {
        "sum": [20],
        "mean": [4],
        "rows": [1],
        "sequence_id": [7],
    }
    assert refusal(server.ask, model, x=x(1), **held(CONTINUE, 7)) == MISSING


def test_the_server_chooses_a_number_where_there_is_none(server):
    numbers = [
        server.ask(x=x(n), **held(START, given))["sequence_id"] for n, given in ((1, 0), (2, None))
    ]
    assert numbers[0] != numbers[1]
    for (number,), total in zip(numbers, (11, 12), strict=True):
        assert 0 < number < 2**53
        assert server.ask(x=x(10), **held(END, number))["sum"] == [total]


def test_a_first_request_may_only_begin_and_a_last_one_only_end(server):
    assert server.ask(**held(START, 8)) == {"sequence_id": [8]}
    assert server.ask(x=x(3, 5), **held(CONTINUE, 8))["sum"] == [8]
    assert server.ask(**held(END, 8)) == {"sum": [8], "mean": [4], "sequence_id": [8]}


def test_the_signature_need_not_be_named(server):
    assert server.ask(signature="", x=x(1), **held(START, 9))["sum"] == [1]
    assert server.ask(signature="", x=x(2), **held(END, 9))["sum"] == [3]


def test_the_outputs_wanted_come_alone(server):
    assert server.ask(wanted=["rows"], x=x(1), **held(START, 10)).keys() == {"rows", "sequence_id"}
    assert server.ask(wanted=["sum"], **held(END, 10)).keys() == {"sum", "sequence_id"}


def test_a_sequence_has_as_many_rows_as_its_first_request(server):
    rows = np.array([[1], [2]], np.float32)
    assert server.ask(x=rows, **held(START, 11))["sum"] == [1, 2]
    assert server.ask(x=rows, **held(END, 11))["sum"] == [2, 4]


def test_models_have_numbers_of_their_own(server):
    for model in ("ones", "scalar"):
        assert server.ask(model, x=x(1), **held(START, 12))["sum"] == [1]
    for model in ("ones", "scalar"):
        assert server.ask(model, x=x(1), **held(END, 12))["sum"] == [2]


def test_the_client_may_hold_the_state_as_ever(server):
    state = server.ask(signature="stream_start", batch_size=np.array([1, 1], np.int32))
    assert state == {"state_total": [0, 0], "state_count": [0, 0]}
    answer = server.ask(
        x=np.ones([2, 3], np.float32),
        state_total=np.array([1, 2], np.float32),
        state_count=np.array([5, 5]),
    )
    assert answer["state_total"] == [4, 5]


REFUSALS = [
    (held(CONTINUE, 404), *MISSING),
    (held(END, 404), *MISSING),
    (held(START, 13), "ALREADY_EXISTS", "Sequence with provided ID already exists"),
    (
        held(CONTINUE),
        "INVALID_ARGUMENT",
        "Sequence ID has not been provided in request inputs",
    ),
    (held(END, 0), "INVALID_ARGUMENT", "Sequence ID has not been provided in request inputs"),
    (held(3, 13), "INVALID_ARGUMENT", "Unexpected value of sequence control input"),
    (
        {"sequence_id": np.array([13], np.int64)},
        "INVALID_ARGUMENT",
        "Could not find sequence id in expected tensor proto field uint64_val",
    ),
    (
        {"sequence_control_input": np.array([1], np.int32)},
        "INVALID_ARGUMENT",
        "Could not find sequence control input in expected tensor proto field uint32_val",
    ),
    (
        {"sequence_id": np.uint64(13)},
        "INVALID_ARGUMENT",
        "Special input proto does not contain tensor shape information",
    ),
    (
        {**held(CONTINUE, 13), "state_total": np.zeros([1], np.float32)},
        "INVALID_ARGUMENT",
        "Input state_total must be left out, as the server holds the state",
    ),
]


@pytest.mark.parametrize(("inputs", "code", "message"), REFUSALS, ids=range(len(REFUSALS)))
def test_refusals_are_those_of_openvino_model_server(server, inputs, code, message):
    if not server.sequences._models.get("ones", {}).get(13):
        server.ask(x=x(1), **held(START, 13))
    assert refusal(server.ask, x=x(1), **inputs) == (code, message)
    assert server.ask(x=x(0), **held(CONTINUE, 13))["sum"] == [1]


def test_a_request_that_fails_leaves_its_sequence_as_it_was(server):
    assert refusal(server.ask, x=x(np.nan), **held(START, 14))[0] == "INVALID_ARGUMENT"
    assert refusal(server.ask, x=x(1), **held(CONTINUE, 14)) == MISSING
    server.ask(x=x(1), **held(START, 14))
    assert "finite" in refusal(server.ask, x=x(np.nan), **held(CONTINUE, 14))[1]
    assert "finite" in refusal(server.ask, x=x(np.nan), **held(END, 14))[1]
    assert server.ask(x=x(2), **held(END, 14))["sum"] == [3]


def test_there_are_only_so_many_sequences_of_a_model(serve):
    server = serve(max_sequence_number=2)
    for number in (1, 2):
        server.ask(x=x(1), **held(START, number))
    full = "Max sequence number has been reached. Could not create new sequence."
    assert refusal(server.ask, x=x(1), **held(START, 3)) == ("UNAVAILABLE", full)
    server.ask("scalar", x=x(1), **held(START, 3))
    assert ':transduce:serving:sequences{model_name="ones"} 2' in server.metrics.page()
    server.ask(**held(END, 1))
    server.ask(x=x(1), **held(START, 3))


def test_a_sequence_that_nobody_goes_on_with_is_forgotten(serve):
    server = serve(sequence_idle_seconds=1.0)
    server.ask(x=x(1), **held(START, 1))
    for _ in range(4):
        time.sleep(0.3)
        server.ask(x=x(1), **held(CONTINUE, 1))
    deadline = time.monotonic() + 20
    while server.sequences._models["ones"] and time.monotonic() < deadline:
        time.sleep(0.02)
    assert refusal(server.ask, x=x(1), **held(CONTINUE, 1)) == MISSING


def test_requests_of_one_sequence_take_their_turns(server):
    server.ask(**held(START, 15))

    async def together():
        async with grpc.aio.insecure_channel(server.address) as channel:
            method = channel.unary_unary(
                "/tensorflow.serving.PredictionService/Predict",
                predict_pb2.PredictRequest.SerializeToString,
                predict_pb2.PredictResponse.FromString,
            )
            asked = [
                method(request(x=x(10.0**n), **held(CONTINUE, 15)), timeout=20) for n in range(6)
            ]
            return [decoded(response)["sum"][0] for response in await asyncio.gather(*asked)]

    sums = sorted(asyncio.run(together()))
    assert sums[-1] == 111111
    assert [str(int(total)).count("1") for total in sums] == [1, 2, 3, 4, 5, 6]


def test_sequences_share_batches(serve, tmp_path):
    file = tmp_path / "batching.config"
    file.write_text("max_batch_size { value: 4 } batch_timeout_micros { value: 5000000 }")
    server = serve(enable_batching=True, batching_parameters_file=str(file))

    async def together(*asked):
        async with grpc.aio.insecure_channel(server.address) as channel:
            method = channel.unary_unary(
                "/tensorflow.serving.PredictionService/Predict",
                predict_pb2.PredictRequest.SerializeToString,
                predict_pb2.PredictResponse.FromString,
            )
            responses = await asyncio.gather(*(method(each, timeout=20) for each in asked))
            return [decoded(response) for response in responses]

    numbers = range(1, 5)
    for control, expected in (
        (START, (1, 2, 3, 4)),
        (CONTINUE, (2, 4, 6, 8)),
        (END, (3, 6, 9, 12)),
    ):
        asked = [request(x=x(number), **held(control, number)) for number in numbers]
        answers = asyncio.run(together(*asked))
        assert [answer["sum"][0] for answer in answers] == list(expected)
        assert [answer["rows"] for answer in answers] == [[4]] * 4


def test_a_sequence_stays_with_its_version(serve, tmp_path):
    save(tmp_path / "m/1")
    server = serve(model_root="", model_base_path=str(tmp_path / "m"))
    server.ask("default", x=x(1), **held(START, 1))
    server.ask("default", x=x(1), **held(START, 2))
    save(tmp_path / "new/2", factor=100.0)
    (tmp_path / "new/2").rename(tmp_path / "m/2")
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        code, _ = _outcome(server.ask, "default", version=2, x=x(1), **held(START, 3))
        if code == "OK":
            break
        time.sleep(0.05)
    assert server.ask("default", x=x(1), **held(CONTINUE, 3))["sum"] == [200]
    while _outcome(server.ask, "default", x=x(1), **held(CONTINUE, 1))[0] == "OK":
        time.sleep(0.05)
    assert refusal(server.ask, "default", x=x(1), **held(CONTINUE, 2)) == (
        "NOT_FOUND",
        "Servable not found for request: Specific(default, 1)",
    )
    assert refusal(server.ask, "default", x=x(1), **held(CONTINUE, 2)) == MISSING


def _outcome(call, *args, **named):
    try:
        return "OK", call(*args, **named)
    except grpc.RpcError as error:
        return error.code().name, error.details()


def post(server, document, model="ones"):
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=20)
    connection.request("POST", f"/v1/models/{model}:predict", json.dumps(document))
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


def test_sequences_go_on_over_rest(server):
    first = {"x": [[1, 2]], "sequence_id": [16], "sequence_control_input": [START]}
    status, answer = post(server, {"signature_name": "stream_step", "inputs": first})
    assert (status, answer["outputs"]["sum"], answer["outputs"]["sequence_id"]) == (
        200,
        [3.0],
        [16],
    )
    row = {"x": [4], "sequence_id": 16}
    status, answer = post(server, {"instances": [row]})
    assert (status, answer["predictions"]) == (200, [{"sum": 7.0, "rows": 1, "sequence_id": 16}])
    last = {"sequence_id": [16], "sequence_control_input": [END]}
    status, answer = post(server, {"inputs": last})
    assert (status, answer["outputs"]) == (
        200,
        {"sum": [7.0], "mean": [pytest.approx(7 / 3)], "sequence_id": [16]},
    )
    assert post(server, {"inputs": last}) == (404, {"error": MISSING[1]})


def test_a_stream_of_requests_is_answered_step_by_step_and_once_more_at_its_end(server):
    first, *others = [request(x=x(value)) for value in (1, 2, 6)]
    for other in others:
        other.ClearField("model_spec")
    answers = server.stream(first, *others)
    assert [answer["sum"] for answer in answers] == [[1], [3], [9], [9]]
    assert answers[-1]["mean"] == [3]
    assert len({answer["sequence_id"][0] for answer in answers}) == 1
    assert not any(n == answers[0]["sequence_id"][0] for n in server.sequences._models["ones"])


def test_a_stream_to_a_model_without_steps_is_answered_request_by_request(server):
    requests = [request("plain", signature="", x=np.array([value], np.float32)) for value in (1, 2)]
    assert server.stream(*requests) == [{"y": [2]}, {"y": [4]}]


def test_a_stream_that_fails_says_why_and_is_forgotten(server):
    known = set(server.sequences._models.get("ones", {}))
    code, message = refusal(server.stream, request(x=x(1)), request(x=x(np.nan)))
    assert (code, "x must be finite" in message) == ("INVALID_ARGUMENT", True)
    assert set(server.sequences._models["ones"]) == known
    nameless = predict_pb2.PredictRequest()
    assert refusal(server.stream, nameless) == ("INVALID_ARGUMENT", "Missing ModelSpec")
    code, message = refusal(server.stream, request(x=x(1)), request("scalar", x=x(1)))
    assert (code, message) == (
        "INVALID_ARGUMENT",
        "One call must ask one model, ones. Received: scalar.",
    )


def test_a_stream_that_is_cancelled_is_forgotten(server):
    known = set(server.sequences._models.get("ones", {}))

    async def cancel():
        async with grpc.aio.insecure_channel(server.address) as channel:
            method = channel.stream_stream(
                "/transduce.serving.StreamingService/PredictStream",
                predict_pb2.PredictRequest.SerializeToString,
                predict_pb2.PredictResponse.FromString,
            )
            call = method()
            await call.write(request(x=x(1)))
            assert decoded(await call.read())["sum"] == [1]
            assert set(server.sequences._models["ones"]) > known
            call.cancel()

    asyncio.run(cancel())
    deadline = time.monotonic() + 20
    while set(server.sequences._models["ones"]) != known and time.monotonic() < deadline:
        time.sleep(0.01)
    assert set(server.sequences._models["ones"]) == known


@pytest.fixture
def logged(models, options, tmp_path):
    """Counts by signature and request log of a server that was asked for a sequence."""
    file = tmp_path / "models.config"
    file.write_text(
        f"""model_config_list {{ config {{
            name: "ones" base_path: "{models}/ones" model_platform: "tensorflow"
            logging_config {{
                log_collector_config {{ type: "tfrecord" filename_prefix: "{tmp_path}/log" }}
                sampling_config {{ sampling_rate: 1 }}
            }}
        }} }}"""
    )
    chosen = options(model_config_file=str(file))
    server = Server(chosen)
    with server, grpc.insecure_channel(f"localhost:{chosen.port}") as channel:
        ask(channel, x=x(1, 2), **held(START, 7))
        ask(channel, x=x(3), **held(CONTINUE, 7))
        with pytest.raises(grpc.RpcError):
            ask(channel, x=x(np.nan), **held(CONTINUE, 7))
        ask(channel, x=x(4), **held(END, 7))
        counts = list(server._metrics.signature_requests.lines("n"))
    (log,) = tmp_path.glob("log*.tfrecord")
    return counts, log


def test_requests_of_a_sequence_are_counted_by_signature(logged):
    labels = 'model_name="ones",version="1",signature_name="stream_step",API="Predict"'
    assert logged[0] == [
        f'n{{{labels},status="INVALID_ARGUMENT"}} 1',
        f'n{{{labels},status="OK"}} 3',
    ]


def test_requests_of_a_sequence_are_kept_and_warm_up_the_next_version(logged, models, tmp_path):
    _, log = logged
    logs = [
        PredictionLog.FromString(record).predict_log
        for record in tf.compat.v1.io.tf_record_iterator(str(log))
    ]
    assert [each.request.inputs["sequence_control_input"].uint32_val[:] for each in logs] == [
        [START],
        [CONTINUE],
        [END],
    ]
    assert [each.response.outputs["sum"].float_val[:] for each in logs] == [[3], [6], [10]]
    assert {each.request.model_spec.signature_name for each in logs} == {"stream_step"}
    version = tmp_path / "version"
    shutil.copytree(models / "ones/1", version)
    (version / "assets.extra").mkdir()
    shutil.copy(log, version / "assets.extra/tf_serving_warmup_requests")
    metrics = Metrics()
    Loader(Options(), metrics, Batching(Options(), metrics)).load(str(version), "m").close()
    assert metrics.warmup_records.total() == 3
    assert metrics.runs.total() == 9  # each begins, steps and ends
