"""A user's own values, checked and brought into the dtype and shape of a field."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np

from keras_models.configs.records import Field
from pipelines.datasets.splits import DataError


def to_value(raw: object, field: Field) -> bytes | np.ndarray:
    """Returns a field's value: bytes for one string, else an array of its dtype.

    Args:
        raw: What was read: text, numbers, an array, lists of these. Text stands for numbers or
            tokens where the field wants them, with white space between.
        field: What is wanted.

    Raises:
        DataError: If the one cannot be made of the other; the message is about the value alone.
    """
    if isinstance(raw, str) and (field.shape or field.dtype != "string"):
        raw = raw.split() if field.shape else raw.strip()
    if field.dtype != "string":
        return _shaped(_numbers(raw, field), field)
    if field.shape:
        return _shaped(np.vectorize(lambda each: _text(each, field), [object])(raw), field)
    return _text(raw, field)


def _text(raw: object, field: Field) -> bytes:
    """Returns text as UTF-8 in its NFC form, without white space around it."""
    if isinstance(raw, (bool, float)) or not isinstance(raw, (str, int, np.integer, np.str_)):
        raise DataError(f"`{field.name}` is no text: {raw!r}")
    text = unicodedata.normalize("NFC", str(raw)).strip()
    if "\0" in text:
        raise DataError(f"`{field.name}` holds a NUL")
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise DataError(f"`{field.name}` is not UTF-8") from None
    if not encoded:
        raise DataError(f"`{field.name}` is empty")
    return encoded


def _numbers(raw: object, field: Field) -> np.ndarray:
    try:
        found = np.asarray(raw)
        if found.dtype.kind in "US" or found.dtype == object:
            found = found.astype(np.float64 if field.dtype == "float32" else np.int64)
    except (ValueError, TypeError, OverflowError):
        raise DataError(f"`{field.name}` is no {field.dtype}: {_short(raw)}") from None
    if not np.isfinite(found).all():
        raise DataError(f"`{field.name}` holds a number that is not finite")
    with np.errstate(all="ignore"):
        values = found.astype(field.dtype)
    if field.dtype != "float32" and not np.array_equal(values, found):
        raise DataError(f"`{field.name}` is no {field.dtype}: {_short(raw)}")
    if not np.isfinite(values).all():
        raise DataError(f"`{field.name}` holds a number too large for {field.dtype}")
    return values


def _shaped(values: np.ndarray, field: Field) -> np.ndarray:
    sizes = zip(values.shape, field.shape, strict=False)
    if values.ndim != len(field.shape) or any(wanted not in (None, n) for n, wanted in sizes):
        found, wanted = _sizes(values.shape), _sizes(field.shape)
        raise DataError(f"`{field.name}` has {found} values, not {wanted}")
    if not values.size:
        raise DataError(f"`{field.name}` is of length 0")
    return values


def _sizes(shape: Sequence[int | None]) -> str:
    return " by ".join("any" if n is None else str(n) for n in shape) or "single"


def _short(raw: object) -> str:
    text = repr(raw)
    return text if len(text) < 60 else f"{text[:57]}…"
