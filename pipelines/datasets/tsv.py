"""Two columns of text from tab-separated files of one's own.

A file is UTF-8, one example a line, two fields with a tab between them; no header, no quoting. A
byte order mark, CRLF and white space around a field are taken off, blank lines are passed over, and
text is brought into its NFC form. Any other line is bad: it stops the work, or is skipped and
counted where that is asked for.
"""

import codecs
import contextlib
import dataclasses
import itertools
import json
import os
import tempfile
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path

import tensorflow as tf

from pipelines.datasets.splits import SPLITS, DataError, Split, split_of

BAD_LINES_SHOWN = 5
LONGEST_LINE = 2**20  # Bytes. What goes beyond is no text in lines.
LINES_SPLIT_AT_ONCE = 256  # Thirty times as fast as one by one.


@dataclasses.dataclass(frozen=True)
class Prepared:
    """What `prepare` has written.

    Args:
        paths: The file of each split.
        examples: The examples in it.
        skipped: The bad lines left out, under the split whose given file had them: those of a train
            file that is split count for `train`.
    """

    paths: dict[Split, Path]
    examples: dict[Split, int]
    skipped: dict[Split, int]


def prepare(
    paths: Mapping[str, Path],
    columns: tuple[str, str],
    folder: Path,
    *,
    skip_bad_lines: bool = False,
) -> Prepared:
    """Writes the examples of a user's files to `train.tsv`, `validation.tsv` and `test.tsv`.

    The files are read once, line by line. Each file in `folder` appears whole, and none changes
    where the data is no use; `prepared.json`, with the counts, comes last and goes first.

    A split without a file takes its share of the train file, by `split_of` the first column: 5 % go
    to validation and 5 % to test. A split with a file takes nothing, so that where only one of the
    two is missing, 95 % still train.

    Args:
        paths: The file of each split: of `"train"` and, if there are any, of `"validation"` and
            `"test"`.
        columns: What the first and the second column are called.
        folder: Where to write; made if need be.
        skip_bad_lines: Whether to skip and count bad lines. A file with nothing else is still an
            error.

    Raises:
        DataError: The files cannot be used; the message names files and lines.
    """
    _check(paths, columns, folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".prepare-", dir=folder) as temporary:
        examples, skipped = _write(paths, columns, Path(temporary), skip_bad_lines)
        record = Path(temporary, "prepared.json")
        record.write_text(json.dumps({"examples": examples, "skipped": skipped}, indent=2) + "\n")
        (folder / record.name).unlink(missing_ok=True)
        for source in (*_files_in(Path(temporary)).values(), record):
            os.replace(source, folder / source.name)
    return prepared(folder)


def prepared(folder: Path) -> Prepared:
    """Returns what `prepare` wrote to a folder.

    Raises:
        DataError: The folder holds nothing that `prepare` wrote to the end.
    """
    record = folder / "prepared.json"
    if not record.is_file():
        raise DataError(f"{folder} must hold prepared data. Received a folder without {record}.")
    return Prepared(_files_in(folder), **json.loads(record.read_text()))


def read(path: Path, columns: tuple[str, str]) -> tf.data.Dataset:
    """Returns the examples of a file that `prepare` wrote, in the order of its lines.

    Args:
        path: The file.
        columns: What the first and the second column are called.

    Returns:
        A dataset of dicts from column to string, shape `[]`, whose iterators can be checkpointed.
    """
    if not path.is_file():
        raise DataError(f"{path} is not a file.")

    def to_columns(lines: tf.Tensor) -> dict[str, tf.Tensor]:
        fields = tf.strings.split(lines, "\t")
        tf.debugging.assert_equal(fields.row_lengths(), tf.constant(2, tf.int64))
        first, second = tf.unstack(tf.reshape(fields.flat_values, [-1, 2]), axis=1)
        return dict(zip(columns, (first, second), strict=True))

    lines = tf.data.TextLineDataset(os.fspath(path))
    return lines.batch(LINES_SPLIT_AT_ONCE).map(to_columns).unbatch()


def _files_in(folder: Path) -> dict[Split, Path]:
    return {split: folder / f"{split}.tsv" for split in SPLITS}


