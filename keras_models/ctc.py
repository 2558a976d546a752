"""An encoder trained by connectionist temporal classification (Graves et al. 2006)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_models import BLANK
from keras_models.configs.ctc import CTCConfig
from keras_models.decoding.alignment import alignments
from keras_models.decoding.ctc import (
    CTCBeamState,
    beam_ctc_search,
    greedy_ctc_search,
    start_ctc_beam,
    stream_ctc_beam,
)
from keras_models.decoding.transducer import Hypotheses, only_continuation
from keras_models.layers.symbols import SymbolEncoder
from keras_models.losses.ctc import ctc_loss, ctc_occupancies
from keras_models.losses.transducer import TransducerOccupancies


class GreedyState(NamedTuple):
    """What a greedy search carries from one part of an input to the next."""

    last: tf.Tensor  # [B] int32, the last symbol of the likeliest path
    log_probability: tf.Tensor  # [B], of that path


class StreamState(NamedTuple):
    """What is carried from one part of an input to the next."""

    encoder: object  # nest of [B, …], of the encoder's kind
    search: GreedyState | CTCBeamState


class CTC(keras.layers.Layer):
    """LSTM encoder over symbols, with scores of output symbols for some frames of each.

    CTC gives each frame one symbol, so that an output can be no longer than its input. Here an
    input symbol has several frames, `N`, each with output weights of its own, so that `T` symbols
    have `N T` frames at the cost of an encoder over `T`.

    Args:
        config: Sizes.
        input_size: Number of input symbols, padding counted.
        output_size: Number of output symbols, blank counted.
    """

    def __init__(self, config: CTCConfig, input_size: int, output_size: int):
        super().__init__()
        self._config = config
        self._rate = config.frames_per_symbol
        self._symbols = output_size
        self._encoder = SymbolEncoder(config, input_size)
        self._scores = keras.layers.Dense(self._rate * output_size)
        self._scores.build((None, self._encoder.output_width))
        self.built = True

    def call(self, inputs, input_lengths, dropout_seed=None) -> tf.Tensor:
        """Returns scores `[B, N T, V]` of every output symbol at every frame.

        Args:
            inputs: `[B, T]` int32, input symbols.
            input_lengths: `[B]` int32.
            dropout_seed: `[2]` int32, a seed for this step; None leaves dropout out.
        """
        return self._frames(self._encoder(inputs, input_lengths, dropout_seed))

    def _frames(self, encoding):
        """Returns scores `[B, N T, V]` for `[B, T, encoder width]`."""
        batch, steps, _ = tf.unstack(tf.shape(encoding))
        return tf.reshape(self._scores(encoding), [batch, steps * self._rate, self._symbols])

    def feasible(self, inputs: tf.RaggedTensor, labels: tf.RaggedTensor) -> tf.Tensor:
        """Returns `[B]` bool: whether there is a path: frames for labels, and between the same."""
        again = tf.cast(labels[:, 1:] == labels[:, :-1], tf.int64)
        needed = labels.row_lengths() + tf.reduce_sum(again, axis=1)
        return self._rate * inputs.row_lengths() >= needed

    def losses(self, inputs, input_lengths, labels, label_lengths, dropout_seed=None) -> tf.Tensor:
        """Returns the negative log-likelihood `[B]` of the labels, in nats.

        Args:
            inputs: As in `call`, and so is the next.
            input_lengths: Likewise.
            labels: `[B, U]` int32, output symbols.
            label_lengths: `[B]` int32.
            dropout_seed: As in `call`.
        """
        scores = self(inputs, input_lengths, dropout_seed)
        return ctc_loss(scores, labels, self._rate * input_lengths, label_lengths)

    def occupancies(self, inputs, input_lengths, labels, label_lengths) -> TransducerOccupancies:
        """Returns the posterior over the alignments of labels with inputs. Takes `losses`'.

        A label is emitted at the input symbol that has the first of its frames; the blank of an
        input symbol comes after all of its frames.
        """
        scores = self(inputs, input_lengths)
        found = ctc_occupancies(scores, labels, self._rate * input_lengths, label_lengths)
        batch, frames, width = tf.unstack(tf.shape(found.labels))
        shape = [batch, frames // self._rate, self._rate, width]
        blanks, labels = (tf.reshape(x, shape) for x in (found.blanks, found.labels))
        last = tf.pad(labels[:, :, -1, :-1], [[0, 0], [0, 0], [1, 0]])
        blanks, labels = blanks[:, :, -1] + last, tf.reduce_sum(labels, axis=2)
        return TransducerOccupancies(blanks + labels, blanks, labels)

    def explain(self, inputs, input_lengths, labels, label_lengths) -> Iterator[tuple]:
        """Yields for each example what an `Explanation` has beside symbols. Takes `losses`'."""
        occupancies = self.occupancies(inputs, input_lengths, labels, label_lengths)
        return alignments(occupancies, input_lengths, label_lengths)

    def search(self, inputs, input_lengths) -> Hypotheses:
        """Returns the best labels found for inputs `[B, T]` int32 of lengths `[B]`.

        Where `T` is static so is the width of what is returned, `N T`, and XLA can compile it.
        """
        if self._config.beam > 1:
            found = self._beam_search(inputs, input_lengths, self._config.beam)
            return Hypotheses(*(values[:, 0] for values in found))
        log_probabilities = _log_softmax(self(inputs, input_lengths))
        found, _ = greedy_ctc_search(log_probabilities, self._rate * input_lengths)
        return self._at_inputs(found)

    def n_best(self, inputs, input_lengths) -> Hypotheses:
        """Returns the `K` best labels found for each input, `[B, K, …]`, best first."""
        beam = max(self._config.n_best, self._config.beam)
        found = self._beam_search(inputs, input_lengths, beam)
        return Hypotheses(*(values[:, : self._config.n_best] for values in found))

    def _beam_search(self, inputs, input_lengths, beam: int) -> Hypotheses:
        log_probabilities = _log_softmax(self(inputs, input_lengths))
        found = beam_ctc_search(log_probabilities, self._rate * input_lengths, beam=beam)
        return self._at_inputs(found)

    def _at_inputs(self, found: Hypotheses) -> Hypotheses:
        """Returns the hypotheses with the numbers of input symbols for those of frames."""
        return found._replace(frames=found.frames // self._rate)

    @property
    def streams(self) -> bool:
        """Whether there is a `stream`: whether the encoder need not see all of an input."""
        return self._encoder.streams

    @property
    def beam(self) -> int:
        """Hypotheses `K` that a stream keeps of each input."""
        return self._config.beam

    def stream_start(self, batch_size: tf.Tensor) -> StreamState:
        """Returns the state before any input."""
        if self.beam > 1:
            search = start_ctc_beam(batch_size, self.beam)
        else:
            search = GreedyState(tf.fill([batch_size], BLANK), tf.zeros([batch_size]))
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
        encoding, steps, encoder = self._encoder.stream(inputs, input_lengths, state.encoder, final)
        log_probabilities = _log_softmax(self._frames(encoding))
        stream = stream_ctc_beam if self.beam > 1 else _stream_greedy
        found, search = stream(log_probabilities, self._rate * steps, state.search)
        return found, StreamState(encoder, search)


def _stream_greedy(log_probabilities, frame_lengths, state: GreedyState):
    found, last = greedy_ctc_search(log_probabilities, frame_lengths, state.last)
    found = only_continuation(found, state.log_probability)
    return found, GreedyState(last, found.log_probability[:, 0])


def _log_softmax(scores):
    return tf.nn.log_softmax(tf.cast(scores, tf.float32))
