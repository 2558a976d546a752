"""Data sets of TFDS: those of its library, and our own builders in `pipelines/datasets`."""

from __future__ import annotations

import contextlib
import difflib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence

import tensorflow as tf
import tensorflow_datasets as tfds

from keras_models.configs.records import Field
from pipelines.datasets.splits import SPLITS, DataError, Split
from pipelines.job import Origin
from pipelines.sources.contract import convert, require, together


def open_library(
    origin: Origin, fields: Sequence[Field]
) -> tuple[dict[Split, tf.data.Dataset], str]:
    """Returns the records of every split, some together, and the full name of the data set.

    It is downloaded and prepared where it is not there yet.

    Raises:
        DataError: If it cannot be had, or has not what is asked for.
    """
    builder = builder_of(origin)
    takes = {field.name: _Taken(builder, field, origin.features) for field in fields}
    prepare(builder)
    decoders: dict = {}
    for taken in takes.values():
        if taken.undecoded:
            _put(decoders, taken.path, tfds.decode.SkipDecoding())

    def take(record: dict) -> dict[str, tf.Tensor]:
        return {name: taken(record) for name, taken in takes.items()}

    splits = {}
    for split in SPLITS:
        read = _read(builder, origin.splits.get(split, split), decoders)
        splits[split] = together(read.map(take, tf.data.AUTOTUNE))
    return splits, builder.info.full_name


def builder_of(origin: Origin, **options) -> tfds.core.DatasetBuilder:
    """Returns the builder of a data set, of ours or of TFDS.

    Args:
        origin: Names it.
        options: Further arguments of the builder.

    Raises:
        DataError: If there is none.
    """
    if importlib.util.find_spec(f"pipelines.datasets.{origin.name}"):
        importlib.import_module(f"pipelines.datasets.{origin.name}")  # makes its builder known
    full_name = f"{origin.name}/{origin.config}" if origin.config else origin.name
    try:
        return tfds.builder(full_name, data_dir=origin.dir, **options)
    except tfds.core.DatasetNotFoundError as error:
        near = difflib.get_close_matches(origin.name, tfds.list_builders(), n=3)
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise DataError(f"There is no data set {full_name!r}.{hint}") from error
    except ValueError as error:
        raise DataError(f"There is no data set {full_name!r}: {error}") from error


def prepare(builder: tfds.core.DatasetBuilder, **options) -> None:
    """Downloads and prepares a data set where it is not there yet.

    Args:
        builder: Of the data set.
        options: Further arguments of `download_and_prepare`.

    Raises:
        DataError: If it could not be done; the message says where to put what is missing.
    """
    if not sys.stderr.isatty():
        tfds.disable_progress_bar()
    try:
        with contextlib.redirect_stdout(sys.stderr):  # it tells of its progress
            builder.download_and_prepare(**options)
    except DataError:
        raise
    # Of whatever kind: a site that is gone, a check sum, a file to be fetched by hand, a package.
    except Exception as error:
        by_hand = builder.MANUAL_DOWNLOAD_INSTRUCTIONS
        raise DataError(
            f"The data set {builder.info.full_name} is not in {builder.data_dir}, and could not "
            f"be made: {type(error).__name__}: {error}\n"
            "Prepare it where it can be downloaded, and copy that folder here; or say with "
            "--data.dir or TFDS_DATA_DIR which folder holds "
            f"{os.path.relpath(builder.data_dir, builder.data_dir_root)}."
            + (f"\nTFDS says of it: {' '.join(by_hand.split())}" if by_hand else "")
        ) from error


def _read(builder: tfds.core.DatasetBuilder, split: str, decoders: dict) -> tf.data.Dataset:
    reading = tfds.ReadConfig(try_autocache=False, interleave_cycle_length=1)
    try:
        return builder.as_dataset(split=split, read_config=reading, decoders=decoders or None)
    except ValueError as error:
        raise DataError(
            f"The data set {builder.info.full_name} must have the split {split!r}. It has: "
            f"{', '.join(builder.info.splits)}. One split can be shared out, as by --data.splits "
            f"train 'train[:90%]' validation 'train[90%:95%]' test 'train[95%:]'. {error}"
        ) from error


class _Taken:
    """Takes a field from a record of a data set.

    Attributes:
        path: Where in a record it is.
        undecoded: Whether the record is to hold the feature as the file it was.
    """

    def __init__(self, builder: tfds.core.DatasetBuilder, field: Field, names: dict[str, str]):
        self._field, self._classes = field, None
        info, name = builder.info, names.get(field.name, field.name)
        self.path, feature = _find(info.features, name)
        if feature is None:
            raise DataError(
                f"The data set {info.full_name} must have a feature {name!r}. It has: "
                f"{', '.join(sorted(_paths(info.features)))}. Fields can be called by other names: "
                f"--data.features {field.name} NAME"
            )
        text, image = field.dtype == "string", isinstance(feature, tfds.features.Image)
        self.undecoded = text and image
        dtype, shape = tf.as_dtype(feature.tf_dtype), tf.TensorShape(feature.shape)
        if text and isinstance(feature, tfds.features.ClassLabel):
            self._classes, dtype = feature.names, tf.string
        if self.undecoded:
            dtype, shape = tf.string, tf.TensorShape([])
        require(field, dtype, shape, f"{name!r} of {info.full_name}")

    def __call__(self, record: dict) -> tf.Tensor:
        value = record
        for part in self.path:
            value = value[part]
        if self._classes is not None:
            value = tf.gather(tf.constant(self._classes), value)
        return convert(value, self._field)


def _find(features, name: str) -> tuple[tuple[str, ...], tfds.features.FeatureConnector | None]:
    """Returns where a feature is, whose name may hold slashes itself, and the feature."""
    if name in features:
        return (name,), features[name]
    for head in features:
        inside = features[head]
        if name.startswith(f"{head}/") and isinstance(inside, tfds.features.FeaturesDict):
            path, feature = _find(inside, name.removeprefix(f"{head}/"))
            return (head, *path), feature
    return (), None


def _paths(features, before: str = "") -> list[str]:
    paths = []
    for name, feature in features.items():
        nested = isinstance(feature, tfds.features.FeaturesDict)
        paths += _paths(feature, f"{before}{name}/") if nested else [before + name]
    return paths


def _put(tree: dict, path: Sequence[str], leaf: object) -> None:
    *branches, last = path
    for branch in branches:
        tree = tree.setdefault(branch, {})
    tree[last] = leaf
