"""TensorProto to array and back, the way TF Serving writes and reads it.

Answers carry their values in the typed fields (`float_val` and so on). Long ones are written
straight as wire bytes: a packed field is a tag, a length and the values, which for fixed-width
types is what an array already holds.
"""

import math
from collections.abc import Iterator, Mapping

import numpy as np
import tensorflow as tf
from google.protobuf.internal import encoder
from tensorflow.core.framework import tensor_pb2

from serving.model_server.errors import invalid

# The field that holds a type's values, as the comments in tensor.proto have it.
_FIELDS = {
    tf.float32: "float_val",
    tf.float64: "double_val",
    tf.int32: "int_val",
    tf.int16: "int_val",
    tf.int8: "int_val",
    tf.uint8: "int_val",
    tf.uint16: "int_val",
    tf.string: "string_val",
    tf.complex64: "scomplex_val",
    tf.int64: "int64_val",
    tf.bool: "bool_val",
    tf.complex128: "dcomplex_val",
    tf.float16: "half_val",
    tf.bfloat16: "half_val",
    tf.uint32: "uint32_val",
    tf.uint64: "uint64_val",
}
_BY_NUMBER = {dtype.as_datatype_enum: (dtype, field) for dtype, field in _FIELDS.items()}
_FIXED_WIDTH = frozenset({tf.float32, tf.float64, tf.complex64, tf.complex128, tf.bool})
_LENGTH_DELIMITED = 2
_PARTS = {  # How the elements of a field look where they are not the array's own.
    tf.complex64: np.float32,
    tf.complex128: np.float64,
    tf.float16: np.uint16,
    tf.bfloat16: np.uint16,
}


class DecodedInputs(Mapping):
    """The inputs of a request, each decoded when it is asked for."""

    def __init__(self, protos: Mapping[str, tensor_pb2.TensorProto]):
        self._protos = protos

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            return decode(self._protos[name])
        except ValueError:
            raise invalid(f"tensor parsing error: {name}") from None

    def __contains__(self, name: object) -> bool:
        return name in self._protos

    def __iter__(self) -> Iterator[str]:
        return iter(self._protos)

    def __len__(self) -> int:
        return len(self._protos)


def decode(proto: tensor_pb2.TensorProto) -> np.ndarray:
    """Returns the array that `proto` holds.

    Raises:
        ValueError: It holds none: no known type, no full shape, or too many values.
    """
    if proto.dtype not in _BY_NUMBER:
        raise ValueError(f"no values of type {proto.dtype}")
    dtype, field = _BY_NUMBER[proto.dtype]
    shape = _shape(proto)
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, _numpy(dtype)).reshape(shape)
    values = _values(dtype, getattr(proto, field))
    return _fill(values, math.prod(shape)).reshape(shape)


def encode(array: np.ndarray, as_content: bool = False) -> bytes:
    """Returns a serialized TensorProto with the values of `array`.

    Args:
        array: Any array that TensorFlow gives.
        as_content: Write numbers into `tensor_content`, which every type shares.
    """
    dtype = tf.as_dtype(array.dtype)
    proto = tensor_pb2.TensorProto(dtype=dtype.as_datatype_enum)
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if as_content and dtype != tf.string:
        proto.tensor_content = array.tobytes()
    elif dtype in _FIXED_WIDTH:
        return proto.SerializeToString() + _packed(_FIELDS[dtype], array.tobytes())
    else:
        getattr(proto, _FIELDS[dtype]).extend(_elements(dtype, array))
    return proto.SerializeToString()


def _shape(proto: tensor_pb2.TensorProto) -> list[int]:
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError("the shape is not fully known")
    return shape


def _values(dtype: tf.DType, field) -> np.ndarray:
    if dtype == tf.string:
        return np.array(field, object)
    if dtype not in _PARTS:
        return np.array(field, _wide(dtype)).astype(_numpy(dtype), copy=False)
    return np.array(field, _PARTS[dtype]).view(_numpy(dtype))


def _wide(dtype: tf.DType):
    return np.int32 if _FIELDS[dtype] == "int_val" else _numpy(dtype)


def _fill(values: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last value, or the type's empty one, until there are `size`."""
    if len(values) > size:
        raise ValueError(f"{len(values)} values for {size} elements")
    if len(values) == size:
        return values
    empty = b"" if values.dtype == object else 0
    last = values[-1] if len(values) else empty
    return np.concatenate([values, np.full(size - len(values), last, values.dtype)])


def _packed(field: str, values: bytes) -> bytes:
    if not values:
        return b""
    number = tensor_pb2.TensorProto.DESCRIPTOR.fields_by_name[field].number
    tag = encoder.TagBytes(number, _LENGTH_DELIMITED)
    return tag + encoder._VarintBytes(len(values)) + values


def _elements(dtype: tf.DType, array: np.ndarray) -> list:
    if dtype in _PARTS:
        array = np.ascontiguousarray(array).reshape(-1).view(_PARTS[dtype])
    return array.ravel().tolist()


def _numpy(dtype: tf.DType):
    return np.dtype(dtype.as_numpy_dtype)
