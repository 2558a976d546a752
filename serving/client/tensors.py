"""Array to TensorProto and back, with numpy alone."""

import math
from typing import Any, NamedTuple

import numpy as np

from serving.client.messages import TensorProto


class _Type(NamedTuple):
    """How a DataType is called, what numpy calls it, and which field holds its values."""

    name: str
    numpy: Any
    field: str
    parts: Any = None  # The field's elements, where they are not the array's own.


_TYPES = {  # By number, as in TensorFlow's types.proto.
    1: _Type("float32", np.float32, "float_val"),
    2: _Type("float64", np.float64, "double_val"),
    3: _Type("int32", np.int32, "int_val"),
    4: _Type("uint8", np.uint8, "int_val", np.int32),
    5: _Type("int16", np.int16, "int_val", np.int32),
    6: _Type("int8", np.int8, "int_val", np.int32),
    7: _Type("string", object, "string_val"),
    8: _Type("complex64", np.complex64, "scomplex_val", np.float32),
    9: _Type("int64", np.int64, "int64_val"),
    10: _Type("bool", np.bool_, "bool_val"),
    14: _Type("bfloat16", None, "half_val", np.uint16),
    17: _Type("uint16", np.uint16, "int_val", np.int32),
    18: _Type("complex128", np.complex128, "dcomplex_val", np.float64),
    19: _Type("float16", np.float16, "half_val", np.uint16),
    22: _Type("uint32", np.uint32, "uint32_val"),
    23: _Type("uint64", np.uint64, "uint64_val"),
}
_NUMBERS = {kind.name: number for number, kind in _TYPES.items()}


def type_name(number: int) -> str:
    """Returns the name of a DataType: `float32`, `string`, …"""
    return _TYPES[number].name if number in _TYPES else f"DataType {number}"


def encode(array: np.ndarray) -> TensorProto:
    """Returns the TensorProto of an array of numbers, `str` or `bytes`.

    Raises:
        ValueError: TensorFlow has no type for the array's elements.
    """
    proto = TensorProto()
    proto.tensor_shape.SetInParent()
    for size in array.shape:
        proto.tensor_shape.dim.add(size=size)
    if array.dtype.kind in "OSU":
        proto.dtype = _NUMBERS["string"]
        proto.string_val.extend(map(_bytes, array.ravel().tolist()))
    else:
        proto.dtype = _number(array.dtype)
        proto.tensor_content = array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()
    return proto


def decode(proto: TensorProto) -> np.ndarray:
    """Returns the array of a TensorProto, whichever field its values are in.

    Strings come as an object array: of `str` where every one of them is UTF-8, else of `bytes`.
    """
    kind = _TYPES[proto.dtype]
    shape = [dim.size for dim in proto.tensor_shape.dim]
    if proto.tensor_content:
        return np.frombuffer(proto.tensor_content, numpy_type(kind.name)).reshape(shape).copy()
    field = getattr(proto, kind.field)
    if kind.name == "string":
        return _text(_fill(list(field), math.prod(shape), b"")).reshape(shape)
    return _repeat_last(_numbers(kind, field), math.prod(shape)).reshape(shape)


def numpy_type(name: str) -> np.dtype:
    """Returns numpy's type of that name; `bfloat16` comes from the package ml_dtypes."""
    if name == "bfloat16":
        import ml_dtypes

        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(_TYPES[_NUMBERS[name]].numpy)


def _number(dtype: np.dtype) -> int:
    if dtype.name not in _NUMBERS:
        raise ValueError(
            f"An input must be of a type that TensorFlow has: {', '.join(_NUMBERS)}. "
            f"Received: {dtype.name}."
        )
    return _NUMBERS[dtype.name]


def _bytes(value: Any) -> bytes:
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return value.encode()
    raise ValueError(
        "An array of objects must hold `str` or `bytes`; lists of unlike lengths, which numpy "
        f"makes such arrays of, must be padded. Received: {value!r} ({type(value).__name__})."
    )


def _numbers(kind: _Type, field) -> np.ndarray:
    dtype = numpy_type(kind.name)
    if kind.parts is None or kind.parts == np.int32:
        return np.array(field, kind.parts or dtype).astype(dtype)
    return np.array(field, kind.parts).view(dtype)


def _repeat_last(values: np.ndarray, size: int) -> np.ndarray:
    """Fills up to `size`: a field may end where all that follows is the same."""
    if len(values) == size:
        return values
    last = values[-1] if len(values) else 0
    return np.concatenate([values, np.full(size - len(values), last, values.dtype)])


def _fill(values: list[bytes], size: int, empty: bytes) -> list[bytes]:
    return values + [values[-1] if values else empty] * (size - len(values))


def _text(values: list[bytes]) -> np.ndarray:
    array = np.empty(len(values), object)
    try:
        array[:] = [value.decode() for value in values]
    except UnicodeDecodeError:
        array[:] = values
    return array
