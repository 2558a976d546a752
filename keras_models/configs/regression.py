"""The contract of a regression task: which input goes in, which number comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import model_validator
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT
from keras_models.configs.image import Image
from keras_models.configs.records import Field
from keras_models.configs.series import Series

if TYPE_CHECKING:
    from keras_models.tasks.regressor import Regressor


@dataclass(frozen=True, config=STRICT)
class Regression:
    """One number for a whole input."""

    input: Image | Series
    value: str = "value"
    """Name of the number in records, features and served signatures."""
    loss: Literal["squared", "absolute"] = "squared"
    """What is to become small: with the first a model tells the mean of what may be, with the
    second the median."""

    @model_validator(mode="after")
    def _has_two_fields(self):
        if self.value == self.input.field:
            raise ValueError(
                f"`value` must be another name than that of the input. Received: {self.value!r}"
            )
        return self

    @property
    def fields(self) -> tuple[Field, ...]:
        """What a record holds."""
        return self.input.record, Field(self.value, "float32")

    def prepare(self, records, folder: Path) -> None:
        """Writes what the task needs to know of the training data: mean and deviation.

        Args:
            records: Batches of raw records, to be gone through once a field.
            folder: Where to write `VALUE.json`, and what the input asks for.
        """
        from keras_models.frontends.normalization import write_statistics

        self.input.prepare(records, folder)
        write_statistics((batch[self.value] for batch in records), 1, self.value, folder)

    def build(self, model, folder: Path) -> Regressor:
        """Returns the task for a model's Config and the folder that `prepare` wrote to."""
        from keras_models.tasks.regressor import Regressor

        return Regressor(self, model, folder)
