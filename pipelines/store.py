"""Features of examples in files, any of which is read at its place, without reading the others.

The operating system maps the files into memory and keeps of them what there is room for, so that
they may be larger than memory. TensorFlow reads them by itself, wherever a dataset runs.
"""

from __future__ import annotations

import contextlib
import json
import math
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import tensorflow as tf

Features = Mapping[str, tf.Tensor | tf.RaggedTensor]
_VALUES, _SPLITS = ".values", ".splits"


class FeatureStore:
    """Features of examples, as `write_features` left them.

        store.json      the number of examples from each part, dtype and shape of every file
        NAME.values     the values of one example after the other
        NAME.splits     of a sequence: where each begins and, at last, where the last one ends

    Args:
        folder: Where they lie.
        cache: What this process keeps: on `disk`, the files mapped into its memory, of which no
            more is read than what is used; in `memory`, all that is in them; None: nothing, so
            that datasets may be sent to other processes, which map the files for each batch.

    Attributes:
        folder: Where they lie.
        examples: The number of examples from each part.
        sequences: The names of the features that are sequences.
    """

    def __init__(self, folder: Path, cache: Literal["disk", "memory"] | None = "disk"):
        record = json.loads((folder / "store.json").read_text(encoding="utf-8"))
        self.folder = folder
        self.examples: list[int] = record["examples"]
        self._arrays = {
            name: _Array(str(folder.absolute() / name), dtype, tuple(shape))
            for name, (dtype, shape) in record["arrays"].items()
        }
        with tf.device("CPU:0"):
            self._kept = {name: array.kept(cache) for name, array in self._arrays.items() if cache}
        self._names = [n.removesuffix(_VALUES) for n in self._arrays if n.endswith(_VALUES)]
        self.sequences = [name for name in self._names if name + _SPLITS in self._arrays]

    def gather(self, examples: tf.Tensor) -> dict[str, tf.Tensor | tf.RaggedTensor]:
        """Returns the features of the examples of these numbers, `[B]` int64, in that order."""
        return {name: self._gather(name, examples) for name in self._names}

    def values(self, name: str) -> tf.Tensor:
        """Returns a feature of all examples, one after the other, `[N, …]`."""
        return self._tensor(name + _VALUES)

    def lengths(self) -> np.ndarray:
        """Returns the length of every sequence of every example, `[examples, sequences]`."""
        lengths = np.empty([sum(self.examples), len(self.sequences)], np.int32)
        for column, name in enumerate(self.sequences):
            lengths[:, column] = np.diff(self._arrays[name + _SPLITS].numpy())
        return lengths

    def _gather(self, name: str, examples: tf.Tensor) -> tf.Tensor | tf.RaggedTensor:
        values = self.values(name)
        if name not in self.sequences:
            return tf.gather(values, examples)
        # Not from a ragged tensor of all examples, which would look at all its splits each time.
        splits = self._tensor(name + _SPLITS)
        places = tf.ragged.range(tf.gather(splits, examples), tf.gather(splits, examples + 1))
        return places.with_flat_values(tf.gather(values, places.flat_values))

    def _tensor(self, name: str) -> tf.Tensor:
        return self._kept[name] if name in self._kept else self._arrays[name].tensor()


def write_features(parts: Iterable[Iterable[Features]], folder: Path) -> FeatureStore:
    """Returns a store of features, written part by part and batch by batch.

    Args:
        parts: Batches of features of each part: tensors `[B, …]` of numbers, of one shape but for
            `B`, and sequences `[B, (T), …]`.
        folder: Where to write; what it held is lost.
    """
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    examples: list[int] = []
    writers: dict[str, _Writer] = {}
    with contextlib.ExitStack() as files:
        for batches in parts:
            examples.append(0)
            for features in batches:
                for name, feature in features.items():
                    if name not in writers:
                        writers[name] = files.enter_context(_Writer(name, feature, folder))
                    writers[name].add(feature)
                examples[-1] += rows(features)
    arrays = {name: of for writer in writers.values() for name, of in writer.arrays().items()}
    record = json.dumps({"examples": examples, "arrays": arrays}, indent=2)
    (folder / "store.json").write_text(record + "\n", encoding="utf-8")
    return FeatureStore(folder)


def rows(features: Features) -> int:
    """Returns the number of examples in a batch of features."""
    first = next(iter(features.values()))
    return int(first.nrows() if isinstance(first, tf.RaggedTensor) else tf.shape(first)[0])


class _Array(NamedTuple):
    """A file that holds an array as it is in memory."""

    path: str
    dtype: str
    shape: tuple[int, ...]

    def kept(self, cache: Literal["disk", "memory"]) -> tf.Tensor:
        """Returns the array as a `FeatureStore` keeps it."""
        if cache == "memory":
            return tf.constant(self.numpy())
        return tf.function(self.tensor)()  # as of now: alone, it may be what the file once held

    def tensor(self) -> tf.Tensor:
        """Returns the array, mapped by whoever computes it for as long as it is held."""
        if not math.prod(self.shape):  # an empty file cannot be mapped
            return tf.zeros(self.shape, self.dtype)
        return tf.raw_ops.ImmutableConst(
            dtype=self.dtype, shape=self.shape, memory_region_name=self.path
        )

    def numpy(self) -> np.ndarray:
        """Returns the array, read now."""
        dtype = tf.as_dtype(self.dtype).as_numpy_dtype
        return np.fromfile(self.path, dtype).reshape(self.shape)


class _Writer(contextlib.ExitStack):
    """Writes one feature to its files, batch by batch.

    Args:
        name: The feature's.
        first: A batch of it, of which it takes dtype and shape.
        folder: Where to write.
    """

    def __init__(self, name: str, first: tf.Tensor | tf.RaggedTensor, folder: Path):
        super().__init__()
        self._name, self._sequence = name, isinstance(first, tf.RaggedTensor)
        if first.dtype == tf.string or (self._sequence and first.ragged_rank > 1):
            raise ValueError(
                "A feature must be of numbers, and ragged in no dimension but the second. "
                f"Received: {name!r}, {first.dtype.name} {first.shape}"
            )
        self._dtype, self._shape = first.dtype.name, tuple(_values(first).shape[1:])
        self._values = self.enter_context((folder / f"{name}{_VALUES}").open("wb"))
        self._count, self._splits = 0, [np.zeros(1, np.int64)]
        self._splits_path = folder / f"{name}{_SPLITS}"

    def add(self, feature: tf.Tensor | tf.RaggedTensor) -> None:
        """Writes a batch."""
        values = _values(feature).numpy()
        if (feature.dtype.name, values.shape[1:]) != (self._dtype, self._shape):
            raise ValueError(
                "A feature must be of one dtype, and of one shape but for its length. Received: "
                f"{self._name!r}, {self._dtype} {self._shape} and later {feature.dtype.name} "
                f"{values.shape[1:]}"
            )
        if self._sequence:
            self._splits.append(feature.row_splits.numpy()[1:] + self._count)
        values.tofile(self._values)
        self._count += len(values)

    def arrays(self) -> dict[str, tuple[str, tuple[int, ...]]]:
        """Writes what is left, and returns dtype and shape of each file by its name."""
        arrays = {f"{self._name}{_VALUES}": (self._dtype, (self._count, *self._shape))}
        if self._sequence:
            splits = np.concatenate(self._splits)
            splits.tofile(self._splits_path)
            arrays[f"{self._name}{_SPLITS}"] = ("int64", splits.shape)
        return arrays


def _values(feature: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
    return feature.flat_values if isinstance(feature, tf.RaggedTensor) else feature
