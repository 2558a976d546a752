"""The contract between a task and the sources of its records: fields, their dtypes and shapes."""

from __future__ import annotations

from typing import Literal

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT


@dataclass(frozen=True, config=STRICT)
class Field:
    """What a raw record holds under a name.

    A source that has it otherwise is asked for it this way: the string of an image is its PNG or
    JPEG, its numbers are its pixels; the string of a class is its name, its number its place.
    """

    name: str
    """Name in records, features and served signatures."""
    dtype: Literal["string", "bool", "uint8", "int32", "int64", "float32"] = "string"
    """What it is made of."""
    shape: tuple[PositiveInt | None, ...] = ()
    """Its shape in one record; None where records may differ."""
    aligned_with: str = ""
    """Another field of text, each of whose tokens between white space has one token here."""
