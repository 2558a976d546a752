"""A field of images: their form, and the chance changes that training makes to them."""

from __future__ import annotations

from dataclasses import field as default
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field as Limits
from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT
from keras_models.configs.records import Field

if TYPE_CHECKING:
    from keras_models.frontends.image import ImageFrontend

_Share = Annotated[float, Limits(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class Augmentation:
    """How far an image may be changed for training, each time otherwise: 0 leaves it as it is."""

    rotation: Annotated[float, Limits(ge=0, le=180)] = 0.0
    """Largest angle, in degrees, to either side."""
    scale: _Share = 0.0
    """Largest change of each side's size, as a share of it."""
    shear: _Share = 0.0
    """Largest shift of a row, as a share of its distance from the middle row."""
    shift: _Share = 0.0
    """Largest shift, as a share of each side."""
    flip: bool = False
    """Whether left and right may change places."""


@dataclass(frozen=True, config=STRICT)
class Image:
    """A field of images, PNG or JPEG."""

    field: str = "image"
    """Name in records, features and served signatures."""
    height: PositiveInt = 28
    """Rows of pixels of a training image."""
    width: PositiveInt = 28
    """Columns of pixels of a training image."""
    channels: Literal[1, 3] = 1
    """Grey, or red, green and blue; an image of other colours is converted."""
    resize: bool = False
    """Whether every image is brought to that height and width, in serving, too. Otherwise training
    images must have them, and served ones are taken in the size they come in."""
    largest: PositiveInt = 1024
    """Most rows or columns of a served image."""
    augmentation: Augmentation = default(default_factory=Augmentation)
    """Chance changes in training."""

    @property
    def record(self) -> Field:
        """What a record holds."""
        return Field(self.field)

    def prepare(self, records, folder: Path) -> None:
        """Writes nothing: there is nothing to be learnt of images beforehand."""

    def build(self, folder: Path) -> ImageFrontend:
        """Returns the frontend."""
        from keras_models.frontends.image import ImageFrontend

        return ImageFrontend(self)
