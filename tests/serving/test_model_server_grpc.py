import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

ONE = np.ones([1], np.float32)
PAIR = np.ones([1, 2], np.float32)


@pytest.fixture(scope="module")
def channel(server):
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture(scope="module")
def prediction(channel):
    return prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def models(channel):
    return model_service_pb2_grpc.ModelServiceStub(channel)


def request_for(model, signature="", version=None, label=None, outputs=(), **inputs):
    request = predict_pb2.PredictRequest(output_filter=outputs)
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    if version is not None:
        request.model_spec.version.value = version
    if label is not None:
        request.model_spec.version_label = label
    for name, value in inputs.items():
        proto = value if hasattr(value, "dtype") and not hasattr(value, "size") else None
        request.inputs[name].CopyFrom(proto or tf.make_tensor_proto(value))
    return request


def failure(method, request, **how):
    with pytest.raises(grpc.RpcError) as raised:
        method(request, **how)
    return raised.value.code().name, raised.value.details()


def test_an_answer_names_version_and_signature(prediction):
    response = prediction.Predict(request_for("half_plus", x=ONE))
    assert response.model_spec.name == "half_plus"
    assert response.model_spec.version.value == 2
    assert response.model_spec.signature_name == "serving_default"
    assert list(response.outputs["y"].float_val) == [3.5]


def test_strings_come_back_as_strings(prediction):
    outputs = prediction.Predict(request_for("words", words=["three", "four"])).outputs
    assert list(outputs["words"].string_val) == [b"three", b"four"]
    assert list(outputs["ids"].int64_val) == [2, -1]


def test_an_output_filter_leaves_the_rest_out(prediction):
    request = request_for("two_inputs", outputs=["row_sum"], a=PAIR, b=PAIR)
    assert dict(prediction.Predict(request).outputs).keys() == {"row_sum"}


def test_a_model_of_tensorflow_1_keeps_its_state(prediction):
    counts = [
        prediction.Predict(request_for("counter", by=np.float32(2))).outputs["count"].float_val[0]
        for _ in range(3)
    ]
    assert np.diff(counts).tolist() == [2, 2]


def test_an_input_without_signature_check_may_have_any_shape_that_the_graph_takes(prediction):
    response = prediction.Predict(request_for("half_plus", x=np.ones([2, 2], np.float32)))
    assert [dim.size for dim in response.outputs["y"].tensor_shape.dim] == [2, 2]


