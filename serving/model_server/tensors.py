"""TensorProto to array and back, the way TF Serving writes and reads it.

Answers carry their values in the typed fields (`float_val` and so on). Long ones are written
straight as wire bytes: a packed field is a tag, a length and the values, which for fixed-width
types is what an array already holds.
"""

import functools
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import tensor_pb2, tensor_shape_pb2, types_pb2
from tensorflow_serving.apis.model_pb2 import ModelSpec

from serving.model_server import wire
from serving.model_server.errors import Code, ServingError, invalid


class _Type(NamedTuple):
    """How values of a type are held, in an array and in a TensorProto."""

    number: int  # In DataType.
    array: np.dtype
    field: str
    elements: np.dtype  # Of the field, where an array can be seen as an array of them.
    packed: int = 0  # The field's number, where it holds what the array holds, byte for byte.


def _type(dtype: tf.DType, field: str, elements=None) -> _Type:
    array = np.dtype(dtype.as_numpy_dtype)
    elements = np.dtype(elements or array)
    number = tensor_pb2.TensorProto.DESCRIPTOR.fields_by_name[field].number
    packed = number if elements.kind in "fb" else 0  # Integers go as varints.
    return _Type(dtype.as_datatype_enum, array, field, elements, packed)


# The field that holds a type's values, as the comments in tensor.proto have it.
_TYPES = [
    _type(tf.float32, "float_val"),
    _type(tf.float64, "double_val"),
    _type(tf.int32, "int_val"),
    _type(tf.int16, "int_val"),
    _type(tf.int8, "int_val"),
    _type(tf.uint8, "int_val"),
    _type(tf.uint16, "int_val"),
    _type(tf.string, "string_val"),
    _type(tf.complex64, "scomplex_val", np.float32),
    _type(tf.int64, "int64_val"),
    _type(tf.bool, "bool_val"),
    _type(tf.complex128, "dcomplex_val", np.float64),
    _type(tf.float16, "half_val", np.uint16),
    _type(tf.bfloat16, "half_val", np.uint16),
    _type(tf.uint32, "uint32_val"),
    _type(tf.uint64, "uint64_val"),
]
_LARGEST_FILL = 2**28  # Bytes. A small message must not ask for all the memory there is.
_BY_NUMBER = {kind.number: kind for kind in _TYPES}
_BY_ARRAY = {kind.array: kind for kind in _TYPES}
_CONTENT = tensor_pb2.TensorProto.DESCRIPTOR.fields_by_name["tensor_content"].number


class DecodedInputs(Mapping):
    """The inputs of a request, each decoded when it is asked for."""

    def __init__(self, protos: Mapping[str, tensor_pb2.TensorProto], largest: int = 0):
        self._protos = protos
        self._largest = largest

    def __getitem__(self, name: str) -> np.ndarray:
        try:
            if self._largest:
                _require_size(name, _size(self._protos[name]), self._largest)
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
    kind, shape = _BY_NUMBER[proto.dtype], _shape(proto)
    if content := proto.tensor_content:
        if proto.dtype == types_pb2.DT_STRING:
            return _strings(content, math.prod(shape)).reshape(shape)
        return np.frombuffer(content, kind.array).reshape(shape)
    return _fill(_values(kind, getattr(proto, kind.field)), math.prod(shape)).reshape(shape)


def check_size(name: str, array: np.ndarray, largest: int) -> None:
    """Raises a ServingError where an input is larger than inputs may be; `largest` 0 is any."""
    if largest:
        texts = sum(map(len, array.flat)) if array.dtype == object else 0
        _require_size(name, array.nbytes + texts, largest)


def _require_size(name: str, size: int, largest: int) -> None:
    if size > largest:
        text = f"Input {name} has {size} bytes, and the server takes {largest} at most"
        raise ServingError(Code.RESOURCE_EXHAUSTED, text)


