"""From the JSON of a predict request to arrays, with TF Serving's strictness.

A list is flattened a level at a time, wholly in C. Only where that finds something amiss is it
walked value by value, to say what and where.
"""

import base64
import binascii
import json
from collections.abc import Mapping
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo

from serving.model_server.errors import Code, ServingError, invalid

_LONGEST_VALUE = 256
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
_PARSE_ERRORS = {
    "Expecting value": "Invalid value.",
    "Expecting ',' delimiter": "Missing a comma or } after an object member.",
    "Expecting ':' delimiter": "Missing a colon after a name of object member.",
    "Expecting property name enclosed in double quotes": "Missing a name for object member.",
    "Unterminated string starting at": "Missing a closing quotation mark in string.",
    "Invalid control character at": "Invalid encoding in string.",
}


class Inputs(NamedTuple):
    """The arrays of a request, and whether it was in the row form."""

    arrays: dict[str, np.ndarray]
    rows: bool


def parse(body: bytes) -> dict[str, Any]:
    """Returns the JSON object in `body`; what follows it is passed over."""
    try:
        text = body.decode("utf-8", errors="surrogateescape").lstrip(" \t\r\n")
        if not text:
            raise invalid("JSON Parse error: The document is empty")
        value, _ = json.JSONDecoder(strict=True).raw_decode(text)
    except json.JSONDecodeError as error:
        offset = len(body) - len(text.encode("utf-8", "surrogateescape")[error.pos :])
        reason = _PARSE_ERRORS.get(error.msg, error.msg)
        raise invalid(f"JSON Parse error: {reason} at offset: {offset}") from None
    except RecursionError:
        raise invalid("JSON Parse error: Terminate parsing due to Handler error.") from None
    if not isinstance(value, dict):
        raise invalid(f"JSON Value: {_show(value)} Is not object")
    return value


