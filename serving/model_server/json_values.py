"""From JSON values to arrays of a given type, with TF Serving's strictness.

A list is flattened a level at a time, wholly in C. Only where that finds something amiss is it
visited value by value, to say what and where.
"""

import base64
import binascii
import json
from itertools import chain, islice
from typing import Any

import numpy as np
import tensorflow as tf

from serving.model_server.errors import Code, ServingError, invalid

_LONGEST_VALUE = 256
_encoder = json.JSONEncoder(indent=4, ensure_ascii=False)
_INT_RANGES = {
    tf.int8: np.int32,  # As in TF Serving: the range is that of the field in TensorProto.
    tf.int16: np.int32,
    tf.int32: np.int32,
    tf.uint8: np.int32,
    tf.uint32: np.uint32,
    tf.int64: np.int64,
    tf.uint64: np.uint64,
}
_FLOATS = frozenset({tf.float32, tf.float64})
_TYPE_NAMES = {tf.float16: "half", tf.float32: "float", tf.float64: "double"}


def tensor(value: Any, dtype: tf.DType) -> np.ndarray:
    """Returns the array of a value.

    Raises:
        ServingError: It is not one of type `dtype`.
    """
    array = quick(value, dtype)
    return walk(value, dtype) if array is None else array


def quick(value: Any, dtype: tf.DType) -> np.ndarray | None:
    """Returns the array of `value`, or None where it is not plainly one."""
    shape, level = [], [value]
    while (kinds := set(map(type, level))) == {list}:
        sizes = set(map(len, level))
        if len(sizes) > 1:
            return None
        shape.append(sizes.pop())
        level = list(chain.from_iterable(level))
    flat = None if list in kinds else _flat(level, kinds, dtype)
    return None if flat is None else flat.reshape(shape)


def _flat(level: list, kinds: set[type], dtype: tf.DType) -> np.ndarray | None:
    if dtype == tf.string and kinds <= {str}:
        return _objects([utf8(text) for text in level])
    if dtype == tf.bool and kinds <= {bool}:
        return np.array(level, bool)
    if dtype in _FLOATS and kinds <= {int, float}:
        with np.errstate(over="ignore"):
            return np.array(level, np.float64).astype(dtype.as_numpy_dtype)
    if dtype in _INT_RANGES and kinds <= {int}:
        return _integers(level, dtype)
    return None


def utf8(text: str) -> bytes:
    """Returns the bytes of a string as they were in the body."""
    return text.encode("utf-8", "surrogateescape")


def _integers(level: list[int], dtype: tf.DType) -> np.ndarray | None:
    bounds = np.iinfo(_INT_RANGES[dtype])
    if level and not (bounds.min <= min(level) and max(level) <= bounds.max):
        return None
    return np.array(level, bounds.dtype).astype(dtype.as_numpy_dtype)


def _objects(values: list[bytes]) -> np.ndarray:
    return np.array([*values, None], object)[:-1]  # None keeps numpy from looking into them.


def walk(value: Any, dtype: tf.DType) -> np.ndarray:
    """Returns the array of `value`, met one by one; raises at the first that does not fit."""
    shape = _shape(value)
    values: list[np.ndarray] = []
    _visit(value, 0, shape, dtype, values)
    flat = np.concatenate(values) if values else np.empty(0, dtype.as_numpy_dtype)
    return flat.reshape(shape)


def _shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _visit(value: Any, level: int, shape: list[int], dtype: tf.DType, values: list) -> None:
    rank = len(shape)
    if not isinstance(value, list):
        if level != rank:
            raise invalid(
                f"JSON Value: {show(value)} found at incorrect level: {level + 1} "
                f"in the JSON DOM. Expected at level: {rank}"
            )
        return values.append(_scalar(value, dtype))
    if level >= rank:
        raise invalid(f"Encountered list at unexpected level: {level} expected < {rank}")
    if len(value) != shape[level]:
        raise invalid(
            f"Encountered list at unexpected size: {len(value)} at level: {level} "
            f"expected size: {shape[level]}"
        )
    for item in value:
        _visit(item, level + 1, shape, dtype, values)


def _scalar(value: Any, dtype: tf.DType) -> np.ndarray:
    if isinstance(value, dict) and dtype == tf.string:
        return _objects([from_base64(value)])
    if not (dtype in _FLOATS or dtype in _INT_RANGES or dtype in (tf.string, tf.bool)):
        text = f"Conversion of JSON Value: {show(value)} to type: {_type_name(dtype)}"
        raise ServingError(Code.UNIMPLEMENTED, text)
    array = _flat([value], {type(value)}, dtype)
    if array is None:
        raise invalid(
            f"JSON Value: {show(value)} Type: {kind(value)} is not of expected type: "
            f"{_type_name(dtype)}"
        )
    return array


def from_base64(value: dict) -> bytes:
    """Returns the bytes of `{"b64": …}`."""
    if is_named(value):
        raise invalid(f"JSON Value: {show(value)} not formatted correctly for base64 data")
    text = value["b64"]
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def is_named(value: Any) -> bool:
    """Tells an object of named tensors from other values, `{"b64": …}` among them."""
    if not isinstance(value, dict):
        return False
    return not (value.keys() == {"b64"} and isinstance(value["b64"], str))


def kind(value: Any) -> str:
    """Returns what JSON calls the type of a value."""
    return {str: "String", dict: "Object", list: "Array", bool: str(value), type(None): "Null"}.get(
        type(value), "Number"
    )


def _type_name(dtype: tf.DType) -> str:
    return _TYPE_NAMES.get(dtype, dtype.name)


def show(value: Any) -> str:
    """Returns the beginning of a value, for a message: whole characters of 256 bytes at most."""
    pieces = islice(_encoder.iterencode(value), _LONGEST_VALUE)  # Each has a byte at least.
    text = "".join(pieces)
    shown = utf8(text)[:_LONGEST_VALUE].decode("utf-8", "surrogateescape")
    while not text.startswith(shown):
        shown = shown[:-1]  # A part of a character.
    return shown
