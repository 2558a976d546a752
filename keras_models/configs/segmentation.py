"""The contract of a segmentation task: an image goes in, a class for each pixel out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from pydantic import Field as Limits
from pydantic import model_validator
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT
from keras_models.configs.image import Image
from keras_models.configs.records import Field

if TYPE_CHECKING:
    from keras_models.tasks.segmenter import Segmenter


@dataclass(frozen=True, config=STRICT)
class Segmentation:
    """One of some classes for every pixel."""

    input: Image
    classes: tuple[str, ...]
    """Names of the classes, by the number that stands for each in a mask."""
    mask: str = "mask"
    """Name of the classes of all pixels in records, features and served signatures."""
    label_smoothing: Annotated[float, Limits(ge=0, lt=1)] = 0.0
    """Share of the probability that the loss wants spread evenly over all classes."""

    @model_validator(mode="after")
    def _fits_together(self):
        if self.mask == self.input.field:
            raise ValueError(
                f"`input.field` and `mask` must differ. Received: {self.mask!r} for both"
            )
        if not 2 <= len(set(self.classes)) == len(self.classes) <= 256:
            raise ValueError(
                f"`classes` must be 2 to 256 different names. Received: {list(self.classes)}"
            )
        if self.input.resize:
            raise ValueError("`input.resize` must be off: a mask would not fit the image any more")
        return self

    @property
    def fields(self) -> tuple[Field, ...]:
        """What a record holds."""
        shape = self.input.height, self.input.width, 1
        return self.input.record, Field(self.mask, "uint8", shape)

    def prepare(self, records, folder: Path) -> None:
        """Writes the names of the classes, for the exported model, and what the input asks for.

        Args:
            records: Batches of raw records.
            folder: Where to write `MASK.txt`: line `n` is class `n`.
        """
        from keras_models.frontends.label import write_names

        self.input.prepare(records, folder)
        write_names([name.encode() for name in self.classes], self.mask, folder)

    def build(self, model, folder: Path) -> Segmenter:
        """Returns the task for a model's Config and the folder that `prepare` wrote to."""
        from keras_models.tasks.segmenter import Segmenter

        return Segmenter(self, model, folder)
