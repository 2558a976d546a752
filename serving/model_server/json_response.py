"""From arrays to the JSON of a predict response, laid out as TF Serving lays it out."""

import base64
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
from tensorflow_serving.apis.classification_pb2 import ClassificationResult
from tensorflow_serving.apis.regression_pb2 import RegressionResult

from serving.model_server.errors import invalid

_INDENT = "    "
_DIGITS = {np.dtype(np.float64): 17, np.dtype(np.float32): 9}
_NAMES = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}


def rows(outputs: Mapping[str, np.ndarray]) -> str:
    """Returns `{"predictions": [...]}`, one element a row.

    Raises:
        ServingError: The outputs do not have as many rows as one another.
    """
    size = _batch_size(outputs)
    columns = {name: leaves(name, array) for name, array in sorted(outputs.items())}
    if len(columns) == 1:
        (column,) = columns.values()
        body = ", ".join(map(_on_one_line, column))
        return _document("predictions", f"[{body}\n{_INDENT}]" if size else "[]")
    elements = [
        _object({name: _on_one_line(column[row]) for name, column in columns.items()}, depth=2)
        for row in range(size)
    ]
    return _document("predictions", _bracket("[]", elements, depth=1))


def columns(outputs: Mapping[str, np.ndarray]) -> str:
    """Returns `{"outputs": …}`: a value for one output, an object for several."""
    single = len(outputs) == 1
    texts = {
        name: _spread(leaves(name, array), depth=1 if single else 2)
        for name, array in sorted(outputs.items())
    }
    return _document("outputs", *texts.values() if single else [_object(texts, depth=1)])


def classifications(result: ClassificationResult) -> str:
    """Returns `{"results": [[["label", score], …], …]}`, one list an example."""
    lists = [_on_one_line(_pairs(each.classes)) for each in result.classifications]
    return _document("results", f"[{', '.join(lists)}\n{_INDENT}]")


def regressions(result: RegressionResult) -> str:
    """Returns `{"results": [value, …]}`, one value an example."""
    values = np.array([each.value for each in result.regressions], np.float32)
    return _document("results", f"[{', '.join(floats(values))}]")


def leaves(name: str, array: np.ndarray) -> Any:
    """Returns `array` as nested lists of the texts of its values."""
    texts = _formatter(name, array)(array.ravel())
    return np.array([*texts, None], object)[:-1].reshape(array.shape).tolist()


def floats(values: np.ndarray) -> list[str]:
    """Returns the texts of floats: six digits where they tell all, else as many as needed."""
    if values.dtype not in _DIGITS:
        values = values.astype(np.float32)
    wide = values.tolist()
    texts = [f"{value:.6g}" for value in wide]
    with np.errstate(over="ignore"):
        same = np.array(texts, np.float64).astype(values.dtype) == values
    for index in np.flatnonzero(~same):
        texts[index] = f"{wide[index]:.{_DIGITS[values.dtype]}g}"
    return [_as_decimal(text) for text in texts]


def _pairs(classes) -> list[list[str]]:
    scores = floats(np.array([each.score for each in classes], np.float32))
    labels = [json.dumps(each.label, ensure_ascii=False) for each in classes]
    return list(map(list, zip(labels, scores, strict=True)))


def _as_decimal(text: str) -> str:
    if text in _NAMES:
        return _NAMES[text]
    return text if "." in text or "e" in text else f"{text}.0"


def _formatter(name: str, array: np.ndarray) -> Callable[[np.ndarray], list[str]]:
    dtype = tf.as_dtype(array.dtype)
    if dtype == tf.string:
        return _base64_objects if name.endswith("_bytes") else _strings
    if dtype == tf.bool:
        return lambda values: ["true" if value else "false" for value in values]
    if dtype.is_integer:
        return lambda values: list(map(str, values.tolist()))
    if dtype.is_floating:
        return floats
    raise invalid(f"Failed to write JSON value for tensor type: {dtype.name}")


def _strings(values: np.ndarray) -> list[str]:
    texts = (value.decode("utf-8", "surrogateescape") for value in values)
    return [json.dumps(text, ensure_ascii=False) for text in texts]


def _base64_objects(values: np.ndarray) -> list[str]:
    return [f'{{\n"b64": "{base64.b64encode(value).decode()}"\n}}' for value in values]


def _batch_size(outputs: Mapping[str, np.ndarray]) -> int:
    size = -1
    for name, array in sorted(outputs.items()):
        if not array.ndim:
            raise invalid(f"Tensor name: {name} has no shape information ")
        if size >= 0 and len(array) != size:
            raise invalid(
                f"Tensor name: {name} has inconsistent batch size: {len(array)} expecting: {size}"
            )
        size = len(array)
    return size


def _on_one_line(value: Any) -> str:
    return f"[{', '.join(map(_on_one_line, value))}]" if isinstance(value, list) else value


def _spread(value: Any, depth: int) -> str:
    if not isinstance(value, list):
        return value
    return _bracket("[]", [_spread(item, depth + 1) for item in value], depth)


def _object(members: Mapping[str, str], depth: int) -> str:
    return _bracket("{}", [f"{json.dumps(k)}: {text}" for k, text in members.items()], depth)


def _bracket(pair: str, items: list[str], depth: int) -> str:
    if not items:
        return pair
    inner = ",\n".join(_INDENT * (depth + 1) + item for item in items)
    return f"{pair[0]}\n{inner}\n{_INDENT * depth}{pair[1]}"


def _document(key: str, text: str) -> str:
    return _object({key: text}, depth=0)
