"""The RNN transducer of Graves 2012 (arXiv 1211.3711): encoder, prediction network, joint."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_models import BLANK
from keras_models.configs.transducer import TransducerConfig
from keras_models.decoding.alignment import alignments
from keras_models.decoding.beam import (
    BeamState,
    beam_transducer_search,
    start_beam,
    stream_beam,
)
from keras_models.decoding.transducer import (
    Hypotheses,
    Steps,
    greedy_transducer_search,
    only_continuation,
)
from keras_models.layers.dropout import dropout, fold_in
from keras_models.layers.joint import Joint
from keras_models.layers.recurrent import LSTM, LSTMState
from keras_models.layers.symbols import SymbolEncoder
from keras_models.losses.transducer import (
    TransducerOccupancies,
    fused_transducer_loss,
    transducer_loss,
    transducer_occupancies,
)

# Output symbols from which on a fused loss is the faster one, whatever the lengths.
_LEAST_FUSED = 128


class PredictorState(NamedTuple):
    """What the prediction network carries from symbol to symbol."""

    lstm: LSTMState
    projection: tf.Tensor  # [B, joint units], the prediction as the joint takes it


class RowState(NamedTuple):
    """What a search carries with a hypothesis, `N` of them."""

    example: tf.Tensor  # [N] int32, whose encoding it is about
    predictor: PredictorState


class GreedyState(NamedTuple):
    """What a greedy search carries from one part of an input to the next."""

    predictor: PredictorState
    log_probability: tf.Tensor  # [B], of the path so far


class StreamState(NamedTuple):
    """What a transducer carries from one part of an input to the next."""

    encoder: object  # nest of [B, …], of the encoder's kind
    search: GreedyState | BeamState


class Transducer(keras.layers.Layer):
    """LSTM encoder, LSTM prediction network and joint over symbols.

    Args:
        config: Sizes.
        input_size: Number of input symbols, padding counted.
        output_size: Number of output symbols, blank counted.
    """

    def __init__(self, config: TransducerConfig, input_size: int, output_size: int):
        super().__init__()
        self._dropout = config.dropout
        self._config = config
        fused = config.fused_loss
        self._fuses = output_size >= _LEAST_FUSED if fused is None else fused
        self._encoder = SymbolEncoder(config, input_size)
        self._output_embedding = keras.layers.Embedding(output_size, config.predictor_units)
        self._predictor = LSTM(config.predictor_units)
        self._joint = Joint(
            config.joint_units, output_size, self._encoder.output_width, config.predictor_units
        )
        self._output_embedding.build()
        self._predictor.build((None, None, config.predictor_units))
        self.built = True

    def call(self, inputs, input_lengths, labels, label_lengths, dropout_seed=None) -> tf.Tensor:
        """Returns the joint's scores `[B, T, U + 1, V]` for every frame and label prefix.

        Args:
            inputs: `[B, T]` int32, input symbols.
            input_lengths: `[B]` int32.
            labels: `[B, U]` int32, output symbols.
            label_lengths: `[B]` int32.
            dropout_seed: `[2]` int32, a seed for this step; None leaves dropout out.
        """
        encoding, prediction = self._networks(
            inputs, input_lengths, labels, label_lengths, dropout_seed
        )
        return self._joint(encoding[:, :, tf.newaxis], prediction[:, tf.newaxis])

    def _networks(self, inputs, input_lengths, labels, label_lengths, dropout_seed):
        """Returns what the joint takes, `[B, T, joint units]` and `[B, U + 1, joint units]`."""
        encoding = self.encode(inputs, input_lengths, dropout_seed)
        prefixes = tf.pad(labels, [[0, 0], [1, 0]], constant_values=BLANK)  # [B, U + 1]
        embedded = self._drop(self._output_embedding(prefixes), dropout_seed, 1)
        prediction, _ = self._predictor(embedded, label_lengths + 1)
        prediction = self._joint.project_prediction(self._drop(prediction, dropout_seed, 2))
        return encoding, prediction

    def feasible(self, inputs: tf.RaggedTensor, labels: tf.RaggedTensor) -> tf.Tensor:
        """Returns `[B]` bool: whether there is an alignment. Labels need one frame, not more."""
        return (inputs.row_lengths() > 0) | (labels.row_lengths() == 0)

    def losses(self, inputs, input_lengths, labels, label_lengths, dropout_seed=None) -> tf.Tensor:
        """Returns the negative log-likelihood `[B]` of the labels, in nats. Takes `call`'s."""
        batch = inputs, input_lengths, labels, label_lengths
        lattice = labels, input_lengths, label_lengths
        if self._fuses:
            networks = self._networks(*batch, dropout_seed)
            return fused_transducer_loss(*networks, *self._joint.output_weights(), *lattice)
        return transducer_loss(self(*batch, dropout_seed), *lattice)

    def occupancies(self, inputs, input_lengths, labels, label_lengths) -> TransducerOccupancies:
        """Returns the posterior over the alignments of labels with inputs. Takes `call`'s."""
        scores = self(inputs, input_lengths, labels, label_lengths)
        return transducer_occupancies(scores, labels, input_lengths, label_lengths)

    def explain(self, inputs, input_lengths, labels, label_lengths) -> Iterator[tuple]:
        """Yields for each example what an `Explanation` has beside symbols. Takes `call`'s."""
        occupancies = self.occupancies(inputs, input_lengths, labels, label_lengths)
        return alignments(occupancies, input_lengths, label_lengths)

    def search(self, inputs, input_lengths) -> Hypotheses:
        """Returns the best labels found for inputs `[B, T]` int32 of lengths `[B]`.

        Where `T` is static so is the width of what is returned, and XLA can compile it.
        """
        if self._config.beam > 1:
            found = self._beam_search(inputs, input_lengths, self._config.beam)
            return Hypotheses(*(values[:, 0] for values in found))
        encoding, width = self.encode(inputs, input_lengths), self._max_length(inputs)
        found, _ = self._greedy_search(encoding, input_lengths, max_length=width)
        return found

    @property
    def streams(self) -> bool:
        """Whether there is a `stream`: neither encoder nor search need see all of an input."""
        return self._encoder.streams and (self.beam == 1 or self._config.search != "alignment")

    @property
    def beam(self) -> int:
        """Hypotheses `K` that a stream keeps of each input."""
        return self._config.beam

    def stream_start(self, batch_size: tf.Tensor) -> StreamState:
        """Returns the state before any input."""
        start = self.start(batch_size)
        if self.beam > 1:
            search = start_beam(start, batch_size, self.beam)
        else:
            search = GreedyState(start, tf.zeros([batch_size]))
        return StreamState(self._encoder.zero_state(batch_size), search)

    def stream(self, inputs, input_lengths, state: StreamState, final: bool = False):
        """Returns how the labels go on with some more inputs, and the state after them.

        Each put behind those of its origin, the labels of all parts are in the end the ones that
        `search` finds for the whole, and so is their log-probability.

        Args:
            inputs: `[B, T]` int32, the next input symbols.
            input_lengths: `[B]` int32, how many they are.
            state: What the last call returned, or `stream_start`.
            final: Whether no more inputs are to come.

        Returns:
            `Continuations`, and the state after them.
        """
        encoding, frames, encoder = self._encoder.stream(
            inputs, input_lengths, state.encoder, final
        )
        encoding = self._joint.project_encoding(encoding)
        stream = self._stream_beam if self.beam > 1 else self._stream_greedy
        found, search = stream(encoding, frames, state.search)
        return found, StreamState(encoder, search)

    def _stream_greedy(self, encoding, frame_lengths, state: GreedyState):
        found, predictor = self._greedy_search(encoding, frame_lengths, state.predictor)
        found = only_continuation(found, state.log_probability)
        return found, GreedyState(predictor, found.log_probability[:, 0])

    def _stream_beam(self, encoding, frame_lengths, state: BeamState):
        score, advance, row = self.steps(encoding, state.state)
        row = row._replace(example=tf.tile(row.example[:, tf.newaxis], [1, self.beam]))
        found, state = stream_beam(
            score, advance, state._replace(state=row), frame_lengths, **self._beam_options
        )
        return found, state._replace(state=state.state.predictor)

    def _greedy_search(self, encoding, frame_lengths, start=None, max_length=None):
        """Returns the `Hypotheses` of a greedy search, and the prediction network's state after."""
        found, state = greedy_transducer_search(
            *self.steps(encoding, start),
            frame_lengths,
            max_symbols_per_frame=self._config.max_symbols_per_frame,
            max_length=max_length,
        )
        return found, state.predictor

    def n_best(self, inputs, input_lengths) -> Hypotheses:
        """Returns the `K` best labels found for each input, `[B, K, …]`, best first."""
        beam = max(self._config.n_best, self._config.beam)
        found = self._beam_search(inputs, input_lengths, beam)
        return Hypotheses(*(values[:, : self._config.n_best] for values in found))

    def _beam_search(self, inputs, input_lengths, beam: int) -> Hypotheses:
        return beam_transducer_search(
            *self.steps(self.encode(inputs, input_lengths)),
            input_lengths,
            beam=beam,
            max_length=self._max_length(inputs),
            **self._beam_options,
        )

    @property
    def _beam_options(self) -> dict:
        return {
            "order": self._config.search,
            "max_symbols_per_frame": self._config.max_symbols_per_frame,
            "length_normalization": self._config.length_normalization,
        }

    def _max_length(self, inputs) -> int | None:
        frames = inputs.shape[1]
        return None if frames is None else frames * self._config.max_symbols_per_frame

    def steps(self, encoding, start: PredictorState | None = None) -> Steps:
        """Returns what a search needs, for the encoder's output `[B, T, joint units]`.

        It is to begin at the prediction network's state `start`, by default that of no label.
        """

        def score(frames, row):
            frame = tf.gather_nd(encoding, tf.stack([row.example, frames], axis=1))
            scores = self._joint(frame, row.predictor.projection)
            return tf.nn.log_softmax(tf.cast(scores, tf.float32))

        def advance(labels, row):
            return row._replace(predictor=self.advance(labels, row.predictor))

        batch_size = tf.shape(encoding)[0]
        start = self.start(batch_size) if start is None else start
        return Steps(score, advance, RowState(tf.range(batch_size), start))

    def encode(self, inputs, input_lengths, dropout_seed=None) -> tf.Tensor:
        """Returns the encoder's output as the joint takes it, `[B, T, joint units]`."""
        encoding = self._encoder(inputs, input_lengths, fold_in(dropout_seed, 3))
        return self._joint.project_encoding(encoding)

    def start(self, batch_size: tf.Tensor) -> PredictorState:
        """Returns the prediction network's state before any label."""
        empty = PredictorState(self._predictor.zero_state(batch_size), None)
        return self.advance(tf.fill([batch_size], BLANK), empty)

    def advance(self, labels: tf.Tensor, state: PredictorState) -> PredictorState:
        """Returns the prediction network's state after one more label each, `[B]` int32."""
        prediction, lstm = self._predictor.step(self._output_embedding(labels), state.lstm)
        return PredictorState(lstm, self._joint.project_prediction(prediction))

    def score(self, encoding: tf.Tensor, frames: tf.Tensor, state: PredictorState) -> tf.Tensor:
        """Returns scores `[B, V]` at one frame each, `[B]` int32, of `encode`'s output."""
        frame = tf.gather(encoding, frames, axis=1, batch_dims=1)
        return self._joint(frame, state.projection)

    def _drop(self, values: tf.Tensor, seed: tf.Tensor | None, place: int) -> tf.Tensor:
        return dropout(values, self._dropout, fold_in(seed, place))
