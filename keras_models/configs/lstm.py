"""The sizes and choices of recurrent networks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT

if TYPE_CHECKING:
    from keras_models.lstm import AlignedLSTM, ManyToOneLSTM


@dataclass(frozen=True, config=STRICT)
class LSTMConfig:
    """Recurrent layers between an input and one output for all of it, or one for each step."""

    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    """What the layers are made of: long short-term memory, gated units, or plain tanh units."""
    units: PositiveInt = 128
    """Width of each direction of a layer."""
    layers: PositiveInt = 2
    """Number of layers."""
    bidirectional: bool = True
    """Whether each layer reads from both ends."""
    residual: bool = False
    """Whether every layer but the first adds its inputs to its outputs."""
    embedding_units: PositiveInt = 128
    """Width of the vectors that stand for symbols; numbers are read as they are."""
    summary: Literal["last", "mean", "max"] = "last"
    """What one output for all steps is made of: the last state of each direction, or the mean or
    the largest of each unit's outputs."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of activations dropped in training."""

    def build(self, shape: tuple[int | None, ...], outputs: int) -> ManyToOneLSTM:
        """Returns the model of so many numbers for a whole series, of shape `[T, F]`."""
        from keras_models.lstm import ManyToOneLSTM

        return ManyToOneLSTM(self, shape[-1], outputs)

    def build_aligned(self, symbols: int, outputs: int) -> AlignedLSTM:
        """Returns the model of so many numbers at each of a text's symbols."""
        from keras_models.lstm import AlignedLSTM

        return AlignedLSTM(self, symbols, outputs)