BROKEN = tf.make_tensor_proto(ONE)
BROKEN.tensor_shape.dim[0].size = -1
NOT_FOUND, INVALID = "NOT_FOUND", "INVALID_ARGUMENT"
MISSING_B = (
    "input size does not match signature: 1!=2 len({a}) != len({a,b}). Sent extra: {}. "
    "Missing but required: {b}."
)
EXTRA_Z = (
    "input size does not match signature: 2!=1 len({x,z}) != len({x}). Sent extra: {z}. "
    "Missing but required: {}."
)
WRONG_NAME = (
    "Signature input alias: x(feed name: serving_default_x:0) not found in request and no default "
    "value provided. Inputs expected to be in the request {z}, or default input alias set: "
)


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (predict_pb2.PredictRequest(), INVALID, "Missing ModelSpec"),
        (request_for("", x=ONE), INVALID, "ModelSpec has no name specified."),
        (request_for("q", x=ONE), NOT_FOUND, "Servable not found for request: Latest(q)"),
        (
            request_for("half_plus", version=9, x=ONE),
            NOT_FOUND,
            "Servable not found for request: Specific(half_plus, 9)",
        ),
        (
            request_for("half_plus", label="canary", x=ONE),
            INVALID,
            "Unrecognized servable version label: canary",
        ),
        (
            request_for("half_plus", "q", x=ONE),
            "FAILED_PRECONDITION",
            'Serving signature key "q" not found.',
        ),
        (request_for("two_inputs", a=PAIR), INVALID, MISSING_B),
        (request_for("half_plus", x=ONE, z=ONE), INVALID, EXTRA_Z),
        (request_for("half_plus", z=ONE), INVALID, WRONG_NAME),
        (request_for("half_plus", x=BROKEN), INVALID, "tensor parsing error: x"),
        (
            request_for("half_plus", outputs=["q"], x=ONE),
            INVALID,
            "output tensor alias not found in signature: q Outputs expected to be in the set {y}.",
        ),
        (
            request_for("half_plus", outputs=["y", "y"], x=ONE),
            INVALID,
            "duplicate output tensor alias: y",
        ),
        (
            request_for("half_plus", x=np.int32([1])),
            INVALID,
            "Expects arg[0] to be float but int32 is provided",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_bad_predict_request_fails_as_in_tensorflow_serving(prediction, request_, code, message):
    assert failure(prediction.Predict, request_) == (code, message)


def test_a_failing_operation_is_named(prediction):
    request = request_for("two_inputs", a=PAIR, b=np.ones([1, 3], np.float32))
    code, message = failure(prediction.Predict, request)
    assert code == INVALID
    assert message.startswith("Incompatible shapes: [1,2] vs. [1,3]\n\t [[{{")


def test_a_long_message_is_cut(prediction):
    code, message = failure(prediction.Predict, request_for("m" * 2000, x=ONE))
    assert code == NOT_FOUND
    assert len(message) == 1024 + len("...TRUNCATED")
    assert message.endswith("...TRUNCATED")


def test_a_long_message_is_cut_by_its_bytes_between_two_characters(prediction):
    code, message = failure(prediction.Predict, request_for("語" * 2000, x=ONE))
    assert code == NOT_FOUND
    assert message.endswith("語語語...TRUNCATED")
    assert 1021 < len(message.removesuffix("...TRUNCATED").encode()) <= 1024


def test_a_deadline_ends_the_work(prediction):
    code, _ = failure(prediction.Predict, request_for("slow", n=np.int32(3_000_000)), timeout=0.2)
    assert code == "DEADLINE_EXCEEDED"


def test_a_deadline_is_counted_as_one_and_a_cancelled_call_as_such(server, prediction):
    def counted(code):
        counts = server.metrics.signature_requests, server.metrics.requests
        lines = [line for metric in counts for line in metric.lines("n") if "slow" in line]
        return sum(int(line.split()[-1]) for line in lines if f'"{code}"' in line)

    before = {code: counted(code) for code in ("DEADLINE_EXCEEDED", "CANCELLED")}
    request = request_for("slow", n=np.int32(3_000_000))
    failure(prediction.Predict, request, timeout=1)
    call = prediction.Predict.future(request)
    time.sleep(1)
    call.cancel()
    deadline = time.monotonic() + 10
    while any(counted(code) < count + 2 for code, count in before.items()):
        assert time.monotonic() < deadline, {code: counted(code) for code in before}
        time.sleep(0.05)


def metadata_request(model="", *fields):
    request = get_model_metadata_pb2.GetModelMetadataRequest(metadata_field=fields)
    request.model_spec.name = model
    return request


def test_metadata_holds_the_signatures(prediction):
    response = prediction.GetModelMetadata(metadata_request("half_plus", "signature_def"))
    assert response.model_spec.version.value == 2
    assert response.model_spec.signature_name == ""
    signatures = get_model_metadata_pb2.SignatureDefMap()
    assert response.metadata["signature_def"].Unpack(signatures)
    assert set(signatures.signature_def) == {"serving_default", "__saved_model_init_op"}


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (get_model_metadata_pb2.GetModelMetadataRequest(), INVALID, "Missing ModelSpec"),
        (
            metadata_request("half_plus"),
            INVALID,
            "GetModelMetadataRequest must specify at least one metadata_field",
        ),
        (
            metadata_request("half_plus", "graph"),
            INVALID,
            "Metadata field graph is not supported",
        ),
        (
            metadata_request("", "signature_def"),
            INVALID,
            "ModelSpec has no name specified.",
        ),
        (
            metadata_request("q", "signature_def"),
            NOT_FOUND,
            "Servable not found for request: Latest(q)",
        ),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_bad_metadata_request_fails_as_in_tensorflow_serving(prediction, request_, code, message):
    assert failure(prediction.GetModelMetadata, request_) == (code, message)


def status_request(model, version=None):
    request = get_model_status_pb2.GetModelStatusRequest()
    request.model_spec.name = model
    if version is not None:
        request.model_spec.version.value = version
    return request


def test_status_lists_what_is_loaded(models):
    (status,) = models.GetModelStatus(status_request("half_plus")).model_version_status
    assert (status.version, status.state) == (2, get_model_status_pb2.ModelVersionStatus.AVAILABLE)
    assert (status.status.error_code, status.status.error_message) == (0, "")


@pytest.mark.parametrize(
    ("request_", "code", "message"),
    [
        (get_model_status_pb2.GetModelStatusRequest(), INVALID, "Missing ModelSpec"),
        (status_request("q"), NOT_FOUND, "Could not find any versions of model q"),
        (status_request("half_plus", 9), NOT_FOUND, "Could not find version 9 of model half_plus"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
def test_a_bad_status_request_fails_as_in_tensorflow_serving(models, request_, code, message):
    assert failure(models.GetModelStatus, request_) == (code, message)


def test_a_label_is_not_looked_at_where_the_status_is_asked_for(models):
    request = status_request("half_plus")
    request.model_spec.version_label = "q"
    statuses = models.GetModelStatus(request).model_version_status
    assert [status.version for status in statuses] == [2]


def test_an_unknown_method_is_unimplemented(channel):
    method = channel.unary_unary("/tensorflow.serving.SessionService/SessionRun")
    assert failure(method, b"")[0] == "UNIMPLEMENTED"


@pytest.mark.parametrize(
    ("service", "answer"), [(b"", b"\x08\x01"), (b"\x0a\x0cModelService", b"\x08\x01")]
)
def test_the_server_is_healthy(channel, service, answer):
    assert channel.unary_unary("/grpc.health.v1.Health/Check")(service) == answer


def test_the_health_of_an_unknown_service_is_not_found(channel):
    method = channel.unary_unary("/grpc.health.v1.Health/Check")
    assert failure(method, b"\x0a\x01q")[0] == NOT_FOUND


def test_the_health_of_an_unknown_service_is_watched_as_unknown(channel):
    watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"\x0a\x01q", timeout=10)
    assert next(watch) == b"\x08\x03"
    watch.cancel()


def test_many_callers_each_get_their_own_answer(prediction):
    answers = {}

    def ask(number):
        response = prediction.Predict(request_for("half_plus", x=np.float32([number])))
        answers[number] = response.outputs["y"].float_val[0]

    threads = [threading.Thread(target=ask, args=[number]) for number in range(32)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: number / 2 + 3 for number in range(32)}
