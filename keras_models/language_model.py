"""A recurrent language model, with the three ways to end a text.

    P(x_1 … x_n) = Π_t P(x_t | x_1 … x_{t-1}), and the probability that x_n is the last

The last is that of a symbol of its own, number 0, which foretells the first symbol too; or of an
output of each step that says whether the text ends before it; or P(n), where the number of
symbols is drawn beforehand and each step is told how many are left.

Reference: Goodfellow, Bengio and Courville, "Deep Learning" (2016), section 10.2.3.
"""

from __future__ import annotations

from typing import NamedTuple

import keras
import tensorflow as tf

from keras_models import PADDING
from keras_models.configs.language_model import LanguageModelConfig
from keras_models.decoding.sampling import Scores, pick
from keras_models.layers.dropout import dropout, fold_in
from keras_models.layers.recurrent import GRU, LSTM, RNN, Stacked
from keras_models.losses.cross_entropy import cross_entropy

# Before the first symbol of a text and, where the stop is a symbol, after its last one.
BOUNDARY = PADDING
# Symbols of a text that are read at once where it is long: more take memory, and no less time.
_PART = 256
_CELLS = {"lstm": LSTM, "gru": GRU, "rnn": RNN}


class LanguageModelState(NamedTuple):
    """What a language model carries from symbol to symbol."""

    symbol: tf.Tensor  # [B] int32, the last one, or the boundary
    left: tf.Tensor  # [B] int32, how many are to come; where that is not known, 0
    layers: object  # nest of [B, units], after the symbols before the last


