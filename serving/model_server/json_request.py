"""From the JSON of a predict request to arrays, with TF Serving's strictness.

The order of the checks and their texts are TF Serving's.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo

from serving.model_server import batch_padding, json_text, json_values
from serving.model_server.batch_padding import Padding
from serving.model_server.errors import ServingError, invalid

_BRACKETS = re.compile(r'"(?:\\.|[^"\\])*"|[][{}]')


class Inputs(NamedTuple):
    """The arrays of a request, and whether it was in the row form."""

    arrays: dict[str, np.ndarray]
    rows: bool


def parse(body: bytes, deepest: int = 0) -> dict[str, Any]:
    """Returns the JSON object in `body`; what follows it is passed over.

    Args:
        body: UTF-8.
        deepest: How deep it may be nested; 0 for as deep as Python can read.

    Raises:
        ServingError: It holds no JSON, or none that is an object.
    """
    if not body:
        raise invalid("JSON Parse error: The document is empty")
    if deepest and _depth(body.decode("latin-1")) > deepest:
        raise invalid(f"JSON Parse error: The document is nested deeper than {deepest}.")
    value = json_text.read(body)
    if not isinstance(value, dict):
        raise invalid(f"JSON Value: {json_values.show(value)} Is not object")
    return value


def signature_name(document: Mapping[str, Any]) -> str:
    """Returns the signature that the request names, or nothing for the default."""
    name = document.get("signature_name", "")
    if not isinstance(name, str):
        raise invalid(
            f"JSON Value: {json_values.show(document)} not formatted correctly. "
            "'signature_name' key must be a string value."
        )
    try:
        name.encode()
    except UnicodeEncodeError:
        raise invalid("JSON Parse error: Invalid encoding in string.") from None
    return name


def inputs(
    document: Mapping[str, Any],
    infos: Mapping[str, TensorInfo],
    paddings: Sequence[Padding] = (),
) -> Inputs:
    """Returns the arrays in `instances` (rows) or `inputs` (columns).

    Args:
        document: The request.
        infos: The signature's inputs, which say what types there must be.
        paddings: Inputs whose rows may be of unlike lengths. Where the input of those lengths is
            left out, it is filled in.

    Raises:
        ServingError: With TF Serving's message.
    """
    left_out = {padding.lengths for padding in paddings} - names(document)
    dtypes = {n: tf.as_dtype(info.dtype) for n, info in infos.items() if n not in left_out}
    if not dtypes:
        name = signature_name(document) or "DEFAULT"
        raise invalid(f"Failed to get input map for signature: {name}")
    if "instances" in document and "inputs" in document:
        raise _malformed(
            document,
            "Not formatted correctly expecting only one of 'inputs' or 'instances' keys to exist ",
        )
    rows = "instances" in document
    if not rows and "inputs" not in document:
        raise invalid("Missing 'inputs' or 'instances' key")
    by_input = {padding.input: padding for padding in paddings}
    if rows:
        arrays = _rows(document, dtypes, by_input)
    else:
        arrays = _columns(document["inputs"], dtypes, by_input)
    for padding in paddings:
        asked = padding.lengths in left_out & infos.keys()
        if asked and padding.input in arrays and arrays[padding.input].ndim > 1:
            lengths = [len(row) for row in _values(document, padding.input)]
            dtype = tf.as_dtype(infos[padding.lengths].dtype).as_numpy_dtype
            arrays[padding.lengths] = np.array(lengths, dtype)
    return Inputs(arrays, rows)


def names(document: Mapping[str, Any]) -> set[str]:
    """Returns the names that inputs have in a request; none where it names none."""
    rows = document.get("instances")
    named = rows[0] if isinstance(rows, list) and rows else document.get("inputs")
    return set(named) if json_values.is_named(named) else set()


def _values(document: Mapping[str, Any], name: str) -> list:
    """Returns the rows of an input that has been read before."""
    if "instances" in document:
        rows = document["instances"]
        return [row[name] for row in rows] if json_values.is_named(rows[0]) else rows
    columns = document["inputs"]
    return columns[name] if json_values.is_named(columns) else columns


def _rows(
    document: Mapping[str, Any],
    dtypes: Mapping[str, tf.DType],
    paddings: Mapping[str, Padding],
) -> dict[str, np.ndarray]:
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
    if json_values.is_named(rows[0]):
        return _named_rows(rows, dtypes, paddings)
    ((name, dtype),) = dtypes.items()
    return _plain_rows(rows, name, dtype, paddings.get(name))


def _plain_rows(
    rows: list, name: str, dtype: tf.DType, padding: Padding | None
) -> dict[str, np.ndarray]:
    array = None if any(map(json_values.is_named, rows)) else json_values.quick(rows, dtype)
    if array is not None:
        return {name: array}
    for index, row in enumerate(rows):
        if json_values.is_named(row):
            raise invalid(f"Expecting value/list but got object at item {index} of input list")
    return {name: _slow_rows(rows, dtype, "", padding)}


def _named_rows(
    rows: list, dtypes: Mapping[str, tf.DType], paddings: Mapping[str, Padding]
) -> dict[str, np.ndarray]:
    for index, row in enumerate(rows):
        _check_keys(index, row, dtypes)
    arrays = {}
    for name, dtype in dtypes.items():
        values = [row[name] for row in rows]
        array = json_values.quick(values, dtype)
        if array is None:
            array = _slow_rows(values, dtype, name, paddings.get(name))
        arrays[name] = array
    return arrays


def _check_keys(index: int, row: Any, dtypes: Mapping[str, tf.DType]) -> None:
    if not json_values.is_named(row):
        raise invalid(f"Expecting object but got list at item {index} of input list")
    if row.keys() == dtypes.keys():
        return
    for key in row:
        if key not in dtypes:
            raise _bad_row(index, key, invalid(f"JSON object: does not have named input: {key}"))
    wanted = ",".join(sorted(dtypes))
    raise invalid(
        f"Failed to process element: {index} of 'instances' list. "
        f"JSON object: {json_values.show(row)} keys must be equal to: {wanted}"
    )


def _slow_rows(rows: list, dtype: tf.DType, key: str, padding: Padding | None) -> np.ndarray:
    """Stacks rows one by one; raises at the first that is not like those before it."""
    arrays: list[np.ndarray] = []
    for index, row in enumerate(rows):
        try:
            arrays.append(json_values.walk(row, dtype))
            _check_alike(arrays[0], arrays[-1], padding)
        except ServingError as error:
            raise _bad_row(index, key, error) from None
    return batch_padding.stack(arrays, padding) if padding else np.stack(arrays)


def _check_alike(first: np.ndarray, other: np.ndarray, padding: Padding | None) -> None:
    if padding and first.ndim == other.ndim > 0:
        return
    _check_same_shape(first, other)


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


def _columns(
    value: Any, dtypes: Mapping[str, tf.DType], paddings: Mapping[str, Padding]
) -> dict[str, np.ndarray]:
    if not json_values.is_named(value):
        if len(dtypes) > 1:
            raise invalid(
                "inputs is a plain value/list, but expecting an object as multiple input "
                "tensors required as per tensorinfo_map"
            )
        value = dict.fromkeys(dtypes, value)
    for name in dtypes:
        if name not in value:
            raise invalid(f"Missing named input: {name} in 'inputs' object.")
    return {n: _column(value[n], dtype, paddings.get(n)) for n, dtype in dtypes.items()}


def _column(value: Any, dtype: tf.DType, padding: Padding | None) -> np.ndarray:
    if padding and isinstance(value, list) and all(isinstance(row, list) for row in value):
        array = json_values.quick(value, dtype)
        return _slow_rows(value, dtype, "", padding) if array is None else array
    return json_values.tensor(value, dtype)


def _malformed(document: Mapping[str, Any], text: str) -> ServingError:
    return invalid(f"JSON Value: {json_values.show(document)} {text}")


def _depth(text: str) -> int:
    """Returns how deep brackets are nested, those in strings not counted."""
    depth = deepest = 0
    for bracket in _BRACKETS.finditer(text):
        depth += {"[": 1, "{": 1, "]": -1, "}": -1}.get(bracket[0], 0)
        deepest = max(deepest, depth)
    return deepest
