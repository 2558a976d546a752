"""Files of a user's own: checked once, split, and copied in one format for all that comes later."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_models.configs.records import Field
from pipelines.datasets.splits import SPLITS, DataError, Split, split_of
from pipelines.sources import arrays, folders, json_lines, records, tables, whole
from pipelines.sources.records import Record

BAD_SHOWN = 5
FORMATS: dict[str, Callable] = {
    "tsv": tables.read_tsv,
    "csv": tables.read_csv,
    "jsonl": json_lines.read,
    "npz": arrays.read,
    "folder": folders.read,
    "text": whole.read,
}
_SUFFIXES = {".csv": "csv", ".jsonl": "jsonl", ".json": "jsonl", ".npz": "npz"}


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` has written.

    Args:
        format: The format of the given files.
        examples: The examples of each split.
        skipped: What was bad and left out, under the split whose given file had it: of a train
            file that is split it counts for `train`.
    """

    format: str
    examples: dict[Split, int]
    skipped: dict[Split, int]


def format_of(path: Path) -> str:
    """Returns the format of a file by its name, or "folder"; what has no known suffix is a TSV."""
    if path.is_dir():
        return "folder"
    return "tfrecord" if ".tfrecord" in path.name else _SUFFIXES.get(path.suffix.lower(), "tsv")


def prepare(
    paths: Mapping[Split, Path],
    format: str,
    fields: Sequence[Field],
    names: Mapping[str, str],
    folder: Path,
    skip_bad: bool = False,
) -> Prepared:
    """Writes the records of a user's files to `SPLIT.tfrecord`, a file a split.

    The files are read once. What is in `folder` is replaced as a whole, and not at all where the
    data is no use.

    A split without a file takes its share of the train file, by `split_of` the first field: 5 % go
    to validation and 5 % to test. A split with a file takes nothing, so that where only one of the
    two is missing, 95 % still train. Of a text that is one record they are the last parts.

    Args:
        paths: The file, or folder, of each split: of `"train"` and, if there are any, of
            `"validation"` and `"test"`.
        format: One of `FORMATS`.
        fields: What a record is to hold.
        names: What fields are called in the files, where they have other names.
        folder: Where to write; made if need be.
        skip_bad: Whether to skip and count what is bad. A file with nothing else is still an error.

    Raises:
        DataError: The files cannot be used; the message names files and lines.
    """
    _check(paths, format, folder)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=folder.parent) as temporary:
        made = Path(temporary, folder.name)
        made.mkdir()
        prepared = _write(paths, format, fields, names, made, skip_bad)
        record = json.dumps(dataclasses.asdict(prepared), indent=2)
        (made / "prepared.json").write_text(record + "\n", encoding="utf-8")
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(made, folder)
    return prepared


def prepared(folder: Path) -> Prepared:
    """Returns what `prepare` wrote to a folder.

    Raises:
        DataError: If the folder holds nothing that `prepare` wrote to the end.
    """
    record = folder / "prepared.json"
    if not record.is_file():
        raise DataError(f"{folder} must hold prepared data. Received a folder without {record}.")
    return Prepared(**json.loads(record.read_text(encoding="utf-8")))


def read(folder: Path, split: Split, fields: Sequence[Field]) -> tf.data.Dataset:
    """Returns the records of a split that `prepare` wrote, in the order they had, some together."""
    path = folder / f"{split}.tfrecord"
    if prepared(folder).format == "folder":
        return folders.opened(records.read([path], folders.stored(fields)), fields)
    return records.read([path], fields)


def _check(paths: Mapping[Split, Path], format: str, folder: Path) -> None:
    for split, path in paths.items():
        if not path.exists():
            raise DataError(f"The {split} file {path} does not exist.")
        if path.is_dir() and format != "folder":
            raise DataError(f"The {split} file {path} is a folder. Give one {format.upper()} file.")
        if not path.is_dir() and format == "folder":
            raise DataError(f"The {split} folder {path} is a file. Give a folder of folders.")
        if path.resolve().is_relative_to(folder.resolve()):
            raise DataError(f"The {split} file {path} would be overwritten. Prepare elsewhere.")


