"""A text of one's own: a file is one record of one field, with its line breaks.

It is UTF-8. A byte order mark is taken off, and a line break is one character, whatever it was.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from keras_models.configs.records import Field
from pipelines.datasets.splits import DataError, Split
from pipelines.sources.records import Record

_SHARE = 20


def read(
    path: Path, fields: Sequence[Field], names: Mapping[str, str]
) -> Iterator[tuple[str, Record | DataError]]:
    """Yields the place of the one record, and the record or what is wrong with it.

    Raises:
        DataError: If a record is to have other fields than one text.
    """
    if [(field.dtype, field.shape) for field in fields] != [("string", ())]:
        wanted = ", ".join(f"{field.name} ({field.dtype})" for field in fields)
        raise DataError(f"A file in the format 'text' has one field, of text. Asked for: {wanted}.")
    text = path.read_bytes().removeprefix(codecs.BOM_UTF8)
    text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    try:
        text.decode()
    except UnicodeDecodeError as error:
        line = text.count(b"\n", 0, error.start) + 1
        yield f"{path}:{line}", DataError(f"not UTF-8: byte 0x{text[error.start]:02x}")
        return
    if text:
        yield str(path), {fields[0].name: text}


def shared_out(text: bytes, missing: Sequence[Split]) -> dict[Split, bytes]:
    """Returns what trains of a text, and the ends of it, 5 % each, for the splits without a file.

    It is cut after line breaks. What would be empty is left out.
    """
    end, parts = len(text), {}
    for split in ("test", "validation"):
        if split in missing:
            begin = text.rfind(b"\n", 0, max(0, end - len(text) // _SHARE)) + 1
            parts[split], end = text[begin:end], begin
    parts["train"] = text[:end]
    return {split: part for split, part in parts.items() if part}
