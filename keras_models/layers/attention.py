"""Attention: for each query, a mean of memories, weighted by how well they answer it."""

from __future__ import annotations

import keras
import tensorflow as tf


class Attention(keras.layers.Layer):
    """Additive (Bahdanau et al. 2015) or multiplicative (Luong et al. 2015) attention.

        additive        score(q, m) = v · tanh(A q + B m + a)
        multiplicative  score(q, m) = q · B m

    The weights of a query are the softmax of its scores over the real memories.

    Args:
        kind: `"additive"` or `"multiplicative"`.
        units: Width of the hidden layer of the additive kind; the other has none.
        query_width: Width `D` of queries.
        memory_width: Width `F` of memories.
    """

    def __init__(self, kind: str, units: int, query_width: int, memory_width: int):
        super().__init__()
        if kind not in ("additive", "multiplicative"):
            raise ValueError(
                f"Argument `kind` must be 'additive' or 'multiplicative'. Received: kind={kind!r}"
            )
        self._additive = kind == "additive"
        key_width = units if self._additive else query_width
        self._keys = keras.layers.Dense(key_width, use_bias=self._additive)
        self._keys.build((None, memory_width))
        if self._additive:
            self._queries = keras.layers.Dense(units, use_bias=False)
            self._queries.build((None, query_width))
            self._scores = keras.layers.Dense(1, use_bias=False)
            self._scores.build((None, units))
        self.built = True

    def project(self, memory: tf.Tensor) -> tf.Tensor:
        """Returns keys `[B, T, …]`, to be computed once a memory, for memories `[B, T, F]`."""
        return self._keys(memory)

    def call(self, queries, keys, memory, lengths) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns contexts `[B, U, F]` and weights `[B, U, T]` float32.

        Each context is a sum of memories by weights, and the weights of a query are 0 past the
        length and sum to 1 within it. Without memories all are 0.

        Args:
            queries: `[B, U, D]`.
            keys: Of `project`.
            memory: `[B, T, F]`.
            lengths: `[B]` integers, in `[0, T]`.
        """
        weights = masked_softmax(self._score(queries, keys), lengths)
        return tf.einsum("but,btf->buf", tf.cast(weights, memory.dtype), memory), weights

    def _score(self, queries, keys) -> tf.Tensor:
        if not self._additive:
            return tf.einsum("bud,btd->but", tf.cast(queries, keys.dtype), keys)
        hidden = tf.tanh(self._queries(queries)[:, :, tf.newaxis] + keys[:, tf.newaxis])
        return tf.squeeze(self._scores(hidden), -1)  # [B, U, T]


def masked_softmax(scores: tf.Tensor, lengths: tf.Tensor) -> tf.Tensor:
    """Returns the softmax `[B, U, T]` float32 over the first `lengths` `[B]` of `T` scores."""
    scores = tf.cast(scores, tf.float32)
    mask = tf.sequence_mask(lengths, tf.shape(scores)[2])[:, tf.newaxis]
    weights = tf.nn.softmax(tf.where(mask, scores, scores.dtype.min))
    return tf.where(mask, weights, 0.0)
