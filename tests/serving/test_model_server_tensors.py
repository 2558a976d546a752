import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2

from serving.model_server import tensors, wire
from serving.model_server.errors import ServingError

FIELDS = {
    "float32": "float_val",
    "float64": "double_val",
    "int8": "int_val",
    "int16": "int_val",
    "int32": "int_val",
    "int64": "int64_val",
    "uint8": "int_val",
    "uint16": "int_val",
    "uint32": "uint32_val",
    "uint64": "uint64_val",
    "bool": "bool_val",
    "string": "string_val",
    "complex64": "scomplex_val",
    "complex128": "dcomplex_val",
    "float16": "half_val",
    "bfloat16": "half_val",
}


def on_the_wire(array):
    stored = array if array.dtype != object else np.vectorize(str.encode, otypes=[object])(array)
    return tensor_pb2.TensorProto.FromString(tensors.encode(stored)), stored


@pytest.mark.parametrize(("dtype", "field"), FIELDS.items())
def test_an_answer_is_in_its_typed_field(dtype, field, example_of):
    proto, array = on_the_wire(example_of(dtype))
    parts = 2 if dtype.startswith("complex") else 1
    assert len(getattr(proto, field)) == array.size * parts
    assert not proto.tensor_content


@pytest.mark.parametrize("dtype", FIELDS)
def test_tensorflow_reads_what_is_written(dtype, example_of):
    proto, array = on_the_wire(example_of(dtype))
    np.testing.assert_array_equal(tf.make_ndarray(proto), array)


@pytest.mark.parametrize("dtype", FIELDS)
def test_what_tensorflow_writes_is_read(dtype, example_of):
    _, array = on_the_wire(example_of(dtype))
    back = tensors.decode(tf.make_tensor_proto(array))
    assert back.dtype == array.dtype
    np.testing.assert_array_equal(back, array)


@pytest.mark.parametrize("dtype", FIELDS)
def test_what_is_written_is_read(dtype, example_of):
    proto, array = on_the_wire(example_of(dtype))
    np.testing.assert_array_equal(tensors.decode(proto), array)


@pytest.mark.parametrize("texts", [[], [b""], [b"one", b"x" * 300, b"", b"four"]])
def test_strings_are_read_from_content_as_tensorflow_packs_them(texts):
    packed = b"".join(wire.varint(len(text)) for text in texts) + b"".join(texts)
    proto = proto_of("string", [len(texts), 1], tensor_content=packed)
    assert tensors.decode(proto).tolist() == [[text] for text in texts]
    if packed:
        assert tf.io.parse_tensor(proto.SerializeToString(), tf.string).shape == [len(texts), 1]


def test_content_can_be_asked_for():
    array = np.arange(3, dtype=np.float32)
    proto = tensor_pb2.TensorProto.FromString(tensors.encode(array, as_content=True))
    assert proto.tensor_content == array.tobytes()


@pytest.mark.parametrize("dtype", ["float32", "int32", "string", "bool"])
def test_an_empty_array_keeps_its_shape(dtype):
    array = np.empty([0, 3], tf.as_dtype(dtype).as_numpy_dtype)
    proto = tensor_pb2.TensorProto.FromString(tensors.encode(array))
    assert tensors.decode(proto).shape == (0, 3)


def proto_of(dtype, sizes, **fields):
    proto = tensor_pb2.TensorProto(dtype=tf.as_dtype(dtype).as_datatype_enum, **fields)
    proto.tensor_shape.SetInParent()
    for size in sizes:
        proto.tensor_shape.dim.add(size=size)
    return proto


@pytest.mark.parametrize(
    ("proto", "values"),
    [
        (proto_of("float32", [2, 2], float_val=[1, 2]), [[1, 2], [2, 2]]),
        (proto_of("float32", [2]), [0, 0]),
        (proto_of("string", [2]), [b"", b""]),
        (proto_of("string", [3], string_val=[b"a"]), [b"a", b"a", b"a"]),
        (proto_of("int8", [], int_val=[-3]), -3),
    ],
)
def test_too_few_values_repeat_the_last(proto, values):
    assert tensors.decode(proto).tolist() == values


@pytest.mark.parametrize(
    "proto",
    [
        proto_of("float32", [1], float_val=[1, 2]),
        proto_of("float32", [-1], float_val=[1]),
        proto_of("float32", [3], tensor_content=b"1234"),
        proto_of("float32", [1], tensor_content=b"123"),
        proto_of("string", [2], tensor_content=b"\x01a"),
        proto_of("string", [1], tensor_content=b"\x05a"),
        proto_of("string", [1], tensor_content=b"\x01ab"),
        proto_of("string", [1], tensor_content=b"\x80"),
        tensor_pb2.TensorProto(float_val=[1]),
        tensor_pb2.TensorProto(dtype=99),
        tensor_pb2.TensorProto(dtype=tf.resource.as_datatype_enum),
    ],
)
def test_what_holds_no_tensor_is_a_parsing_error(proto):
    with pytest.raises(ServingError, match="INVALID_ARGUMENT: tensor parsing error: x"):
        tensors.DecodedInputs({"x": proto})["x"]
