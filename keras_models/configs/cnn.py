"""The sizes of a convolutional network, and of a network without convolutions beside it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt, model_validator
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT

if TYPE_CHECKING:
    from keras_models.cnn import CNN, MLP, DenseCNN

_Share = Annotated[float, Field(ge=0, lt=1)]


@dataclass(frozen=True, config=STRICT)
class CNNConfig:
    """A convolution, then stages: each pools, doubles the channels, and adds blocks."""

    channels: PositiveInt = 16
    """Channels of the first convolution; each stage has twice as many as what is before it."""
    stages: PositiveInt = 2
    """Number of stages."""
    blocks: PositiveInt = 2
    """Blocks of a stage, each a convolution."""
    kernel: PositiveInt = 3
    """Weights of a convolution along each axis."""
    dilation: PositiveInt = 1
    """Steps between two weights of a block."""
    padding: Literal["same", "valid", "full"] = "same"
    """What convolutions take to be beside their input: zeros that keep its size, nothing, or all
    the zeros that they can reach."""
    sharing: Literal["shared", "tiled", "local"] = "shared"
    """Which places have the same weights: all, every `tile`th, or none, which makes the model one
    for inputs of one size."""
    tile: PositiveInt = 2
    """Places after which tiled weights come again."""
    pooling: Literal["max", "mean", "stride"] = "max"
    """How a stage halves the size: by the largest of two, their mean, or a convolution's stride."""
    normalization: Literal["group", "none"] = "group"
    """What comes before a block's convolution."""
    group: PositiveInt = 8
    """Channels that are normalised together."""
    residual: bool = True
    """Whether a block's input is added to its output."""
    dropout: _Share = 0.1
    """Share of the last features dropped in training."""

    @model_validator(mode="after")
    def _fits_together(self):
        if self.residual and self.padding != "same":
            raise ValueError(
                "`padding` must be 'same' where blocks are residual: their input is added to "
                f"their output. Received: {self.padding!r}"
            )
        if self.normalization == "group" and self.channels % self.group:
            raise ValueError(
                "`channels` must be a multiple of `group`. Received: "
                f"{self.channels} and {self.group}"
            )
        return self

    def build(self, shape, classes: int) -> CNN:
        """Returns the model that scores classes, for inputs of a shape `(…, C)`."""
        from keras_models.cnn import CNN

        return CNN(self, shape, classes)

    def build_dense(self, shape, classes: int) -> DenseCNN:
        """Returns the model that scores classes at every place, for inputs of a shape `(…, C)`."""
        from keras_models.cnn import DenseCNN

        return DenseCNN(self, shape, classes)


@dataclass(frozen=True, config=STRICT)
class MLPConfig:
    """Layers that see all of an input at once, in no order."""

    units: PositiveInt = 256
    """Width of a layer."""
    layers: PositiveInt = 2
    """Number of layers before the scores."""
    dropout: _Share = 0.1
    """Share of a layer's outputs dropped in training."""

    def build(self, shape, classes: int) -> MLP:
        """Returns the model that scores classes, for inputs of a shape `(…, C)`."""
        from keras_models.cnn import MLP

        return MLP(self, shape, classes)
