"""The sizes of an encoder and a decoder with attention."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveInt
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT

if TYPE_CHECKING:
    from keras_models.seq2seq import Seq2Seq

Penalty = Annotated[float, Field(ge=0, allow_inf_nan=False)]


@dataclass(frozen=True, config=STRICT)
class Seq2SeqConfig:
    """An LSTM encoder and an LSTM decoder (Sutskever et al. 2014) with attention between them."""

    embedding_units: PositiveInt = 128
    """Width of the vectors that stand for symbols, of input and output."""
    encoder_units: PositiveInt = 192
    """Width of each direction of the encoder."""
    encoder_layers: PositiveInt = 1
    """Number of layers of the encoder."""
    decoder_units: PositiveInt = 256
    """Width of the decoder."""
    decoder_layers: PositiveInt = 1
    """Number of layers of the decoder."""
    context: Literal["state", "input", "both"] = "state"
    """How the decoder gets the encoder's last state: as its first one, as input at each step, or
    both."""
    attention: Literal["multiplicative", "additive", "none"] = "multiplicative"
    """How well a decoder's state matches an input symbol (Luong et al. 2015, Bahdanau et al. 2015).
    None: the decoder knows of the input by the context alone."""
    attention_units: PositiveInt = 256
    """Width of the hidden layer of additive attention."""
    input_feeding: bool = False
    """Let the decoder's next step see what the last one attended to (Luong et al. 2015). Steps are
    then trained one after another rather than all at once."""
    tied_embeddings: bool = False
    """Score output symbols by the vectors that stand for them."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Share of activations dropped in training."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the target probability that is spread over all symbols."""
    own_labels: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the decoder's inputs in training that are what it would have answered, rather than
    the right symbols: 0 is teacher forcing, 1 open loop, between is scheduled sampling (Bengio et
    al. 2015). Above 0, steps are trained one after another."""

    beam: PositiveInt = 1
    """Hypotheses that the search keeps for an input; 1 is greedy."""
    n_best: PositiveInt = 10
    """Hypotheses that the served signature `n_best` gives, by a beam of as many or of `beam`."""
    length_penalty: Penalty = 0.0
    """What a beam ranks by: 0 is the probability, more favours longer answers (alpha of Wu et al.
    2016)."""
    coverage_penalty: Penalty = 0.0
    """How much lower a beam ranks, at its end, what paid little attention to an input symbol (beta
    of Wu et al. 2016)."""
    output_ratio: PositiveInt = 2
    """Most output symbols of an answer: so many for an input symbol,"""
    output_extra: NonNegativeInt = 10
    """and so many beside."""

    def build(self, input_size: int, output_size: int) -> Seq2Seq:
        """Returns the model for so many symbols, padding counted."""
        from keras_models.seq2seq import Seq2Seq

        return Seq2Seq(self, input_size, output_size)
