"""Which examples make the batch of a step: a function of a seed and the number of the step.

Nothing is carried from one batch to the next, so that a batch costs the same whatever the number of
examples, a training goes on at any step by the step's number alone, and workers agree on a batch
without a word between them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import tensorflow as tf

# Of the permutation. TensorFlow's own `index_shuffle` takes 65,536 / size steps for each place.
_ROUNDS = 24
# The least in an epoch where weights make fractions of draws.
_DRAWS = 2**16


class Order:
    """An endless sequence of batches, each of examples of one bucket.

    The examples of one bucket and one part are gone through again and again, each time in another
    order. Of a bucket's batches, a share of examples comes from each part. A round has so many
    batches of each bucket as one epoch fills, in random order; what it fills in part is carried
    over, so that no batch is short.

    Args:
        lengths: Of the sequences of the examples, `[N, sequences]`, one part after the other.
        parts: The number of examples in each part, which is not 0.
        weights: Of each part: how often its examples are drawn is in proportion to it, whatever
            their number.
        widths: Of buckets, `[buckets, sequences]`, rising. An example belongs to the first bucket
            that holds it.
        sizes: The number of examples in a batch of each bucket.
        seed: Of the order, in 0 … 2³¹ - 1.
    """

    def __init__(
        self,
        lengths: np.ndarray,
        parts: Sequence[int],
        weights: Sequence[float],
        widths: Sequence[Sequence[int]],
        sizes: Sequence[int],
        seed: int,
    ):
        buckets, of = len(widths), np.array(parts)
        streams = _buckets(lengths, widths) * len(of) + np.repeat(np.arange(len(of)), of)
        counts = np.bincount(streams, minlength=buckets * len(of)).reshape(buckets, len(of))
        shares = np.array(weights) / np.sum(weights)
        # An epoch draws as many examples as there are, or, not to round too much, many more.
        draws = counts * (shares * of.sum() / of)
        if not np.allclose(draws, np.rint(draws)):
            draws *= np.ceil(_DRAWS / of.sum())
        draws = np.where(counts > 0, np.maximum(np.rint(draws), 1), 0).astype(np.int64)
        epochs = max(1, int(np.ceil(1 / np.sum(draws.sum(axis=1) / sizes))))
        self._seed = seed
        self._examples = tf.constant(np.argsort(streams, kind="stable"), tf.int64)
        self._parts, self._draws = len(of), tf.constant(draws)
        # Of each bucket's examples from each part, a stream:
        self._counts = tf.constant(counts.ravel(), tf.int64)
        self._firsts = tf.constant(np.cumsum(counts) - counts.ravel(), tf.int64)
        self._sizes = tf.constant(sizes, tf.int64)
        self._draws_a_round = tf.constant(draws.sum(axis=1) * epochs)
        self._batches_a_round = float(np.sum(draws.sum(axis=1) * epochs / sizes))

    def batches(self, steps: tf.Tensor) -> tuple[tf.Tensor, tf.RaggedTensor]:
        """Returns of steps `[S]` int64 the buckets `[S]`, and the examples' numbers `[S, (B)]`."""
        turns = self._rounds(steps)
        before, after = self._batches_before(turns), self._batches_before(turns + 1)
        ends = tf.cumsum(after - before, axis=1)
        places = steps - tf.reduce_sum(before, axis=1)
        places = permuted(places, ends[:, -1], self._key(tf.zeros_like(turns), turns))
        buckets = _stretch(ends, places)
        numbers = places + tf.gather(after - ends, buckets, batch_dims=1)
        sizes = tf.gather(self._sizes, buckets)
        starts = numbers * sizes
        drawn = tf.ragged.range(starts, starts + sizes)
        examples = self._drawn(tf.repeat(buckets, sizes), drawn.flat_values)
        return buckets, drawn.with_flat_values(tf.gather(self._examples, examples))

    def _rounds(self, steps: tf.Tensor) -> tf.Tensor:
        """Returns the round of each step: the last before which there are not more batches."""
        near = tf.cast(tf.cast(steps, tf.float64) / self._batches_a_round, tf.int64) - 1
        # A round is early by less than one batch of each bucket.
        rounds = near[:, tf.newaxis] + tf.range(tf.size(self._sizes, tf.int64) + 3)
        before = tf.reduce_sum(self._batches_before(rounds), axis=2)
        return near - 1 + tf.math.count_nonzero(before <= steps[:, tf.newaxis], axis=1)

    def _batches_before(self, rounds: tf.Tensor) -> tf.Tensor:
        """Returns the number of batches of each bucket before each round, `[…, buckets]`."""
        return rounds[..., tf.newaxis] * self._draws_a_round // self._sizes

    def _drawn(self, buckets: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        """Returns what is drawn in buckets `[R]` at places `[R]`, counted from the first draw."""
        streams = buckets
        if self._parts > 1:
            streams, places = self._of_parts(buckets, places)
        counts, firsts = tf.gather(self._counts, streams), tf.gather(self._firsts, streams)
        keys = self._key(1 + len(self._sizes) + streams, places // counts)
        return firsts + permuted(places % counts, counts, keys)

    def _of_parts(self, buckets: tf.Tensor, places: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns which part is drawn from, as a stream, and at which of its own places."""
        draws = tf.gather(self._draws, buckets)
        ends = tf.cumsum(draws, axis=1)
        epochs, places = places // ends[:, -1], places % ends[:, -1]
        places = permuted(places, ends[:, -1], self._key(1 + buckets, epochs))
        part = _stretch(ends, places)
        places += epochs * tf.gather(draws, part, batch_dims=1)
        return buckets * self._parts + part, places - tf.gather(ends - draws, part, batch_dims=1)

    def _key(self, streams: tf.Tensor, epochs: tf.Tensor) -> tf.Tensor:
        """Returns the keys of permutations, which follow one another in each stream."""
        return mixed(mixed(tf.constant(self._seed, tf.uint64), streams), epochs)


def _buckets(lengths: np.ndarray, widths: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns the first bucket that holds each example; the last one holds all."""
    buckets = np.full(len(lengths), len(widths) - 1)
    for bucket in reversed(range(len(widths) - 1)):
        buckets[(lengths <= widths[bucket]).all(axis=1)] = bucket
    return buckets


def _stretch(ends: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Returns in which of stretches `[N, stretches]`, their ends not in them, places `[N]` are."""
    return tf.math.count_nonzero(places[:, tf.newaxis] >= ends, axis=1)


_ANY = tf.TensorSpec([None], tf.int64)


@tf.function(input_signature=[_ANY, _ANY, tf.TensorSpec([None], tf.uint64)])
def permuted(places: tf.Tensor, sizes: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Returns where places go when 0 … size - 1 are put into a random order, the key's own.

    The shuffle swap-or-not: in each round any two places that a random number pairs change with
    each other, or do not, by a random bit of the pair.

    Args:
        places: `[B]` int64, in 0 … size - 1.
        sizes: `[B]` int64, or one for all, less than 2³¹.
        keys: `[B]` uint64, or one for all; places of another size have another key.

    Reference: Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card Shuffle" (2012).
    """
    few, which = tf.unique(keys)  # the same for all of an epoch
    numbers = tf.range(1, 3 * _ROUNDS + 1, dtype=tf.int64)
    random = tf.bitcast(mixed(few, numbers[:, tf.newaxis]), tf.int64)
    # Half as wide, numbers are gone through several times as fast.
    pairing, factor, summand = tf.split(tf.bitwise.right_shift(random, 32), 3)
    size = tf.broadcast_to(sizes, tf.shape(which))
    pairing = _scaled(pairing, tf.math.unsorted_segment_max(size, which, tf.size(few)))
    pairing, factor, summand, places, sizes = (
        tf.cast(each, tf.int32) for each in (pairing, factor | 1, summand, places, sizes)
    )
    for n in range(_ROUNDS):
        a, b, c = (tf.gather(each[n], which) for each in (pairing, factor, summand))
        others = a - places
        others = tf.where(others < 0, others + sizes, others)
        places = tf.where(tf.maximum(places, others) * b + c < 0, others, places)
    return tf.cast(places, tf.int64)


def _scaled(random: tf.Tensor, sizes: tf.Tensor) -> tf.Tensor:
    """Returns random bits as a number in 0 … size - 1, sizes being less than 2³¹."""
    return tf.bitwise.right_shift((random & 0x7FFFFFFF) * sizes, 31)


def mixed(key: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
    """Returns uint64 of which every bit depends on every bit of key and number, by splitmix64."""
    x = key + tf.cast(number, tf.uint64) * tf.constant(0x9E3779B97F4A7C15, tf.uint64)
    x = (x ^ tf.bitwise.right_shift(x, 30)) * tf.constant(0xBF58476D1CE4E5B9, tf.uint64)
    x = (x ^ tf.bitwise.right_shift(x, 27)) * tf.constant(0x94D049BB133111EB, tf.uint64)
    return x ^ tf.bitwise.right_shift(x, 31)
