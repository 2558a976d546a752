"""Images or sounds of one's own: a file each, in a folder that is called as its class.

    FOLDER/CLASS/….png, .jpg, .jpeg, .bmp, .gif      images
    FOLDER/CLASS/….wav                               sounds, 16 bits a sample, all at one rate

The first field of a record is what the file holds; the second, if there is one, is the class. Files
stay where they are, and are read when they are wanted.
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import tensorflow as tf

from keras_models.configs.records import Field
from pipelines.datasets.splits import DataError
from pipelines.sources.contract import decode, together
from pipelines.sources.records import Record
from pipelines.sources.values import to_value

_IMAGES, _SOUNDS = (".png", ".jpg", ".jpeg", ".bmp", ".gif"), (".wav",)
_CHECKED_TOGETHER = 256


def read(
    path: Path, fields: Sequence[Field], names: Mapping[str, str]
) -> Iterator[tuple[str, Record | DataError]]:
    """Yields each file, and its record or what is wrong with it: the path in the first field.

    Raises:
        DataError: If the task's fields are not those of a folder.
    """
    if names or len(fields) > 2:
        raise DataError(
            f"Of a folder, the first field is a file and the second its class, whatever they are "
            f"called. Received: {[field.name for field in fields]}, {dict(names)}"
        )
    files = (file for file in sorted(path.rglob("*")) if file.is_file())
    shown = (file for file in files if not file.name.startswith("."))
    rates: set[int] = set()
    with ThreadPoolExecutor() as threads:
        while some := list(itertools.islice(shown, _CHECKED_TOGETHER)):
            for file, checked in [(f, threads.submit(_check, f, fields[0])) for f in some]:
                try:
                    rates.add(checked.result())
                    yield str(file), _record(file, path, fields, rates)
                except DataError as error:
                    yield str(file), error


def stored(fields: Sequence[Field]) -> list[Field]:
    """Returns the fields of a record as `read` gives it."""
    return [Field(fields[0].name), *fields[1:]]


def opened(records: tf.data.Dataset, fields: Sequence[Field]) -> tf.data.Dataset:
    """Returns records as the fields declare them, some together."""
    first = fields[0]

    def open_file(record: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        return {**record, first.name: decode(tf.io.read_file(record[first.name]), first)}

    return together(records.unbatch().map(open_file, tf.data.AUTOTUNE))


def _record(file: Path, root: Path, fields: Sequence[Field], rates: set[int]) -> Record:
    if len(rates) > 1:
        raise DataError(f"samples at another rate: of {sorted(rates)} a second one must be for all")
    record: dict = {fields[0].name: os.fspath(file).encode()}
    for field in fields[1:]:
        inside = file.relative_to(root).parts
        if len(inside) < 2:
            raise DataError("in no folder that is called as its class")
        record[field.name] = to_value(inside[0], field)
    return record


def _check(file: Path, field: Field) -> int:
    """Returns the rate of a file's samples, 0 for an image.

    Raises:
        DataError: If the file is none that can be decoded as the field declares.
    """
    suffix = file.suffix.lower()
    if suffix not in _IMAGES + _SOUNDS:
        raise DataError(f"neither an image nor a sound: {', '.join(_IMAGES + _SOUNDS)}")
    contents = tf.constant(file.read_bytes())
    try:
        if suffix in _IMAGES:
            value, rate = tf.io.decode_image(contents, expand_animations=False), 0
        else:
            value, rate = tf.audio.decode_wav(contents)
        if len(field.shape) == 1 and value.shape[-1] != 1:
            raise DataError(f"{value.shape[-1]} channels, not 1")
        decode(contents, field)
    except (tf.errors.OpError, ValueError) as error:
        if isinstance(error, DataError):
            raise
        said = str(getattr(error, "message", error)).partition("\n")[0]
        raise DataError(re.sub(r"\{\{.*?\}\} | \[Op:.*", "", said)) from None
    if not tf.size(value):
        raise DataError("it holds nothing")
    return int(rate)
