"""Recurrent encoders that can be read while their inputs are still coming.

Both have, beside `call`, which reads whole sequences, the same function for a part of them:

    zero_state(batch)                        the state before any input
    stream(inputs, lengths, state, final)    outputs, how many there are, and the next state

The outputs of all parts, one after another, are those of the whole, wherever it was cut.
"""

from typing import NamedTuple

import keras
import tensorflow as tf

from keras_models.layers.dropout import dropout, fold_in
from keras_models.layers.recurrent import BidirectionalLSTM, LSTMState, StackedLSTM


class CausalLSTM(StackedLSTM):
    """LSTMs one on another that read from the first step to the last, and nothing ahead."""

    def __init__(self, units, layers, dropout=0.0, **kwargs):
        super().__init__(units, layers, dropout=dropout, **kwargs)

    def stream(self, inputs, lengths, state, final=False):
        """Returns what `ChunkedLSTM.stream` does. No step waits, so `final` changes nothing."""
        outputs, state = self(inputs, lengths, state)
        return outputs, lengths, state


class ChunkedState(NamedTuple):
    """What a `ChunkedLSTM` carries from one part of a sequence to the next."""

    layers: tuple[LSTMState, ...]  # of the forward directions, after the last whole chunk
    waiting: tf.Tensor  # [B, chunk + lookahead − 1, F], steps whose outputs are still to come
    count: tf.Tensor  # [B] int32, how many of them


