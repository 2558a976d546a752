"""Data sets, one a file: TFDS builders, found by their names, and files of the user's own."""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf
import tensorflow_datasets as tfds

from pipelines.datasets import tsv
from pipelines.datasets.splits import SPLITS, DataError
from pipelines.job import Data

_RECORDS_AT_ONCE = 1024  # frontends are faster on many records than on one


class Source(NamedTuple):
    """Raw records of each split, in an order that never changes.

    An element is a dictionary of tensors `[B]`, of some records together.
    """

    splits: dict[str, tf.data.Dataset]
    description: str
    skipped_lines: int = 0


def open_source(data: Data, fields: Sequence[str], folder: Path, fresh: bool = True) -> Source:
    """Returns the records of every split.

    Args:
        data: Names a data set, or files.
        fields: The features a record must have; a TSV's columns, in order.
        folder: Where normalised copies of the user's own files are kept.
        fresh: Whether to read the user's own files. If not, the copies are read as they are, and
            changes of the files since then make no difference.

    Raises:
        DataError: If the data cannot be used as it is.
    """
    if data.train is not None:
        return _open_tsv(data, fields, folder, fresh)
    return _open_tfds(data, fields)


def _open_tsv(data: Data, fields: Sequence[str], folder: Path, fresh: bool) -> Source:
    paths = {"train": data.train, "validation": data.validation, "test": data.test}
    given = {split: path for split, path in paths.items() if path is not None}
    if fresh:
        tsv.prepare(given, tuple(fields), folder, skip_bad_lines=data.skip_bad_lines)
    prepared = tsv.prepared(folder)
    splits = {split: tsv.read(prepared.paths[split], tuple(fields)) for split in SPLITS}
    return Source(_in_batches(splits), str(data.train), sum(prepared.skipped.values()))


def _open_tfds(data: Data, fields: Sequence[str]) -> Source:
    if importlib.util.find_spec(f"pipelines.datasets.{data.name}"):
        importlib.import_module(f"pipelines.datasets.{data.name}")  # makes its builder known
    full_name = f"{data.name}/{data.config}" if data.config else data.name
    try:
        builder = tfds.builder(full_name, data_dir=data.dir)
    except (tfds.core.DatasetNotFoundError, ValueError) as error:
        raise DataError(f"There is no data set {full_name!r}: {error}") from error
    _require_features(builder, fields)
    with contextlib.redirect_stdout(sys.stderr):  # it tells of its progress
        builder.download_and_prepare()
    reading = tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1)
    splits = {
        split: builder.as_dataset(split=split, read_config=reading).map(
            lambda record: {field: record[field] for field in fields}
        )
        for split in SPLITS
    }
    return Source(_in_batches(splits), builder.info.full_name)


def _in_batches(splits: dict[str, tf.data.Dataset]) -> dict[str, tf.data.Dataset]:
    return {split: records.batch(_RECORDS_AT_ONCE) for split, records in splits.items()}


def _require_features(builder: tfds.core.DatasetBuilder, fields: Sequence[str]) -> None:
    missing = [field for field in fields if field not in builder.info.features]
    if missing:
        raise DataError(
            f"The data set {builder.info.full_name} must have the features {list(fields)}. "
            f"Missing: {missing}. It has: {sorted(builder.info.features)}"
        )