class RecurrentLanguageModel(keras.layers.Layer):
    """Recurrent layers over a text's symbols.

    Args:
        config: Sizes.
        size: Number of symbols, the boundary counted.
    """

    def __init__(self, config: LanguageModelConfig, size: int):
        super().__init__()
        self._dropout, self._longest = config.dropout, config.longest
        self.stop = config.stop
        # Where no symbol ends a text there are no scores for it: the first are those of symbol 1.
        self._first = BOUNDARY if self.stop == "symbol" else BOUNDARY + 1
        self._embedding = keras.layers.Embedding(size, config.embedding_units)
        self._recurrent = Stacked(
            _CELLS[config.cell], config.units, config.layers, dropout=config.dropout
        )
        self._output = keras.layers.Dense(size - self._first)
        self._embedding.build()
        self._recurrent.build((None, None, config.embedding_units))
        self._output.build((None, config.units))
        if self.stop == "bernoulli":
            self._ends = keras.layers.Dense(1)
            self._ends.build((None, config.units))
        if self.stop == "length":
            self._left = keras.layers.Embedding(self._longest + 1, config.embedding_units)
            self._left.build()
            self._lengths = self.add_weight((self._longest + 1,), initializer="zeros")
        self.built = True

    def zero_state(self, batch_size: tf.Tensor, lengths: tf.Tensor | None = None):
        """Returns the state before any symbol, of texts of `[B]` where the stop is a length."""
        nothing = tf.fill([batch_size], BOUNDARY)
        left = lengths if self.stop == "length" and lengths is not None else nothing
        return LanguageModelState(nothing, left, self._recurrent.zero_state(batch_size))

    def losses(self, text, lengths, state: LanguageModelState, dropout_seed=None):
        """Returns -log P of a text's next symbols, `[B]` in nats, and the state after them.

        Args:
            text: `[B, T]` int32, symbols.
            lengths: `[B]` int32, how many they are; none may be.
            state: What the symbols before them have left, or `zero_state`.
            dropout_seed: `[2]` int32, a seed for this step; None leaves dropout out.
        """
        before = tf.concat([state.symbol[:, tf.newaxis], text], axis=1)  # [B, T + 1]
        left = state.left[:, tf.newaxis] - tf.range(tf.shape(text)[1])
        embedded = self._embedded(before[:, :-1], left)
        hidden, layers = self._recurrent(embedded, lengths, state.layers, dropout_seed)
        hidden = self._drop(hidden, dropout_seed, 1)
        losses = cross_entropy(self._output(hidden), tf.maximum(text - self._first, 0))
        if self.stop == "bernoulli":
            losses += tf.nn.softplus(self._ending(hidden))
        real = tf.sequence_mask(lengths, tf.shape(text)[1])
        losses = tf.reduce_sum(tf.where(real, losses, 0.0), axis=1)
        last = tf.gather(before, lengths, batch_dims=1)
        return losses, LanguageModelState(last, self._left_after(lengths, state), layers)

    def read(self, text, lengths, state: LanguageModelState):
        """Returns what `losses` does without dropout, of texts however long, part by part."""
        width = tf.maximum(tf.minimum(tf.shape(text)[1], _PART), 1)
        parts = -(-tf.shape(text)[1] // width)
        text = tf.pad(text, [[0, 0], [0, parts * width - tf.shape(text)[1]]])

        def one(n, losses, state):
            part = text[:, n * width : (n + 1) * width]
            some, state = self.losses(part, tf.clip_by_value(lengths - n * width, 0, width), state)
            return n + 1, losses + some, state

        nothing = tf.zeros(tf.shape(lengths))
        _, losses, state = tf.while_loop(lambda n, *_: n < parts, one, (0, nothing, state))
        return losses, state

    def after(self, text, lengths, uniforms) -> LanguageModelState:
        """Returns the state after the beginnings of texts.

        Where the stop is a length it is drawn now, from the lengths that such texts have:
        P(n | x_1 … x_m) is in proportion to P(n) P(x_1 … x_m | n), and 0 for n < m.

        Args:
            text: `[B, T]` int32, symbols.
            lengths: `[B]` int32, how many they are.
            uniforms: `[B]` float64 in [0, 1), to draw by.
        """
        rows = tf.shape(text)[0]
        if self.stop != "length":
            return self.read(text, lengths, self.zero_state(rows))[1]
        message = f"A text must have at most {self._longest} symbols. Received, to go on:"
        longest = tf.reduce_max(tf.concat([[0], lengths], 0))
        check = tf.debugging.Assert(longest <= self._longest, [message, longest])
        with tf.control_dependencies([check]):
            every = tf.range(self._longest + 1)
        totals, count = tf.tile(every, [rows]), self._longest + 1
        text, lengths = tf.repeat(text, count, axis=0), tf.repeat(lengths, count)
        losses, state = self.read(text, lengths, self.zero_state(rows * count, totals))
        scores = tf.reshape(tf.where(totals < lengths, -float("inf"), -losses), [rows, count])
        scores += self.length_log_probabilities()
        drawn = pick(tf.nn.softmax(tf.cast(scores, tf.float64)), uniforms)
        return tf.nest.map_structure(lambda x: tf.gather(x, tf.range(rows) * count + drawn), state)

    def end_losses(self, state: LanguageModelState, dropout_seed=None) -> tf.Tensor:
        """Returns -log P that no symbol follows, `[B]` in nats; where a length was told, 0."""
        if self.stop == "length":
            return tf.zeros(tf.shape(state.symbol))
        hidden, _ = self._step(state, dropout_seed)
        if self.stop == "bernoulli":
            return tf.nn.softplus(-self._ending(hidden))
        return cross_entropy(self._output(hidden), tf.fill(tf.shape(state.symbol), BOUNDARY))

    def length_losses(self, lengths: tf.Tensor) -> tf.Tensor:
        """Returns -log P of numbers of symbols `[B]`, in nats; where that is no stop, 0."""
        if self.stop != "length":
            return tf.zeros(tf.shape(lengths))
        losses = -tf.gather(self.length_log_probabilities(), self._possible(lengths))
        return tf.where(lengths <= self._longest, losses, float("inf"))

    def length_log_probabilities(self) -> tf.Tensor:
        """Returns log P of 0, 1, … symbols, `[longest + 1]`, where the stop is a length."""
        return tf.nn.log_softmax(tf.cast(self._lengths, tf.float32))

    def feasible(self, lengths: tf.Tensor) -> tf.Tensor:
        """Returns `[B]` bool: whether a text can have so many symbols."""
        return lengths <= self._longest if self.stop == "length" else lengths >= 0

    def scores(self, state: LanguageModelState) -> tuple[Scores, object]:
        """Returns what may follow, and the layers' state after the last symbol, for `advance`."""
        hidden, layers = self._step(state)
        symbols = tf.nn.log_softmax(tf.cast(self._output(hidden), tf.float32))
        symbols = tf.pad(symbols, [[0, 0], [self._first, 0]], constant_values=-float("inf"))
        if self.stop == "bernoulli":
            return Scores(symbols, self._ending(hidden)), layers
        if self.stop == "length":
            over = tf.where(state.left > 0, -float("inf"), float("inf"))
            return Scores(symbols, over), layers
        return Scores(symbols, tf.fill(tf.shape(state.symbol), -float("inf"))), layers

    def advance(self, symbols: tf.Tensor, state: LanguageModelState, layers):
        """Returns the state after one more symbol each, `[B]` int32."""
        return LanguageModelState(symbols, self._left_after(1, state), layers)

    def _step(self, state, dropout_seed=None):
        """Returns the hidden vector `[B, units]` that foretells the next symbol, and the layers."""
        embedded = self._embedded(state.symbol, state.left)
        hidden, layers = self._recurrent.step(embedded, state.layers, fold_in(dropout_seed, 2))
        return self._drop(hidden, dropout_seed, 3), layers

    def _embedded(self, symbols, left):
        embedded = self._embedding(symbols)
        if self.stop == "length":
            embedded += self._left(self._possible(left))
        return embedded

    def _left_after(self, count, state):
        return state.left - count if self.stop == "length" else state.left

    def _possible(self, lengths):
        return tf.clip_by_value(lengths, 0, self._longest)

    def _ending(self, hidden):
        """Returns the log-odds that a text ends here, `[…]` for `[…, units]`."""
        return tf.cast(self._ends(hidden), tf.float32)[..., 0]

    def _drop(self, values, seed, place):
        return dropout(values, self._dropout, fold_in(seed, place))
