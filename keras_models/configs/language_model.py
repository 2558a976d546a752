"""The sizes of a recurrent language model."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT

if TYPE_CHECKING:
    from keras_models.language_model import RecurrentLanguageModel


@dataclass(frozen=True, config=STRICT)
class LanguageModelConfig:
    """A recurrent network that gives each symbol a probability by those before it."""

    cell: Literal["lstm", "gru", "rnn"] = "lstm"
    """What the layers are made of."""
    embedding_units: PositiveInt = 64
    """Width of the vectors that stand for symbols."""
    units: PositiveInt = 256
    """Width of each layer."""
    layers: PositiveInt = 2
    """Number of layers."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of activations dropped in training, between layers and before the output."""
    stop: Literal["symbol", "bernoulli", "length"] = "symbol"
    """What ends a text: a symbol of its own, an output at each step that says whether to go on, or
    a length drawn beforehand, of which each step is told what is left."""
    longest: PositiveInt = 256
    """With the stop `length`: the most symbols that a text can have."""

    def build(self, size: int) -> RecurrentLanguageModel:
        """Returns the model for so many symbols, the boundary counted."""
        from keras_models.language_model import RecurrentLanguageModel

        return RecurrentLanguageModel(self, size)
