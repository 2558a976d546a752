"""Arrays of one's own in an NPZ file, as `numpy.savez` writes it: `[records, …]` a field.

Sequences of several lengths are padded at their ends, and an array `NAME_lengths` `[records]` tells
how long each one is.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from keras_models.configs.records import Field
from keras_models.frontends.padding import LENGTHS
from pipelines.datasets.splits import DataError
from pipelines.sources.records import Record
from pipelines.sources.values import to_value


def read(
    path: Path, fields: Sequence[Field], names: Mapping[str, str]
) -> Iterator[tuple[str, Record | DataError]]:
    """Yields the place of each record, counted from 0, and the record or what is wrong with it.

    Raises:
        DataError: If the file is no NPZ, lacks an array, or has one of other records.
    """
    columns = _columns(path, {field.name: names.get(field.name, field.name) for field in fields})
    counts = {name: len(column) for name, column in columns.items()}
    if len(set(counts.values())) > 1:
        raise DataError(f"The arrays of {path} must be of as many records. Received: {counts}")
    for n in range(max(counts.values())):
        place = f"{path}, record {n}"
        try:
            record = {f.name: to_value(_value(columns, f.name, n), f) for f in fields}
            yield place, record
        except DataError as error:
            yield place, error


def _columns(path: Path, names: Mapping[str, str]) -> dict[str, np.ndarray]:
    """Returns the array of each field, and of its lengths where it has some."""
    try:
        with np.load(path) as arrays:
            missing = sorted(set(names.values()) - set(arrays.files))
            if missing:
                raise DataError(
                    f"{path} must hold the arrays {sorted(names.values())}. "
                    f"It has: {', '.join(sorted(arrays.files))}"
                )
            columns = {field: arrays[name] for field, name in names.items()}
            lengths = {
                field + LENGTHS: arrays[name + LENGTHS]
                for field, name in names.items()
                if name + LENGTHS in arrays.files
            }
    except (OSError, ValueError, zipfile.BadZipFile, AttributeError) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path} is no NPZ file that can be read: {error}") from error
    return columns | lengths


def _value(columns: Mapping[str, np.ndarray], name: str, n: int) -> np.ndarray | str:
    value = columns[name][n]
    if name + LENGTHS in columns:
        value = value[: columns[name + LENGTHS][n]]
    return str(value) if isinstance(value, np.str_) else value