def _size(proto: tensor_pb2.TensorProto) -> int:
    if proto.dtype not in _BY_NUMBER:
        return 0
    count = math.prod(_shape(proto))
    size = count * _BY_NUMBER[proto.dtype].array.itemsize
    if proto.dtype == types_pb2.DT_STRING:
        texts = proto.string_val
        size += sum(map(len, texts)) + len(proto.tensor_content)
        if texts:  # The last one stands for all that are left out.
            size += max(count - len(texts), 0) * len(texts[-1])
    return size


def encode(array: np.ndarray, as_content: bool = False) -> bytes:
    """Returns a serialized TensorProto with the values of `array`.

    Args:
        array: Any array that TensorFlow gives.
        as_content: Write numbers into `tensor_content`, which every type shares.
    """
    kind = _BY_ARRAY[array.dtype]
    start = _start(kind.number, array.shape)
    if not array.size:
        return start
    if as_content and array.dtype != object:
        return start + wire.field(_CONTENT, array.tobytes())
    if kind.packed:
        return start + wire.field(kind.packed, array.tobytes())
    proto = tensor_pb2.TensorProto()
    getattr(proto, kind.field).extend(_elements(kind, array))
    return start + proto.SerializeToString()


def response(model_spec: ModelSpec, outputs: Mapping[str, np.ndarray], as_content: bool) -> bytes:
    """Returns a serialized PredictResponse.

    Args:
        model_spec: Which model answers.
        outputs: Arrays by output name.
        as_content: See `encode`.
    """
    parts = []
    for name, array in outputs.items():
        tensor = encode(array, as_content)
        key = wire.field(1, name.encode()) + wire.head(2, len(tensor))
        parts += [wire.head(1, len(key) + len(tensor)), key, tensor]
    parts.append(wire.field(2, model_spec.SerializeToString()))
    return b"".join(parts)


@functools.lru_cache(maxsize=1024)
def _start(number: int, shape: Sequence[int]) -> bytes:
    """Returns a serialized TensorProto with a type and a shape."""
    dims = [tensor_shape_pb2.TensorShapeProto.Dim(size=size) for size in shape]
    proto = tensor_pb2.TensorProto(dtype=number)
    proto.tensor_shape.CopyFrom(tensor_shape_pb2.TensorShapeProto(dim=dims))
    return proto.SerializeToString()


def _shape(proto: tensor_pb2.TensorProto) -> list[int]:
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_shape.unknown_rank or any(size < 0 for size in shape):
        raise ValueError("the shape is not fully known")
    return shape


def _strings(content: bytes, count: int) -> np.ndarray:
    """Returns `count` strings as TensorFlow packs them: the length of each, then all of them."""
    lengths, at = [], 0
    for _ in range(count):
        length, at = wire.read_varint(content, at)
        lengths.append(length)
    if len(content) - at != sum(lengths):
        raise ValueError(f"{len(content) - at} bytes for strings of {sum(lengths)}")
    ends = list(itertools.accumulate(lengths, initial=at))
    strings = [content[start:end] for start, end in itertools.pairwise(ends)]
    return np.array(strings, object)


def _values(kind: _Type, field) -> np.ndarray:
    if kind.elements != kind.array:
        return np.array(field, kind.elements).view(kind.array)
    if kind.field == "int_val":
        return np.array(field, np.int32).astype(kind.array, copy=False)
    return np.array(field, kind.array)


def _fill(values: np.ndarray, size: int) -> np.ndarray:
    """Repeats the last value, or the type's empty one, until there are `size`."""
    if len(values) > size:
        raise ValueError(f"{len(values)} values for {size} elements")
    if len(values) == size:
        return values
    if size * values.itemsize > _LARGEST_FILL:
        raise ValueError(f"{len(values)} values are too few to fill {size} elements with")
    empty = b"" if values.dtype == object else 0
    last = values[-1] if len(values) else empty
    return np.concatenate([values, np.full(size - len(values), last, values.dtype)])


def _elements(kind: _Type, array: np.ndarray) -> list:
    if kind.elements != kind.array:
        array = np.ascontiguousarray(array).reshape(-1).view(kind.elements)
    return array.ravel().tolist()
