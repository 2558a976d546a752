"""JSON lines of one's own: an object a line, UTF-8.

A field is a value of the object by its name, or by `NAME/NAME` one of an object in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from keras_models.configs.records import Field
from pipelines.datasets.splits import DataError
from pipelines.sources.records import Record
from pipelines.sources.tables import decoded, lines
from pipelines.sources.values import to_value


def read(
    path: Path, fields: Sequence[Field], names: Mapping[str, str]
) -> Iterator[tuple[str, Record | DataError]]:
    """Yields the place of each line that is not blank, and its record or what is wrong with it."""
    for place, line in lines(path):
        try:
            parsed = _parsed(line)
            record = {f.name: to_value(_at(parsed, names.get(f.name, f.name)), f) for f in fields}
            yield place, record
        except DataError as error:
            yield place, error


def _parsed(line: bytes) -> dict:
    try:
        parsed = json.loads(decoded(line))
    except json.JSONDecodeError as error:
        raise DataError(f"no JSON: {error}") from None
    if not isinstance(parsed, dict):
        raise DataError("no JSON object")
    return parsed


def _at(parsed: dict, path: str) -> object:
    value: object = parsed
    for name in path.split("/"):
        if not isinstance(value, dict) or name not in value:
            raise DataError(f"there is no `{path}`")
        value = value[name]
    return value
