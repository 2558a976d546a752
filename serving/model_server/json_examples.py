"""From the JSON of a classify or regress request to `tf.Example`s, with TF Serving's strictness."""

from collections.abc import Mapping
from typing import Any

from tensorflow.core.example.example_pb2 import Example
from tensorflow.core.example.feature_pb2 import Feature
from tensorflow_serving.apis.input_pb2 import Input

from serving.model_server import json_values
from serving.model_server.errors import ServingError, invalid

_LARGEST_INT64 = 2**63 - 1
_SMALLEST_INT64 = -(2**63)
_LARGEST_UINT64 = 2**64 - 1
_KINDS = {"bytes_list": "bytes", "float_list": "float", "int64_list": "int64"}


def parse(document: Mapping[str, Any]) -> Input:
    """Returns the examples of a request, and the context that they share where there is one.

    Raises:
        ServingError: With TF Serving's message.
    """
    given = Input()
    listed = given.example_list
    if "context" in document:
        listed = given.example_list_with_context
        _fill(document["context"], listed.context)
    for value in _listed(document):
        _fill(value, listed.examples.add())
    return given


def _listed(document: Mapping[str, Any]) -> list:
    if "examples" not in document:
        text = "When method is classify, key 'examples' is expected and was not found"
    elif not isinstance(document["examples"], list):
        text = "Expecting 'examples' value to be an list/array"
    elif not document["examples"]:
        text = "'examples' value is an empty array"
    else:
        return document["examples"]
    raise invalid(f"JSON Value: {json_values.show(document)} {text}")


def _fill(value: Any, example: Example) -> None:
    if not isinstance(value, dict):
        raise invalid(f"Example must be JSON object but got JSON {json_values.kind(value)}")
    features = example.features
    features.SetInParent()
    for name, content in value.items():
        try:
            feature = features.feature[name]
        except UnicodeEncodeError:
            raise invalid("JSON Parse error: Invalid encoding in string.") from None
        for item in content if isinstance(content, list) else [content]:
            _add(name, item, feature)


def _add(name: str, value: Any, feature: Feature) -> None:
    field, item = _field(name, value)
    kind = feature.WhichOneof("kind")
    if kind not in (None, field):
        raise invalid(f"Unexpected element type in feature: {name} expecting type: {_KINDS[kind]}")
    getattr(feature, field).value.append(item)


def _field(name: str, value: Any) -> tuple[str, Any]:
    """Returns the list of a feature that a value goes into, and the value as it goes there."""
    if isinstance(value, bool):
        return "int64_list", int(value)
    if isinstance(value, str):
        return "bytes_list", json_values.utf8(value)
    if isinstance(value, float):
        return "float_list", value
    if isinstance(value, int):
        return _number(name, value)
    if isinstance(value, dict) and not json_values.is_named(value):
        return "bytes_list", json_values.from_base64(value)
    raise _unexpected(name, value)


def _number(name: str, value: int) -> tuple[str, int | float]:
    if _SMALLEST_INT64 <= value <= _LARGEST_INT64:
        return "int64_list", value
    if 0 < value <= _LARGEST_UINT64:
        raise invalid(f"Feature: {name} has uint64 element. Only int64 is supported.")
    return "float_list", float(value)


def _unexpected(name: str, value: Any) -> ServingError:
    kind = json_values.kind(value)
    return invalid(f"Feature: {name} has element with unexpected JSON type: {kind}")
