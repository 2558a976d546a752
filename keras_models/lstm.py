"""Recurrent networks: one output for a whole series, or one at each of its steps."""

from __future__ import annotations

import keras
import tensorflow as tf

from keras_models.configs.lstm import LSTMConfig
from keras_models.layers.dropout import dropout, fold_in
from keras_models.layers.recurrent import GRU, LSTM, RNN, Stacked

_CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


class ManyToOneLSTM(keras.layers.Layer):
    """A series to some numbers: class scores, or values.

    Args:
        config: Sizes and choices.
        width: Number of values `F` at a step.
        outputs: Number of values `V` for a series.
    """

    def __init__(self, config: LSTMConfig, width: int, outputs: int):
        super().__init__()
        self._dropout, self._summary = config.dropout, config.summary
        self._recurrent = recurrent(config)
        self._output = keras.layers.Dense(outputs)
        self._recurrent.build((None, None, width))
        self._output.build((None, self._recurrent.output_width))
        self.built = True

    def call(self, inputs, lengths, dropout_seed=None) -> tf.Tensor:
        """Returns `[B, V]`.

        Args:
            inputs: `[B, T, F]` float.
            lengths: `[B]` int32.
            dropout_seed: `[2]` int32, a seed for this step; None leaves dropout out.
        """
        steps, states = self._recurrent(inputs, lengths, dropout_seed=fold_in(dropout_seed, 0))
        summary = self._summarized(steps, lengths, states[-1])
        return self._output(dropout(summary, self._dropout, fold_in(dropout_seed, 1)))

    def _summarized(self, steps, lengths, last):
        """Returns `[B, D]` of the outputs `[B, T, D]` of the last layer and its last state."""
        if self._summary == "last":
            both = last if self._recurrent.bidirectional else (last,)
            return tf.concat([state.hidden for state in both], axis=-1)
        lengths = tf.maximum(lengths, 1)  # past them the outputs are 0
        if self._summary == "mean":
            return tf.reduce_sum(steps, axis=1) / tf.cast(lengths, steps.dtype)[:, tf.newaxis]
        real = tf.sequence_mask(lengths, tf.shape(steps)[1])[:, :, tf.newaxis]
        return tf.reduce_max(tf.where(real, steps, steps.dtype.min), axis=1)


class AlignedLSTM(keras.layers.Layer):
    """A text to some numbers at each of its symbols: the scores of its tags.

    Args:
        config: Sizes and choices.
        symbols: Number of input symbols, padding counted.
        outputs: Number of values `V` at a symbol.
    """

    def __init__(self, config: LSTMConfig, symbols: int, outputs: int):
        super().__init__()
        self._dropout = config.dropout
        self._embedding = keras.layers.Embedding(symbols, config.embedding_units)
        self._recurrent = recurrent(config)
        self._output = keras.layers.Dense(outputs)
        self._embedding.build()
        self._recurrent.build((None, None, config.embedding_units))
        self._output.build((None, None, self._recurrent.output_width))
        self.built = True

    def call(self, inputs, lengths, dropout_seed=None) -> tf.Tensor:
        """Returns `[B, T, V]`.

        Args:
            inputs: `[B, T]` int32, symbols.
            lengths: `[B]` int32.
            dropout_seed: `[2]` int32, a seed for this step; None leaves dropout out.
        """
        embedded = dropout(self._embedding(inputs), self._dropout, fold_in(dropout_seed, 0))
        steps, _ = self._recurrent(embedded, lengths, dropout_seed=fold_in(dropout_seed, 1))
        return self._output(dropout(steps, self._dropout, fold_in(dropout_seed, 2)))


def recurrent(config: LSTMConfig) -> Stacked:
    """Returns the recurrent layers of a configuration."""
    return Stacked(
        _CELLS[config.cell],
        config.units,
        config.layers,
        bidirectional=config.bidirectional,
        residual=config.residual,
        dropout=config.dropout,
    )
