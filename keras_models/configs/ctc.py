"""The sizes of a model of connectionist temporal classification."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import PositiveInt
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT
from keras_models.configs.encoder import EncoderConfig

if TYPE_CHECKING:
    from keras_models.ctc import CTC


@dataclass(frozen=True, config=STRICT)
class CTCConfig(EncoderConfig):
    """An LSTM encoder over symbols that CTC aligns (Graves et al. 2006)."""

    frames_per_symbol: PositiveInt = 3
    """Frames for each input symbol. An output has a frame at least for each of its symbols, and
    one more between any two that are the same."""

    beam: PositiveInt = 1
    """Hypotheses that the search keeps for an input; 1 is greedy: the one likeliest path."""
    n_best: PositiveInt = 10
    """Hypotheses that the served signature `n_best` gives, by a beam of as many or of `beam`."""

    def build(self, input_size: int, output_size: int) -> CTC:
        """Returns the model for so many symbols, padding and blank counted."""
        from keras_models.ctc import CTC

        return CTC(self, input_size, output_size)