def signature_name(document: Mapping[str, Any]) -> str:
    """Returns the signature that the request names, or nothing for the default."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {_show(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    return name


def inputs(document: Mapping[str, Any], infos: Mapping[str, TensorInfo]) -> Inputs:
    """Returns the arrays in `instances` (rows) or `inputs` (columns).

    Args:
        document: The request.
        infos: The signature's inputs, which say what types there must be.

    Raises:
        ServingError: With TF Serving's message.
    """
    dtypes = {name: tf.as_dtype(info.dtype) for name, info in infos.items()}
    if not dtypes:
        name = signature_name(document) or "DEFAULT"
        raise invalid(f"Failed to get input map for signature: {name}")
    if "instances" in document and "inputs" in document:
        raise _malformed(
            document,
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
        )
    if "instances" in document:
        return Inputs(_rows(document, dtypes), rows=True)
    if "inputs" in document:
        return Inputs(_columns(document["inputs"], dtypes), rows=False)
    raise invalid("Missing 'inputs' or 'instances' key")


def _rows(document: Mapping[str, Any], dtypes: Mapping[str, tf.DType]) -> dict[str, np.ndarray]:
    rows = document["instances"]
    if not isinstance(rows, list):
        raise _malformed(document, "Expecting 'instances' to be an list/array")
    if not rows:
        raise _malformed(document, "No values in 'instances' array")
    if len(dtypes) > 1 and not isinstance(rows[0], dict):
        raise invalid(
            "instances is a plain list, but expecting list of objects as multiple input "
            "tensors required as per tensorinfo_map"
        )
    if _is_named(rows[0]):
        return _named_rows(rows, dtypes)
    return _plain_rows(rows, *next(iter(dtypes.items())))


def _plain_rows(rows: list, name: str, dtype: tf.DType) -> dict[str, np.ndarray]:
    array = None if any(map(_is_named, rows)) else _quick(rows, dtype)
    if array is not None:
        return {name: array}
    for index, row in enumerate(rows):
        if _is_named(row):
            raise invalid(f"Expecting value/list but got object at item {index} of input list")
    return {name: _slow_rows(rows, dtype, key="")}


def _named_rows(rows: list, dtypes: Mapping[str, tf.DType]) -> dict[str, np.ndarray]:
    for index, row in enumerate(rows):
        _check_keys(index, row, dtypes)
    arrays = {}
    for name, dtype in dtypes.items():
        values = [row[name] for row in rows]
        array = _quick(values, dtype)
        arrays[name] = _slow_rows(values, dtype, name) if array is None else array
    return arrays


def _check_keys(index: int, row: Any, dtypes: Mapping[str, tf.DType]) -> None:
    if not _is_named(row):
        raise invalid(f"Expecting object but got list at item {index} of input list")
    if row.keys() == dtypes.keys():
        return
    for key in row:
        if key not in dtypes:
            raise _bad_row(index, key, invalid(f"JSON object: does not have named input: {key}"))
    raise invalid(
        f"Failed to process element: {index} of 'instances' list. JSON object: {_show(row)} "
        f"keys must be equal to: {','.join(sorted(dtypes))}"
    )


def _slow_rows(rows: list, dtype: tf.DType, key: str) -> np.ndarray:
    """Stacks rows one by one; raises at the first that is not like those before it."""
    arrays: list[np.ndarray] = []
    for index, row in enumerate(rows):
        try:
            arrays.append(_slow(row, dtype))
            _check_same_shape(arrays[0], arrays[-1])
        except ServingError as error:
            raise _bad_row(index, key, error) from None
    return np.stack(arrays)


def _check_same_shape(first: np.ndarray, other: np.ndarray) -> None:
    if first.size != other.size:
        raise invalid(f"Expecting tensor size: {first.size} but got: {other.size}")
    if first.shape != other.shape:
        raise invalid(f"Expecting shape {_dims(first)} but got: {_dims(other)}")


def _dims(array: np.ndarray) -> str:
    return f"[{','.join(map(str, array.shape))}]"


def _bad_row(index: int, key: str, error: ServingError) -> ServingError:
    which = f"key: {key} " if key else ""
    return invalid(f"Failed to process element: {index} {which}of 'instances' list. Error: {error}")


def _columns(value: Any, dtypes: Mapping[str, tf.DType]) -> dict[str, np.ndarray]:
    if not _is_named(value):
        if len(dtypes) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input "
                "tensors required as per tensorinfo_map"
            )
        value = dict.fromkeys(dtypes, value)
    for name in dtypes:
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {name: _tensor(value[name], dtype) for name, dtype in dtypes.items()}


def _tensor(value: Any, dtype: tf.DType) -> np.ndarray:
    array = _quick(value, dtype)
    return _slow(value, dtype) if array is None else array


def _quick(value: Any, dtype: tf.DType) -> np.ndarray | None:
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
        return _objects([text.encode("utf-8", "surrogateescape") for text in level])
    if dtype == tf.bool and kinds <= {bool}:
        return np.array(level, bool)
    if dtype in _FLOATS and kinds <= {int, float}:
        with np.errstate(over="ignore"):
            return np.array(level, np.float64).astype(dtype.as_numpy_dtype)
    if dtype in _INT_RANGES and kinds <= {int}:
        return _integers(level, dtype)
    return None


def _integers(level: list[int], dtype: tf.DType) -> np.ndarray | None:
    bounds = np.iinfo(_INT_RANGES[dtype])
    if level and not (bounds.min <= min(level) and max(level) <= bounds.max):
        return None
    return np.array(level, bounds.dtype).astype(dtype.as_numpy_dtype)


def _objects(values: list[bytes]) -> np.ndarray:
    return np.array([*values, None], object)[:-1]  # None keeps numpy from looking into them.


def _slow(value: Any, dtype: tf.DType) -> np.ndarray:
    """Returns the array of `value`, met one by one; raises at the first that does not fit."""
    shape = _shape(value)
    values: list[np.ndarray] = []
    _walk(value, 0, shape, dtype, values)
    flat = np.concatenate(values) if values else np.empty(0, dtype.as_numpy_dtype)
    return flat.reshape(shape)


def _shape(value: Any) -> list[int]:
    shape = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return shape


def _walk(value: Any, level: int, shape: list[int], dtype: tf.DType, values: list) -> None:
    rank = len(shape)
    if not isinstance(value, list):
        if level != rank:
            raise invalid(
                f"JSON Value: {_show(value)} found at incorrect level: {level + 1} "
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
        _walk(item, level + 1, shape, dtype, values)


def _scalar(value: Any, dtype: tf.DType) -> np.ndarray:
    if isinstance(value, dict) and dtype == tf.string:
        return _objects([_base64(value)])
    if not (dtype in _FLOATS or dtype in _INT_RANGES or dtype in (tf.string, tf.bool)):
        text = f"Conversion of JSON Value: {_show(value)} to type: {dtype.name}"
        raise ServingError(Code.UNIMPLEMENTED, text)
    array = _flat([value], {type(value)}, dtype)
    if array is None:
        raise invalid(
            f"JSON Value: {_show(value)} Type: {_kind(value)} is not of expected type: "
            f"{_type_name(dtype)}"
        )
    return array


def _base64(value: dict) -> bytes:
    if _is_named(value):
        raise invalid(f"JSON Value: {_show(value)} not formatted correctly for base64 data")
    text = value["b64"]
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError):
        raise invalid("Unable to base64 decode") from None


def _is_named(value: Any) -> bool:
    """Tells an object of named tensors from other values, `{"b64": …}` among them."""
    if not isinstance(value, dict):
        return False
    return not (value.keys() == {"b64"} and isinstance(value["b64"], str))


def _kind(value: Any) -> str:
    return {str: "String", dict: "Object", list: "Array", bool: str(value), type(None): "Null"}.get(
        type(value), "Number"
    )


def _type_name(dtype: tf.DType) -> str:
    return {tf.float32: "float", tf.float64: "double"}.get(dtype, dtype.name)


def _malformed(document: Mapping[str, Any], text: str) -> ServingError:
    return invalid(f"JSON Value: {_show(document)} {text}")


def _show(value: Any) -> str:
    return json.dumps(value, indent=4, ensure_ascii=False)[:_LONGEST_VALUE]
