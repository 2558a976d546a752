"""The contract of a classification task: which input goes in, which of some classes comes out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field as Limits
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT
from keras_models.configs.image import Image
from keras_models.configs.records import Field
from keras_models.configs.series import Series

if TYPE_CHECKING:
    from keras_models.tasks.classifier import Classifier

# What the served signatures give beside the label.
_TAKEN = ("scores", "classes")


@dataclass(frozen=True, config=STRICT)
class Classification:
    """One label for a whole input, of those that training knows."""

    input: Image | Series
    label: str = "label"
    """Name of the label in records, features and served signatures."""
    label_smoothing: Annotated[float, Limits(ge=0, lt=1)] = 0.0
    """Share of the probability that the loss wants spread evenly over all classes."""

    @model_validator(mode="after")
    def _has_two_fields(self):
        if self.label in (self.input.field, *_TAKEN):
            raise ValueError(
                f"`label` must be none of {', '.join((self.input.field, *_TAKEN))}, which stand "
                f"for something else. Received: {self.label!r}"
            )
        return self

    @property
    def fields(self) -> tuple[Field, ...]:
        """What a record holds."""
        return self.input.record, Field(self.label)

    def prepare(self, records, folder: Path) -> None:
        """Writes what the task needs to know of the training data: the classes.

        Args:
            records: Batches of raw records.
            folder: Where to write `LABEL.txt`, and what the input asks for.
        """
        from keras_models.frontends.label import write_classes

        self.input.prepare(records, folder)
        write_classes((batch[self.label] for batch in records), self.label, folder)

    def build(self, model, folder: Path) -> Classifier:
        """Returns the task for a model's Config and the folder that `prepare` wrote to."""
        from keras_models.tasks.classifier import Classifier

        return Classifier(self, model, folder)
