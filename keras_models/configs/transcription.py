"""The contract of a transcription task: which text goes in, which text comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import PositiveInt, model_validator
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT
from keras_models.configs.records import Field

if TYPE_CHECKING:
    from keras_models.frontends.text import TextFrontend
    from keras_models.tasks.transcriber import Transcriber

# What the served signatures give beside the output text.
_TAKEN = ("log_probability", "tokens", "frames", "attention")


@dataclass(frozen=True, config=STRICT)
class Text:
    """A field of text and how it is cut into symbols."""

    field: str = "text"
    """Name in records, features and served signatures."""
    unit: Literal["character", "token", "subword"] = "character"
    """A symbol is a character, a token between white space, or a part of one that is learnt."""
    lowercase: bool = False
    """Fold to lower case first."""
    min_count: PositiveInt = 1
    """How often a symbol must be in the training data to be known."""
    size: PositiveInt = 4000
    """Most parts of words that are learnt."""

    def learn(self, batches, folder: Path) -> None:
        """Writes the vocabulary of texts, `[B]` string each, to a folder."""
        if self.unit == "subword":
            from keras_models.frontends.subword import build_subwords as build
        else:
            from keras_models.frontends.text import build_vocabulary as build
        build(batches, self, folder)

    def frontend(self, folder: Path) -> TextFrontend:
        """Returns what turns texts into numbers by the vocabulary in a folder."""
        if self.unit == "subword":
            from keras_models.frontends.subword import SubwordFrontend as Frontend
        else:
            from keras_models.frontends.text import TextFrontend as Frontend
        return Frontend(self, folder)


@dataclass(frozen=True, config=STRICT)
class TextToText:
    """One text goes in, another comes out."""

    input: Text
    output: Text
    loss_per: Literal["example", "token"] = "example"
    """What the mean loss is of: with "token", long examples count more."""
    max_length: PositiveInt = 256
    """Longest input, in symbols, that the served model answers."""

    @model_validator(mode="after")
    def _has_two_fields(self):
        if self.input.field == self.output.field:
            raise ValueError(
                "`input.field` and `output.field` must differ. "
                f"Received: {self.input.field!r} for both"
            )
        if self.output.field in _TAKEN:
            raise ValueError(
                f"`output.field` must be none of {', '.join(_TAKEN)}, which are served beside it. "
                f"Received: {self.output.field!r}"
            )
        return self

    @property
    def texts(self) -> tuple[Text, Text]:
        """The two fields."""
        return self.input, self.output

    @property
    def fields(self) -> tuple[Field, ...]:
        """What a record holds."""
        return tuple(Field(text.field) for text in self.texts)

    def prepare(self, records, folder: Path) -> None:
        """Writes what the task needs to know of the training data: a vocabulary a field.

        Args:
            records: Batches of raw records, to be gone through once a field.
            folder: Where to write `FIELD.txt`.
        """
        for text in self.texts:
            text.learn((batch[text.field] for batch in records), folder)


@dataclass(frozen=True, config=STRICT)
class Transcription(TextToText):
    """Text to text whose symbols follow the input's order, as spelling to sounds."""

    token: str = "token"
    """What an output symbol is called in reports: "phoneme" makes a phoneme error rate."""
    sequence: str = "sequence"
    """What a whole example is called in reports."""

    def build(self, model, folder: Path) -> Transcriber:
        """Returns the task for a model's Config and the folder that `prepare` wrote to."""
        from keras_models.tasks.transcriber import Transcriber

        return Transcriber(self, model, folder)
