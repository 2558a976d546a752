"""Names of classes to numbers and back: the same code in tf.data and in the served graph."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import tensorflow as tf

# The number of a name that training did not know.
UNKNOWN = -1


def write_classes(batches: Iterable[tf.Tensor], field: str, folder: Path) -> None:
    """Writes the name of every class, in their order, one a line: line `n` is class `n`.

    Args:
        batches: `[B]` string each, the names of the classes of examples, UTF-8.
        field: What the label is called.
        folder: Where to write `FIELD.txt`.

    Raises:
        ValueError: If a name is empty or has a line break, or there are not two at least.
    """
    write_names(
        sorted({name for batch in batches for name in batch.numpy().tolist()}), field, folder
    )


def write_names(names: Sequence[bytes], field: str, folder: Path) -> None:
    """Writes the names of classes, by their numbers. Takes and raises what `write_classes` does."""
    unfit = [name for name in names if not name or b"\n" in name or b"\r" in name]
    if unfit or len(names) < 2:
        raise ValueError(
            f"`{field}` must name two classes at least, each in one line that is not empty. "
            f"Received: {unfit or names}"
        )
    folder.mkdir(parents=True, exist_ok=True)
    _path(field, folder).write_bytes(b"".join(name + b"\n" for name in names))


def _path(field: str, folder: Path) -> Path:
    return folder / f"{field}.txt"


class LabelFrontend(tf.Module):
    """Turns names of classes into their numbers, and numbers into names.

    Args:
        field: Name of the label in records, features and served signatures.
        folder: Holds the names, as `write_classes` left them. The file becomes an asset of an
            exported model.

    Attributes:
        classes: The names by number.
    """

    def __init__(self, field: str, folder: Path):
        super().__init__()
        path = _path(field, folder)
        self.classes = tuple(path.read_text(encoding="utf-8").split("\n")[:-1])
        whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
        self._numbers = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(str(path), tf.string, whole, tf.int64, number), UNKNOWN
        )
        self._names = tf.lookup.StaticHashTable(
            tf.lookup.TextFileInitializer(str(path), tf.int64, number, tf.string, whole), ""
        )

    def encode(self, names: tf.Tensor) -> tf.Tensor:
        """Returns the number of each name, int32, for strings of any shape; `UNKNOWN` if none."""
        return tf.cast(self._numbers.lookup(names), tf.int32)

    def decode(self, numbers: tf.Tensor) -> tf.Tensor:
        """Returns the name of each number, a string, for integers of any shape."""
        return self._names.lookup(tf.cast(numbers, tf.int64))
