"""The sizes of an RNN transducer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, PositiveInt
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT
from keras_models.configs.encoder import EncoderConfig

if TYPE_CHECKING:
    from keras_models.transducer import Transducer


@dataclass(frozen=True, config=STRICT)
class TransducerConfig(EncoderConfig):
    """An RNN transducer (Graves 2012) of LSTMs over symbols."""

    predictor_units: PositiveInt = 192
    """Width of the LSTM prediction network and of its symbol vectors."""
    joint_units: PositiveInt = 192
    """Width of the joint network's hidden layer."""
    fused_loss: bool | None = None
    """Compute joint network and loss together, tile by tile, in a fraction of the memory. None:
    from 128 output symbols on, where that is faster, too; with fewer, it is for long inputs."""

    beam: PositiveInt = 1
    """Hypotheses that the search keeps for an input; 1 is greedy."""
    search: Literal["frame", "alignment", "adaptive"] = "alignment"
    """How a beam goes on: frame by frame, all hypotheses at each step, or frame by frame with a
    look at nothing but what is likely to follow. By `alignment` it cannot stream."""
    n_best: PositiveInt = 10
    """Hypotheses that the served signature `n_best` gives, by a beam of as many or of `beam`."""
    length_normalization: Annotated[float, Field(ge=0, le=1)] = 0.0
    """What a beam ranks by at its end: 0 is the probability, 1 its mean over the symbols."""
    max_symbols_per_frame: PositiveInt = 8
    """Most output symbols that the search emits for one input symbol."""

    def build(self, input_size: int, output_size: int) -> Transducer:
        """Returns the model for so many symbols, padding and blank counted."""
        from keras_models.transducer import Transducer

        return Transducer(self, input_size, output_size)
