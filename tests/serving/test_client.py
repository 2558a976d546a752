import subprocess
import sys

import grpc
import numpy as np
import pytest
from google.protobuf import descriptor_pb2
from tensorflow_serving.apis import get_model_metadata_pb2, get_model_status_pb2, predict_pb2

from serving import client as client_lib
from serving.client import (
    Client,
    DeadlineExceeded,
    InvalidInput,
    ModelNotFound,
    ServerUnavailable,
    SignatureNotFound,
    messages,
    tensors,
)

DTYPES = sorted(set(tensors._NUMBERS))


def test_importing_the_client_does_not_import_tensorflow():
    code = "import sys, serving.client; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", ["PredictRequest", "GetModelMetadataRequest"])
def test_a_message_is_the_official_one_on_the_wire(name):
    official = {
        "PredictRequest": predict_pb2.PredictRequest,
        "GetModelMetadataRequest": get_model_metadata_pb2.GetModelMetadataRequest,
    }[name]
    assert_same_fields(messages._CLASSES[name].DESCRIPTOR, official.DESCRIPTOR)


def test_the_messages_of_answers_are_the_official_ones():
    for name, official in {
        "PredictResponse": predict_pb2.PredictResponse,
        "GetModelMetadataResponse": get_model_metadata_pb2.GetModelMetadataResponse,
        "SignatureDefMap": get_model_metadata_pb2.SignatureDefMap,
        "GetModelStatusResponse": get_model_status_pb2.GetModelStatusResponse,
        "GetModelStatusRequest": get_model_status_pb2.GetModelStatusRequest,
    }.items():
        assert_same_fields(messages._CLASSES[name].DESCRIPTOR, official.DESCRIPTOR)


def labels_of(message):
    """Returns, by name, of each field whether it is repeated."""
    proto = descriptor_pb2.DescriptorProto()
    message.CopyToProto(proto)
    return {field.name: field.label for field in proto.field}


