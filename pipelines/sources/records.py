"""Records in TFRecord files, as `tf.train.Example`s.

A feature of a record is a list of bytes, of integers or of floats: the values of a field, row by
row. Where a field declares more than one of its sizes as None, a feature `NAME/shape` has all.
"""

from __future__ import annotations

import glob
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_models.configs.records import Field
from pipelines.datasets.splits import DataError
from pipelines.sources.contract import RECORDS_TOGETHER, convert, together

Record = Mapping[str, bytes | np.ndarray]
_SHAPE = "/shape"


def files(pattern: Path) -> list[Path]:
    """Returns the files of a path, which may have wildcards, in the order of their names.

    Raises:
        DataError: If there is none.
    """
    found = sorted(Path(name) for name in glob.glob(str(pattern)))
    if not found:
        raise DataError(f"There is no file {pattern}.")
    return found


def read(
    paths: Iterable[Path], fields: Sequence[Field], names: Mapping[str, str] | None = None
) -> tf.data.Dataset:
    """Returns the records of some files, one file after the other, some records together.

    Args:
        paths: The files.
        fields: What a record is to hold.
        names: What a field is called in the files, where that is another name.
    """
    names = {field.name: field.name for field in fields} | dict(names or {})
    wanted = {}
    for field in fields:
        wanted |= _features(field, names[field.name])

    def parse(examples: tf.Tensor) -> dict[str, tf.Tensor | tf.RaggedTensor]:
        parsed = tf.io.parse_example(examples, wanted)
        return {
            field.name + suffix: parsed[names[field.name] + suffix]
            for field in fields
            for suffix in ("", _SHAPE)
            if names[field.name] + suffix in parsed
        }

    every = tf.data.Dataset.from_tensor_slices([os.fspath(path) for path in paths])
    examples = every.flat_map(tf.data.TFRecordDataset).batch(RECORDS_TOGETHER)
    parsed = examples.map(parse, tf.data.AUTOTUNE)
    if all(None not in field.shape[1:] for field in fields):
        return parsed.map(lambda batch: {f.name: _rows(batch[f.name], f) for f in fields})
    each = parsed.unbatch().map(lambda one: {field.name: _shaped(one, field) for field in fields})
    return together(each)


def check(paths: Iterable[Path], fields: Sequence[Field], names: Mapping[str, str]) -> None:
    """Reads some files from their beginnings to their ends.

    Raises:
        DataError: If one cannot be, or has no records.
    """
    for path in paths:
        try:
            count = sum(1 for _ in read([path], fields, names))
        except (tf.errors.OpError, ValueError) as error:
            raise DataError(
                f"{path} must hold records of {[field.name for field in fields]}. "
                f"Received{_first_of(path)}: {error}"
            ) from error
        if not count:
            raise DataError(f"{path} holds no records.")


def to_example(record: Record, fields: Sequence[Field]) -> bytes:
    """Returns a record as `read` reads it: bytes, or an array of its dtype and shape, a field."""
    features = {}
    for field in fields:
        value = record[field.name]
        array = np.asarray(value, object if field.dtype == "string" else None)
        features[field.name] = _feature(array.ravel(), field.dtype)
        if None in field.shape[1:]:
            features[field.name + _SHAPE] = _feature(np.array(array.shape), "int64")
    return tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString()


def _features(field: Field, name: str) -> dict:
    """Returns the features of a record that a field is made of."""
    kind = {"string": tf.string, "float32": tf.float32}.get(field.dtype, tf.int64)
    if None not in field.shape:
        return {name: tf.io.FixedLenFeature(field.shape, kind)}
    values = {name: tf.io.RaggedFeature(kind)}
    if None in field.shape[1:]:
        values[name + _SHAPE] = tf.io.FixedLenFeature([len(field.shape)], tf.int64)
    return values


def _feature(values: np.ndarray, dtype: str) -> tf.train.Feature:
    if dtype == "string":
        return tf.train.Feature(bytes_list=tf.train.BytesList(value=values.tolist()))
    if dtype == "float32":
        return tf.train.Feature(float_list=tf.train.FloatList(value=values))
    return tf.train.Feature(int64_list=tf.train.Int64List(value=values))


def _rows(values: tf.Tensor | tf.RaggedTensor, field: Field) -> tf.Tensor | tf.RaggedTensor:
    """Returns the values of some records, `[B, …]`, of which the length alone may differ."""
    if None not in field.shape:
        return tf.cast(values, field.dtype) if field.dtype != "string" else values
    rest = field.shape[1:]
    flat = tf.reshape(values.flat_values, [-1, *rest])
    flat = flat if field.dtype == "string" else tf.cast(flat, field.dtype)
    return tf.RaggedTensor.from_row_splits(flat, values.row_splits // math.prod(rest))


def _shaped(record: Mapping[str, tf.Tensor], field: Field) -> tf.Tensor:
    """Returns the value of one record, in its own shape."""
    sizes = record.get(field.name + _SHAPE, [-1 if n is None else n for n in field.shape])
    return convert(tf.reshape(record[field.name], sizes), field)


def _first_of(path: Path) -> str:
    """Returns what the first record of a file holds, as a part of a sentence."""
    try:
        (record,) = tf.data.TFRecordDataset(os.fspath(path)).take(1).as_numpy_iterator()
        held = tf.train.Example.FromString(record).features.feature
        return f" records of {sorted(held)}"
    except Exception:
        return ""
