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
        self._counts, self._draws = tf.constant(counts, tf.int64), tf.constant(draws)
        self._firsts = tf.constant(np.cumsum(counts).reshape(counts.shape) - counts, tf.int64)
        self._sizes = tf.constant(sizes, tf.int64)
        self._draws_a_round = tf.constant(draws.sum(axis=1) * epochs)
        self._batches_a_round = float(np.sum(draws.sum(axis=1) * epochs / sizes))

    def batch(self, step: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns a step's bucket and the numbers of its examples, `[B]`, for a scalar int64."""
        turn = self._round(step)
        before, after = self._batches_before(turn), self._batches_before(turn + 1)
        ends = tf.cumsum(after - before)
        place = step - tf.reduce_sum(before)
        place = permuted([place], ends[-1:], [self._key(0, turn)])[0]
        bucket = _stretch(ends, place)
        number = after[bucket] + place - ends[bucket]
        places = number * self._sizes[bucket] + tf.range(self._sizes[bucket])
        return bucket, tf.gather(self._examples, self._drawn(bucket, places))

    def _round(self, step: tf.Tensor) -> tf.Tensor:
        """Returns the round of a step: the last one before which there are not more batches."""
        near = tf.cast(tf.cast(step, tf.float64) / self._batches_a_round, tf.int64) - 1
        # A round is early by less than one batch of each bucket.
        rounds = near + tf.range(tf.size(self._sizes, tf.int64) + 3)
        before = tf.reduce_sum(self._batches_before(rounds[:, tf.newaxis]), axis=1)
        return near - 1 + tf.math.count_nonzero(before <= step)

    def _batches_before(self, turn: tf.Tensor) -> tf.Tensor:
        """Returns the number of batches of each bucket before a round."""
        return turn * self._draws_a_round // self._sizes

    def _drawn(self, bucket: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
        """Returns what is drawn in a bucket at some places, counted from the first draw."""
        draws, parts = self._draws[bucket], tf.shape(self._draws, tf.int64)[1]
        ends = tf.cumsum(draws)
        epoch, place = places // ends[-1], places % ends[-1]
        place = permuted(place, ends[-1:], self._key(1 + bucket, epoch))
        part = _stretch(ends, place)
        # Of that part's examples in this bucket, gone through again and again:
        place = epoch * tf.gather(draws, part) + place - tf.gather(ends - draws, part)
        counts, firsts = (tf.gather(x[bucket], part) for x in (self._counts, self._firsts))
        stream = 1 + tf.size(self._sizes, tf.int64) + bucket * parts + part
        return firsts + permuted(place % counts, counts, self._key(stream, place // counts))

    def _key(self, stream: tf.Tensor | int, epoch: tf.Tensor) -> tf.Tensor:
        """Returns the key of one of the permutations that follow one another in a stream."""
        return _mixed(_mixed(tf.constant(self._seed, tf.uint64), stream), epoch)


def _buckets(lengths: np.ndarray, widths: Sequence[Sequence[int]]) -> np.ndarray:
    """Returns the first bucket that holds each example; the last one holds all."""
    buckets = np.full(len(lengths), len(widths) - 1)
    for bucket in reversed(range(len(widths) - 1)):
        buckets[(lengths <= widths[bucket]).all(axis=1)] = bucket
    return buckets


def _stretch(ends: tf.Tensor, places: tf.Tensor) -> tf.Tensor:
    """Returns in which of the stretches that end there (their ends not in them) the places are."""
    return tf.math.count_nonzero(places[..., tf.newaxis] >= ends, axis=-1)


_ANY = tf.TensorSpec([None], tf.int64)


@tf.function(input_signature=[_ANY, _ANY, tf.TensorSpec([None], tf.uint64)])
def permuted(places: tf.Tensor, sizes: tf.Tensor, keys: tf.Tensor) -> tf.Tensor:
    """Returns where places go when 0 … size - 1 are put into a random order, the key's own.

    The shuffle swap-or-not: in each round any two places that a random number pairs change with
    each other, or do not, by a random bit of the pair.

    Args:
        places: `[B]` int64, in 0 … size - 1.
        sizes: `[B]` int64, or one for all.
        keys: `[B]` uint64, or one for all.

    Reference: Hoang, Morris and Rogaway, "An Enciphering Scheme Based on a Card Shuffle" (2012).
    """
    numbers = tf.range(1, 3 * _ROUNDS + 1, dtype=tf.int64)
    random = tf.bitcast(_mixed(keys[:, tf.newaxis], numbers), tf.int64)
    for n in range(_ROUNDS):
        pairing, factor, summand = (random[:, 3 * n + k] for k in range(3))
        others = tf.math.floormod(pairing - places, sizes)
        bits = tf.maximum(places, others) * (factor | 1) + summand < 0
        places = tf.where(bits, others, places)
    return places


def _mixed(key: tf.Tensor, number: tf.Tensor | int) -> tf.Tensor:
    """Returns uint64 of which every bit depends on every bit of key and number, by splitmix64."""
    x = key + tf.cast(number, tf.uint64) * tf.constant(0x9E3779B97F4A7C15, tf.uint64)
    x = (x ^ tf.bitwise.right_shift(x, 30)) * tf.constant(0xBF58476D1CE4E5B9, tf.uint64)
    x = (x ^ tf.bitwise.right_shift(x, 27)) * tf.constant(0x94D049BB133111EB, tf.uint64)
    return x ^ tf.bitwise.right_shift(x, 31)
