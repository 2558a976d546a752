"""The contract of a tagging task: a text goes in, a tag for each of its tokens comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field as Limits
from pydantic import PositiveInt, model_validator
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT
from keras_models.configs.records import Field
from keras_models.configs.transcription import Text

if TYPE_CHECKING:
    from keras_models.tasks.tagger import Tagger


@dataclass(frozen=True, config=STRICT)
class Tagging:
    """A tag for each token of a text, both with white space between."""

    text: str = "text"
    """Name of the text in records, features and served signatures."""
    tags: str = "tags"
    """Name of its tags."""
    lowercase: bool = False
    """Fold the text to lower case first."""
    min_count: PositiveInt = 2
    """How often a token must be in the training data to be known. All others are one symbol, which
    with 1 would not be there to be learnt."""
    max_length: PositiveInt = 1024
    """Longest text, in tokens, that the served model answers."""
    label_smoothing: Annotated[float, Limits(ge=0, lt=1)] = 0.0
    """Share of the probability that the loss wants spread evenly over all tags."""

    @model_validator(mode="after")
    def _has_two_fields(self):
        if self.text == self.tags or self.tags == "log_probability":
            raise ValueError(
                "`tags` must be another name than that of `text`, and not 'log_probability', which "
                f"is served beside it. Received: {self.tags!r}"
            )
        return self

    @property
    def texts(self) -> tuple[Text, Text]:
        """The two fields."""
        words = Text(self.text, "token", lowercase=self.lowercase, min_count=self.min_count)
        return words, Text(self.tags, "token")

    @property
    def fields(self) -> tuple[Field, ...]:
        """What a record holds."""
        return Field(self.text), Field(self.tags, aligned_with=self.text)

    def prepare(self, records, folder: Path) -> None:
        """Writes what the task needs to know of the training data: a vocabulary a field.

        Args:
            records: Batches of raw records, to be gone through once a field.
            folder: Where to write `FIELD.txt`.
        """
        from keras_models.frontends.text import build_vocabulary

        for text in self.texts:
            build_vocabulary((batch[text.field] for batch in records), text, folder)

    def build(self, model, folder: Path) -> Tagger:
        """Returns the task for a model's Config and the folder that `prepare` wrote to."""
        from keras_models.tasks.tagger import Tagger

        return Tagger(self, model, folder)
