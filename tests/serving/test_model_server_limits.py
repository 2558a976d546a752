"""What one request may ask of the server's memory."""

import gzip
import http.client
import json

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.model_server import json_request
from serving.model_server.server import Server


@pytest.fixture(scope="module")
def limited(model_root, options, free_port):
    chosen = options(
        model_base_path=str(model_root / "half_plus"),
        rest_api_port=free_port(),
        max_request_bytes=4096,
        max_tensor_bytes=400,
        max_json_depth=3,
    )
    with Server(chosen):
        yield chosen


def request(shape, values=(), content=b""):
    """Returns a request whose input may be smaller or larger than its shape says."""
    made = predict_pb2.PredictRequest()
    made.model_spec.name = "default"
    tensor = made.inputs["x"]
    tensor.dtype = tf.float32.as_datatype_enum
    tensor.tensor_content = content
    tensor.float_val.extend(values)
    for size in shape:
        tensor.tensor_shape.dim.add(size=size)
    return made


def over_grpc(chosen, made):
    with grpc.insecure_channel(f"localhost:{chosen.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            return "OK", len(stub.Predict(made).outputs["y"].float_val)
        except grpc.RpcError as error:
            return error.code().name, error.details()


def over_rest(chosen, body, path="/v1/models/default:predict", **headers):
    connection = http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20)
    connection.request("POST", path, body, headers)
    response = connection.getresponse()
    text = response.read()
    connection.close()
    return response.status, json.loads(text) if text else ""


def test_a_large_request_is_refused(limited):
    code, message = over_grpc(limited, request([2000], np.zeros(2000)))
    assert code == "RESOURCE_EXHAUSTED"
    assert "larger than max (8029 vs. 4096)" in message or "4096" in message
    assert over_rest(limited, b" " * 5000) == (413, "")


def test_a_large_tensor_is_refused(limited):
    text = "Input x has 404 bytes, and the server takes 400 at most"
    for made in (request([101], np.zeros(101)), request([101], [1])):
        assert over_grpc(limited, made) == ("RESOURCE_EXHAUSTED", text)
    body = json.dumps({"inputs": [0] * 101})
    assert over_rest(limited, body) == (429, {"error": text})


def texts(*values, size=None):
    made = request([size or len(values)])
    made.inputs["x"].dtype = tf.string.as_datatype_enum
    made.inputs["x"].string_val.extend(values)
    return made


@pytest.mark.parametrize(
    ("made", "size"),
    [
        (texts(b"a" * 393), 401),
        (texts(b"a" * 100, size=4), 432),
        (texts(size=51), 408),
    ],
    ids=["long", "repeated", "left out"],
)
def test_the_length_of_strings_counts(limited, made, size):
    text = f"Input x has {size} bytes, and the server takes 400 at most"
    assert over_grpc(limited, made) == ("RESOURCE_EXHAUSTED", text)


@pytest.mark.parametrize("method", ["predict", "classify"])
def test_the_length_of_texts_in_json_counts(model_root, options, free_port, method):
    chosen = options(model_root=str(model_root), rest_api_port=free_port(), max_tensor_bytes=100)
    body = {"predict": {"inputs": ["a" * 93]}, "classify": {"examples": [{"x": 0.5}] * 9}}
    name = {"predict": "words", "classify": "examples"}[method]
    with Server(chosen):
        path = f"/v1/models/{name}:{method}"
        status, answer = over_rest(chosen, json.dumps(body[method]), path)
    assert status == 429
    assert answer["error"].endswith("bytes, and the server takes 100 at most")


def test_what_is_within_the_limits_is_answered(limited):
    assert over_grpc(limited, request([100], [1])) == ("OK", 100)
    assert over_rest(limited, json.dumps({"inputs": [0] * 100}))[0] == 200


@pytest.mark.parametrize(("size", "status"), [(4096, 200), (4097, 400)])
def test_a_body_is_measured_unpacked(limited, size, status):
    body = gzip.compress(b'{"inputs": [0]}'.ljust(size))
    assert over_rest(limited, body, **{"Content-Encoding": "gzip"})[0] == status


def test_deep_json_is_refused(limited):
    status, answer = over_rest(limited, '{"inputs": [[[0]]]}')
    assert status == 400
    assert answer["error"] == "JSON Parse error: The document is nested deeper than 3."


@pytest.mark.parametrize(
    ("text", "depth"),
    [("", 0), ("{}", 1), ('{"a": [[], {}]}', 3), ('{"[[[": "]]\\"[[["}', 1), ('{"a": ["[', 3)],
)
def test_depth_is_that_of_brackets_outside_of_strings(text, depth):
    assert json_request._depth(text) == depth


@pytest.mark.parametrize(
    "shape", [[2**40], [2**31, 2**31], [2**62, 4], [1, 2**62, 2**62, 0, -1], [1] * 300]
)
def test_a_small_request_does_not_ask_for_all_memory(server, shape):
    with grpc.insecure_channel(server.address) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        made = request(shape, [1])
        made.model_spec.name = "half_plus"
        with pytest.raises(grpc.RpcError) as raised:
            stub.Predict(made)
    assert raised.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert raised.value.details() == "tensor parsing error: x"