def assert_same_fields(ours, official):
    assert labels_of(ours).items() <= labels_of(official).items()
    for field in ours.fields:
        other = official.fields_by_number[field.number]
        assert field.name == other.name
        if other.enum_type:
            assert field.type == field.TYPE_INT32
            continue
        assert field.type == other.type
        if field.message_type:
            assert_same_fields(field.message_type, other.message_type)


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_array_survives_the_way_to_a_tensor_and_back(dtype, example_of):
    array = example_of(dtype)
    back = tensors.decode(tensors.encode(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_type_survives_the_way_to_a_server_and_back(dtype, client, example_of):
    array = example_of(dtype)
    (back,) = client.predict("identity", {"x": array}, signature=dtype).values()
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


def test_a_field_that_ends_early_repeats_its_last_value():
    proto = messages.TensorProto(dtype=1, float_val=[1.0, 2.0])
    proto.tensor_shape.dim.add(size=4)
    np.testing.assert_array_equal(tensors.decode(proto), np.array([1, 2, 2, 2], np.float32))


def test_a_field_without_values_is_all_empty():
    proto = messages.TensorProto(dtype=7)
    proto.tensor_shape.dim.add(size=2)
    assert tensors.decode(proto).tolist() == ["", ""]


def test_strings_that_are_not_utf8_come_back_as_bytes(client):
    sent = np.array([b"\xff", b"one"], object)
    (back,) = client.predict("identity", sent, signature="string").values()
    assert back.tolist() == [b"\xff", b"one"]


def test_a_single_value_goes_to_the_only_input(client):
    outputs = client.predict("half_plus", [1, 2.0, 5])
    np.testing.assert_array_equal(outputs["y"], np.array([3.5, 4.0, 5.5], np.float32))


def test_a_string_alone_is_a_scalar(client):
    assert client.predict("identity", "hello", signature="string")["y"][()] == "hello"


def test_lists_take_the_types_of_the_signature(client):
    for dtype, values in {"uint8": [0, 255], "float16": [1, 2.5], "bool": [True, False]}.items():
        (back,) = client.predict("identity", {"x": values}, signature=dtype).values()
        assert (back.dtype.name, back.tolist()) == (dtype, values)


def test_words_and_numbers_come_back_side_by_side(client):
    outputs = client.predict("words", ["two", "none"])
    assert outputs["ids"].tolist() == [1, -1]
    assert outputs["words"].tolist() == ["two", "none"]


def test_an_empty_list_is_an_empty_array_of_the_right_type(client):
    assert client.predict("half_plus", [])["y"].shape == (0,)


def test_a_version_can_be_asked_for(client):
    with pytest.raises(ModelNotFound, match=r"Specific\(half_plus, 1\)"):
        client.predict("half_plus", [1.0], version=1)
    assert client.predict("half_plus", [2.0], version=2)["y"].tolist() == [4.0]


def test_some_outputs_can_be_asked_for(client):
    inputs = {"a": np.ones([1, 2], np.float32), "b": np.ones([1, 2], np.float32)}
    assert list(client.predict("two_inputs", inputs, outputs=["row_sum"])) == ["row_sum"]


def test_metadata_is_plain_python(client):
    side = {"dtype": "float32", "shape": [None, 2]}
    metadata = client.metadata("two_inputs")
    assert (metadata["model"], metadata["version"]) == ("two_inputs", 7)
    assert set(metadata["signatures"]) == {"serving_default", "uneven", "scalar"}
    signature = metadata["signatures"]["serving_default"]
    assert signature["inputs"] == {"a": side, "b": side}
    assert signature["outputs"]["row_sum"] == {"dtype": "float32", "shape": [None]}


def test_an_unknown_rank_is_none(client):
    signatures = client.metadata("identity")["signatures"]
    assert signatures["int8"]["inputs"] == {"x": {"dtype": "int8", "shape": None}}


def test_status_tells_of_versions(client):
    assert client.status("half_plus") == [{"version": 2, "state": "AVAILABLE", "error": ""}]


def test_a_unix_socket_serves_too(server):
    with Client(f"unix:{server.socket_path}") as client:
        assert client.predict("half_plus", [2.0])["y"].tolist() == [4.0]


ONE = np.ones([1], np.float32)
FAILURES = [
    (ModelNotFound, "none", ONE, {}, ["model 'none'", "Latest(none)", "Client.status"]),
    (SignatureNotFound, "half_plus", ONE, {"signature": "q"}, ["'q'", "It has: serving_default"]),
    (SignatureNotFound, "half_plus", {"x": ONE}, {"signature": "q"}, ["It has: serving_default"]),
    (
        InvalidInput,
        "half_plus",
        {"z": ONE},
        {},
        ["not found in request", "takes: x float32 [None]"],
    ),
    (InvalidInput, "half_plus", {"x": ONE.astype(int)}, {}, ["but int64", "Received: x int64 [1]"]),
    (InvalidInput, "half_plus", [[1.0], [1.0, 2.0]], {}, ["same length", "pad"]),
    (InvalidInput, "half_plus", [b"a", None], {}, ["`str` or `bytes`", "None"]),
    (InvalidInput, "half_plus", np.array(["2020"], "M8[Y]"), {}, ["float32", "datetime64"]),
    (InvalidInput, "two_inputs", [1.0], {}, ["dict", "2 inputs", "a float32 [None, 2]"]),
    (InvalidInput, "identity", [1.5], {"signature": "int32"}, ["must hold int32", "[1.5]"]),
    (InvalidInput, "identity", [256], {"signature": "uint8"}, ["must hold uint8", "[256]"]),
    (InvalidInput, "identity", [1], {"signature": "string"}, ["must hold string", "[1]"]),
    (DeadlineExceeded, "slow", {"n": 3_000_000}, {"timeout": 0.2}, ["0.2 s", "longer `timeout`"]),
]


@pytest.mark.parametrize(
    ("kind", "model", "inputs", "how", "texts"), FAILURES, ids=[f"{row[4][0]}" for row in FAILURES]
)
def test_a_failure_says_what_is_wrong_and_what_would_work(client, kind, model, inputs, how, texts):
    with pytest.raises(kind) as raised:
        client.predict(model, inputs, **how)
    for text in texts:
        assert text in str(raised.value)


def test_no_server_is_said_with_the_address_and_the_command(free_port):
    address = f"localhost:{free_port()}"
    with Client(address) as client, pytest.raises(ServerUnavailable) as raised:
        client.predict("half_plus", {"x": ONE})
    assert f"No server answers at {address}. Start one with `transduce serve" in str(raised.value)
    assert raised.value.code == "UNAVAILABLE"


def test_a_full_queue_is_not_called_a_missing_server():
    class Full(grpc.RpcError):
        def code(self):
            return grpc.StatusCode.UNAVAILABLE

        def details(self):
            return "The batch scheduling queue to which this task was submitted is full"

    error = client_lib.errors.from_grpc(Full(), "host:1", "predict", 1.0)
    assert "overloaded" in str(error)
    assert "Start one" not in str(error)
