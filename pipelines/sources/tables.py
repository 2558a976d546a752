"""Tables of one's own: a record a line.

Files are UTF-8. A byte order mark, CRLF and white space around a cell are taken off, and blank
lines are passed over.

TSV: cells with a tab between, no header, no quoting. Columns are called by their numbers, from 1.
CSV: cells with a comma between, quoted where need be, under a header that calls the columns.

A field takes a column or, as `FIRST:LAST` or `FIRST:`, several next to each other: a series of
numbers, say. Where nothing is said, a TSV's fields are its columns in order, a CSV's those of
their names.
"""

from __future__ import annotations

import codecs
import csv
import itertools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from keras_models.configs.records import Field
from pipelines.datasets.splits import DataError
from pipelines.sources.records import Record
from pipelines.sources.values import to_value

LONGEST_LINE = 2**20  # Bytes. What goes beyond is no text in lines.


def read_tsv(
    path: Path, fields: Sequence[Field], names: Mapping[str, str]
) -> Iterator[tuple[str, Record | DataError]]:
    """Yields the place of each line that is not blank, and its record or what is wrong with it."""
    takes = names or {field.name: str(n) for n, field in enumerate(fields, start=1)}
    for place, line in lines(path):
        try:
            text = decoded(line)
            if "\0" in text or "\r" in text:
                raise DataError("a NUL or a carriage return in the line")
            cells = text.split("\t")
            if not names and len(cells) != len(fields):
                raise DataError(
                    f"{_columns(len(cells))}, not {len(fields)} with a tab between them"
                )
            header = [str(n) for n in range(1, len(cells) + 1)]
            yield place, _record(cells, header, fields, takes)
        except DataError as error:
            yield place, error


def read_csv(
    path: Path, fields: Sequence[Field], names: Mapping[str, str]
) -> Iterator[tuple[str, Record | DataError]]:
    """Yields the place of each row that is not blank, and its record or what is wrong with it.

    Raises:
        DataError: If the header lacks a column.
    """
    csv.field_size_limit(LONGEST_LINE)
    text = (line.decode(errors="surrogateescape") + "\n" for _, line in lines(path, blank=True))
    rows = csv.reader(text, strict=True)
    header = [name.strip() for name in next(rows, [])]
    takes = {field.name: names.get(field.name, field.name) for field in fields}
    try:
        for selection in takes.values():
            _picked(header, header, selection)
    except DataError as error:
        raise DataError(f"{path}:1: {error}") from None
    while True:
        place = f"{path}:{rows.line_num + 1}"
        try:
            cells = next(rows)
            if not any(cells):
                continue
            if len(cells) != len(header):
                raise DataError(f"{_columns(len(cells))}, not {len(header)} as in the header")
            yield place, _record(cells, header, fields, takes)
        except StopIteration:
            return
        except csv.Error as error:
            yield place, DataError(str(error))
        except DataError as error:
            yield place, error


def lines(path: Path, blank: bool = False) -> Iterator[tuple[str, bytes]]:
    """Yields the place and the bytes of each line, of blank ones if asked for.

    Raises:
        DataError: If a line is so long that the file cannot be text.
    """
    with path.open("rb") as file:
        for number in itertools.count(1):
            line = file.readline(LONGEST_LINE + 1)
            if not line:
                return
            if len(line) > LONGEST_LINE:
                raise DataError(f"{path}:{number}: longer than {LONGEST_LINE} bytes. Is it text?")
            if number == 1:
                line = line.removeprefix(codecs.BOM_UTF8)
            line = line.removesuffix(b"\n").removesuffix(b"\r")
            if blank or b"\t" in line or line.strip():
                yield f"{path}:{number}", line


def decoded(line: bytes) -> str:
    """Returns the text of a line."""
    try:
        return line.decode()
    except UnicodeDecodeError as error:
        byte = f"0x{line[error.start]:02x}"
        raise DataError(f"not UTF-8: byte {byte} at position {error.start + 1}") from None


def _record(
    cells: list[str], header: list[str], fields: Sequence[Field], takes: Mapping[str, str]
) -> Record:
    return {
        field.name: to_value(_picked(cells, header, takes[field.name]), field) for field in fields
    }


def _picked(cells: list[str], header: list[str], selection: str) -> str | list[str]:
    """Returns the cell of a column, or those from one column to another."""
    if selection in header:
        return cells[header.index(selection)]
    first, colon, last = selection.partition(":")
    for name in (first, last) if colon else (selection,):
        if name not in (*header, ""):
            raise DataError(f"there is no column {name!r}, but {', '.join(header) or 'none'}")
    start = header.index(first) if first else 0
    return cells[start : header.index(last) + 1 if last else None]


def _columns(count: int) -> str:
    return "1 column" if count == 1 else f"{count} columns"
