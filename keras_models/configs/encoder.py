"""The sizes of an encoder of symbols, which several architectures begin with."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT


@dataclass(frozen=True, config=STRICT)
class EncoderConfig:
    """LSTMs over vectors that stand for symbols."""

    embedding_units: PositiveInt = 128
    """Width of the vectors that stand for input symbols."""
    encoder: Literal["bidirectional", "causal", "chunked"] = "bidirectional"
    """What the LSTM encoder reads beside the past: all the rest, nothing, or a chunk and what is
    shortly ahead. All but the first answer while the input is still coming."""
    encoder_units: PositiveInt = 192
    """Width of each direction of the encoder."""
    encoder_layers: PositiveInt = 2
    """Number of layers of the encoder."""
    chunk: PositiveInt = 4
    """Symbols in a chunk of the chunked encoder."""
    lookahead: NonNegativeInt = 4
    """Symbols past a chunk that the chunked encoder reads with it."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of activations dropped in training."""
