"""The contract of a language model's task: texts, each by itself or as one that goes on."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import PositiveInt, model_validator
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT
from keras_models.configs.records import Field
from keras_models.configs.transcription import Text

if TYPE_CHECKING:
    from keras_models.tasks.language_model import LanguageModel

# What the served signatures give beside texts, and what they take to generate them.
_TAKEN = ("log_probability", "temperature", "top_k", "top_p", "seed", "max_length")


@dataclass(frozen=True, config=STRICT)
class LanguageModeling:
    """Text alone, of which each symbol is to be foretold by those before it."""

    text: Text = Text()
    chunk: PositiveInt | None = None
    """Symbols of a chunk, where all records are learnt as one text that goes on: chunk by chunk,
    each from the state that the one before it left. None: a record is a text with an end."""
    max_length: PositiveInt = 1000
    """Most symbols that the served model continues a text by."""

    @model_validator(mode="after")
    def _has_a_name_of_its_own(self):
        if self.text.field in _TAKEN:
            raise ValueError(
                f"`text.field` must be none of {', '.join(_TAKEN)}, which are served beside it. "
                f"Received: {self.text.field!r}"
            )
        return self

    @property
    def fields(self) -> tuple[Field, ...]:
        """What a record holds."""
        return (Field(self.text.field),)

    def prepare(self, records, folder: Path) -> None:
        """Writes what the task needs to know of the training data: a vocabulary.

        Args:
            records: Batches of raw records.
            folder: Where to write `FIELD.txt`.
        """
        from keras_models.frontends.text import build_vocabulary

        build_vocabulary((batch[self.text.field] for batch in records), self.text, folder)

    def build(self, model, folder: Path) -> LanguageModel:
        """Returns the task for a model's Config and the folder that `prepare` wrote to."""
        from keras_models.tasks.language_model import LanguageModel

        return LanguageModel(self, model, folder)
