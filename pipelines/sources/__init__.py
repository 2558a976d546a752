"""Where records come from: data sets of TFDS, files of the user's own, mixtures of these."""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce
from pathlib import Path
from typing import NamedTuple

import tensorflow as tf

from keras_models.configs.records import Field
from pipelines.datasets.splits import SPLITS, DataError, Split
from pipelines.job import Data, Origin
from pipelines.sources import own, records
from pipelines.sources.library import open_library


class Source(NamedTuple):
    """Raw records of each split, in an order that never changes.

    An element is a dictionary of tensors `[B, …]`, of some records together; ragged where records
    differ in their sizes.
    """

    splits: dict[Split, tf.data.Dataset]
    train: list[tf.data.Dataset]
    """The training records of each origin by itself."""
    description: str
    skipped_lines: int = 0


def open_source(data: Data, fields: Sequence[Field], folder: Path, fresh: bool = True) -> Source:
    """Returns the records of every split; those of several origins one after the other.

    Args:
        data: Names data sets, or files.
        fields: What a record must hold; where names do not tell, the columns in order.
        folder: Where checked copies of the user's own files are kept.
        fresh: Whether to read the user's own files. If not, the copies are read as they are, and
            changes of the files since then make no difference.

    Raises:
        DataError: If the data cannot be used as it is.
    """
    opened = [
        _open(origin, fields, folder / str(n), fresh) for n, origin in enumerate(data.origins)
    ]
    splits, descriptions, skipped = zip(*opened, strict=True)
    return Source(
        splits={
            split: reduce(tf.data.Dataset.concatenate, (each[split] for each in splits))
            for split in SPLITS
        },
        train=[each["train"] for each in splits],
        description=", ".join(descriptions),
        skipped_lines=sum(skipped),
    )


def _open(
    origin: Origin, fields: Sequence[Field], folder: Path, fresh: bool
) -> tuple[dict[Split, tf.data.Dataset], str, int]:
    """Returns the splits of one origin, what it is, and how many bad lines were skipped."""
    if origin.train is None:
        return *open_library(origin, fields), 0
    paths = {"train": origin.train, "validation": origin.validation, "test": origin.test}
    given = {split: path for split, path in paths.items() if path is not None}
    format = origin.format or own.format_of(origin.train)
    if format == "tfrecord":
        return _open_records(given, fields, origin, fresh), str(origin.train), 0
    if fresh:
        own.prepare(given, format, fields, origin.features, folder, origin.skip_bad_lines)
    skipped = sum(own.prepared(folder).skipped.values())
    return {split: own.read(folder, split, fields) for split in SPLITS}, str(origin.train), skipped


def _open_records(
    given: dict[Split, Path], fields: Sequence[Field], origin: Origin, fresh: bool
) -> dict[Split, tf.data.Dataset]:
    """Returns the records of TFRecord files, which stay where they are."""
    missing = [split for split in SPLITS if split not in given]
    if missing:
        raise DataError(
            f"TFRecord files must be given for each split. Received none for {missing}; say which "
            f"with --data.{missing[0]} 'FOLDER/NAME-*.tfrecord'."
        )
    splits = {}
    for split, pattern in given.items():
        files = records.files(pattern)
        if fresh:
            records.check(files, fields, origin.features)
        splits[split] = records.read(files, fields, origin.features)
    return splits