def _write(
    paths: Mapping[Split, Path],
    format: str,
    fields: Sequence[Field],
    names: Mapping[str, str],
    folder: Path,
    skip_bad: bool,
) -> Prepared:
    """Writes the files of all splits; returns their examples and what was bad, by split."""
    missing = [split for split in SPLITS if split not in paths]
    written = folders.stored(fields) if format == "folder" else fields
    examples, bad = dict.fromkeys(SPLITS, 0), _Bad()
    with contextlib.ExitStack() as stack:
        files = {
            split: stack.enter_context(tf.io.TFRecordWriter(str(folder / f"{split}.tfrecord")))
            for split in SPLITS
        }
        for source, path in paths.items():
            found = _aligned(FORMATS[format](path, fields, names), fields)
            for record in _good(source, path, found, bad):
                for split, part in _shares(record, source, path, format, fields[0].name, missing):
                    files[split].write(records.to_example(part, written))
                    examples[split] += 1
    if bad.shown and not skip_bad:
        raise DataError(
            f"{bad}\nCorrect what is bad, or skip and count it with --data.skip_bad_lines."
        )
    for split in SPLITS:
        if not examples[split]:
            raise DataError(
                f"{paths['train']} is too short to be split: none of its examples went to {split}. "
                f"Give more of them, or a file each for validation and test."
            )
    return Prepared(format, examples, bad.counts)


def _shares(
    record: Record, source: Split, path: Path, format: str, first: str, missing: Sequence[Split]
) -> Iterator[tuple[Split, Record]]:
    """Yields what splits get of a record: one of them all of it, or each a part of a long text."""
    key = record[first]
    if source != "train":
        yield source, record
    elif format == "text":
        for split, part in whole.shared_out(key, missing).items():
            yield split, {first: part}
    else:
        if format == "folder":
            key = os.path.relpath(key, os.fsencode(path))
        share = split_of(_text_of(key))
        yield share if share in missing else source, record


def _text_of(value: bytes | np.ndarray) -> str:
    """Returns a text that is another one for another value."""
    return value.decode(errors="replace") if isinstance(value, bytes) else value.tobytes().hex()


class _Bad:
    """The bad lines of each file, counted, and what is wrong with the first few."""

    def __init__(self):
        self.counts = dict.fromkeys(SPLITS, 0)
        self.shown = []

    def add(self, source: Split, complaint: str) -> None:
        self.counts[source] += 1
        if len(self.shown) < BAD_SHOWN:
            self.shown.append(complaint)

    def __str__(self) -> str:
        count = sum(self.counts.values())
        title = f"{count} bad line{'s' if count > 1 else ''}"
        if count > len(self.shown):
            title += f", of which the first {len(self.shown)}"
        return "\n  ".join([f"{title}:", *self.shown])


def _aligned(
    found: Iterable[tuple[str, Record | DataError]], fields: Sequence[Field]
) -> Iterator[tuple[str, Record | DataError]]:
    """Yields places and records, and what is wrong with fields that do not go with others."""
    pairs = [(field.name, field.aligned_with) for field in fields if field.aligned_with]
    for place, record in found:
        for name, other in pairs if not isinstance(record, DataError) else ():
            tokens, wanted = len(record[name].split()), len(record[other].split())
            if tokens != wanted:
                record = DataError(f"`{name}` has {tokens} tokens, not {wanted} as `{other}`")
                break
        yield place, record


def _good(
    source: Split, path: Path, found: Iterable[tuple[str, Record | DataError]], bad: _Bad
) -> Iterator[Record]:
    """Yields the good records of a file, and adds the others to `bad`."""
    empty = True
    for place, record in found:
        if isinstance(record, DataError):
            bad.add(source, f"{place}: {record}")
        else:
            empty = False
            yield record
    if empty and bad.counts[source]:
        raise DataError(f"No line of {path} can be used. {bad}")
    if empty:
        raise DataError(f"The {source} file {path} is empty.")