def _check(paths: Mapping[str, Path], columns: tuple[str, str], folder: Path) -> None:
    if not (len(columns) == len(set(columns)) == 2 and all(columns)):
        raise ValueError(f"Argument `columns` must hold two different names. Received: {columns}")
    if "train" not in paths or not set(paths) <= set(SPLITS):
        raise ValueError(
            "Argument `paths` must have 'train' and may have 'validation' and 'test'. "
            f"Received: {list(paths)}"
        )
    written = {path.resolve() for path in _files_in(folder).values()}
    for split, path in paths.items():
        if not path.exists():
            raise DataError(f"The {split} file {path} does not exist.")
        if path.is_dir():
            raise DataError(f"The {split} file {path} is a folder. Give one TSV file.")
        if path.resolve() in written:
            raise DataError(f"The {split} file {path} would be overwritten. Prepare elsewhere.")


def _write(
    paths: Mapping[str, Path], columns: tuple[str, str], folder: Path, skip_bad_lines: bool
) -> tuple[dict[Split, int], dict[Split, int]]:
    """Writes the files of all splits; returns their examples and the bad lines, by split."""
    missing = [split for split in SPLITS if split not in paths]
    examples, bad = dict.fromkeys(SPLITS, 0), _BadLines()
    with contextlib.ExitStack() as stack:
        files = {
            split: stack.enter_context(path.open("w", encoding="utf-8", newline="\n"))
            for split, path in _files_in(folder).items()
        }
        for source, path in paths.items():
            for first, second in _examples(source, path, columns, bad):
                share = split_of(first) if source == "train" else source
                split = share if share in missing else source
                files[split].write(f"{first}\t{second}\n")
                examples[split] += 1
    if bad.shown and not skip_bad_lines:
        raise DataError(
            f"{bad}\nCorrect them, or skip and count such lines with --data.skip_bad_lines."
        )
    for split in SPLITS:
        if not examples[split]:
            raise DataError(
                f"{paths['train']} is too short to be split: none of its examples went to {split}. "
                f"Give more of them, or a file each for validation and test."
            )
    return examples, bad.counts


class _BadLines:
    """The bad lines of each file, counted, and what is wrong with the first few."""

    def __init__(self):
        self.counts = dict.fromkeys(SPLITS, 0)
        self.shown = []

    def add(self, source: Split, complaint: str) -> None:
        self.counts[source] += 1
        if len(self.shown) < BAD_LINES_SHOWN:
            self.shown.append(complaint)

    def __str__(self) -> str:
        count = sum(self.counts.values())
        title = f"{count} bad line{'s' if count > 1 else ''}"
        if count > len(self.shown):
            title += f", of which the first {len(self.shown)}"
        return "\n  ".join([f"{title}:", *self.shown])


def _examples(
    source: Split, path: Path, columns: tuple[str, str], bad: _BadLines
) -> Iterator[tuple[str, str]]:
    """Yields the fields of each good line of a file and adds the others to `bad`."""
    found = False
    for number, line in _lines(path):
        try:
            fields = _fields(line, columns)
        except DataError as error:
            bad.add(source, f"{path}:{number}: {error}")
        else:
            found = True
            yield fields
    if not found and bad.counts[source]:
        raise DataError(f"No line of {path} can be used. {bad}")
    if not found:
        raise DataError(f"The {source} file {path} is empty.")


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yields the number, from 1, and the text of each line that is not blank."""
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise DataError(f"{path}:{number}: longer than {LONGEST_LINE} bytes. Is it a TSV?")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if b"\t" in line or line.strip():
                yield number, line


def _fields(line: bytes, columns: tuple[str, str]) -> tuple[str, str]:
    try:
        text = unicodedata.normalize("NFC", line.decode())
    except UnicodeDecodeError as error:
        byte = f"0x{line[error.start]:02x}"
        raise DataError(f"not UTF-8: byte {byte} at position {error.start + 1}") from None
    if "\0" in text or "\r" in text:
        raise DataError("a NUL or a carriage return in the line")
    fields = [field.strip() for field in text.split("\t")]
    if len(fields) != 2:
        columns_found = "1 column" if len(fields) == 1 else f"{len(fields)} columns"
        raise DataError(f"{columns_found}, not 2 with a tab between them")
    for column, field in zip(columns, fields, strict=True):
        if not field:
            raise DataError(f"`{column}` is empty")
    return fields[0], fields[1]