class ChunkedLSTM(keras.layers.Layer):
    """Bidirectional LSTMs one on another that look no further ahead than so many steps.

    Forward, a layer reads all that came before. Backward, it begins anew in every chunk of steps:
    at the chunk's end, and in the first layer `lookahead` steps past it. An output thus depends
    on at most `chunk + lookahead − 1` later steps, however many layers there are. This is the
    latency-controlled LSTM of Zhang et al. 2016 ("Highway long short-term memory RNNs for distant
    speech recognition", arXiv 1510.08983), but that only the first layer reads what is ahead, so
    that no step is computed anew for the sake of a later layer. Weights are those of a
    bidirectional `StackedLSTM`.

    Args:
        units: Width `D` of each direction of each layer.
        layers: Number of layers.
        chunk: Steps in a chunk.
        lookahead: Steps past a chunk that are read with it.
        dropout: Share of the outputs dropped between one layer and the next.
    """

    def __init__(self, units, layers, chunk, lookahead, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        if chunk < 1 or lookahead < 0:
            raise ValueError(
                "Arguments `chunk` and `lookahead` must be at least 1 and 0. "
                f"Received: chunk={chunk}, lookahead={lookahead}"
            )
        self.layers = [
            BidirectionalLSTM(units, dtype=self.dtype_policy, name=f"{n}") for n in range(layers)
        ]
        self.chunk = chunk
        self.lookahead = lookahead
        self.dropout = dropout
        self.output_width = 2 * units

    def build(self, inputs_shape):
        self._input_width = inputs_shape[-1]
        for layer in self.layers:
            layer.build(inputs_shape)
            inputs_shape = (*inputs_shape[:-1], self.output_width)

    def call(self, inputs, lengths, initial_state=None, dropout_seed=None):
        """Returns outputs `[B, T, 2D]` and a tuple of the forward directions' last states."""
        states = initial_state or self._zero_states(tf.shape(inputs)[0])
        lengths = tf.cast(lengths, tf.int32)
        return self._read(inputs, lengths, lengths, states, dropout_seed)

    def stream(self, inputs, lengths, state, final=False):
        """Returns the outputs that these inputs complete.

        Args:
            inputs: `[B, T, F]` floats, the next steps of each sequence.
            lengths: `[B]` integers, in `[0, T]`, how many those are.
            state: What the last call returned, or `zero_state`.
            final: Whether no more steps are to come.

        Returns:
            Outputs `[B, T', 2D]`, how many of them each sequence has, `[B]` int32, and the state.
        """
        inputs, known = self._behind_waiting(state, inputs, tf.cast(lengths, tf.int32))
        whole = tf.maximum(known - self.lookahead, 0) // self.chunk * self.chunk
        ready = known if final else whole
        outputs, layers = self._read(inputs, known, ready, state.layers)
        waiting = _gather(inputs, ready[:, None] + tf.range(state.waiting.shape[1]))
        return outputs, ready, ChunkedState(layers, waiting, known - ready)

    def zero_state(self, batch):
        """Returns the state of `batch` sequences before their first steps."""
        shape = [batch, self.chunk + self.lookahead - 1, self._input_width]
        waiting = tf.zeros(shape, self.compute_dtype)
        return ChunkedState(self._zero_states(batch), waiting, tf.zeros([batch], tf.int32))

    def _zero_states(self, batch):
        return tuple(layer.forward.zero_state(batch) for layer in self.layers)

    def _behind_waiting(self, state, inputs, lengths):
        """Returns each sequence's waiting steps and new ones in one piece, and their number."""
        together = tf.concat([state.waiting, tf.cast(inputs, self.compute_dtype)], axis=1)
        places = tf.broadcast_to(tf.range(tf.shape(together)[1]), tf.shape(together)[:2])
        count = state.count[:, None]
        gap = state.waiting.shape[1] - count
        places = tf.where(places < count, places, places + gap)
        return _gather(together, places), state.count + lengths

    def _read(self, inputs, known, lengths, states, dropout_seed=None):
        """Returns outputs `[B, T, 2D]` and the forward directions' states after `lengths` steps.

        Args:
            inputs: `[B, T, F]`.
            known: `[B]`, how many steps there are.
            lengths: `[B]`, how many are to be read: all, or whole chunks with what is ahead.
            states: A tuple of `LSTMState`.
            dropout_seed: `[2]` int32, or None.
        """
        last_states, lookahead = [], self.lookahead
        for n, (layer, state) in enumerate(zip(self.layers, states, strict=True)):
            if n > 0:
                inputs = dropout(inputs, self.dropout, fold_in(dropout_seed, n))
            forward, state = layer.forward(inputs, lengths, state)
            backward = self._read_backward(layer.backward, inputs, known, lookahead)
            inputs = tf.concat([forward, backward], axis=-1)
            known, lookahead = lengths, 0
            last_states.append(state)
        return inputs, tuple(last_states)

    def _read_backward(self, layer, inputs, lengths, lookahead):
        """Returns the outputs `[B, T, D]` of a layer that begins anew in every chunk."""
        batch, steps, width = tf.unstack(tf.shape(inputs))
        count = -(-steps // self.chunk)
        size = self.chunk + lookahead
        windows = self._windows(inputs, count, lookahead)
        left = lengths[:, None] - self.chunk * tf.range(count)  # [B, chunks]
        outputs, _ = layer(
            tf.reshape(windows, [batch * count, size, inputs.shape[2] or width]),
            tf.reshape(tf.clip_by_value(left, 0, size), [-1]),
        )
        outputs = outputs[:, : self.chunk]
        return tf.reshape(outputs, [batch, count * self.chunk, layer.units])[:, :steps]

    def _windows(self, inputs, count, lookahead):
        """Returns each chunk with what is ahead of it, `[B, chunks, chunk + lookahead, F]`."""
        batch, steps, width = tf.unstack(tf.shape(inputs))
        inputs = tf.pad(inputs, [[0, 0], [0, count * self.chunk - steps], [0, 0]])
        chunks = tf.reshape(inputs, [batch, count, self.chunk, width])
        later = range(-(-lookahead // self.chunk) + 1)
        shifted = [tf.pad(chunks, [[0, 0], [0, n], [0, 0], [0, 0]])[:, n:] for n in later]
        return tf.concat(shifted, axis=2)[:, :, : self.chunk + lookahead]


def _gather(steps, places):
    """Returns the steps `[B, T, F]` at places `[B, P]`, the last one past the end."""
    last = tf.maximum(tf.shape(steps)[1] - 1, 0)
    return tf.gather(steps, tf.minimum(places, last), axis=1, batch_dims=1)
