"""Records to batches: features → shuffle → bucket by length → pad → prefetch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_models.frontends.padding import pad
from keras_models.tasks.task import Task

_CHUNKS_TO_SHUFFLE = 1024


class Measured(NamedTuple):
    """What one pass over the training examples found."""

    names: list[str]  # of the sequence features
    lengths: np.ndarray  # [N, len(names)], of the examples that can be learnt from
    infeasible: int  # number of the other examples, left out of training


def measure(records: tf.data.Dataset, task: Task) -> Measured:
    """Returns the lengths of the training examples."""
    names, lengths, total = [], [], 0
    for features in records.map(task.features):
        ragged = {n: f for n, f in features.items() if isinstance(f, tf.RaggedTensor)}
        batch = np.stack([feature.row_lengths().numpy() for feature in ragged.values()], axis=1)
        names = list(ragged)
        lengths.append(batch[task.feasible(features).numpy()])
        total += len(batch)
    kept = np.concatenate(lengths)
    return Measured(names, kept, total - len(kept))


def refused(records: tf.data.Dataset, task: Task) -> int:
    """Returns the number of records whose input the served model would refuse."""
    return sum(int(np.sum(refuses)) for refuses in records.map(task.refuses).as_numpy_iterator())


def bucket_widths(lengths: np.ndarray, buckets: int, overflow: float = 0.02) -> list[list[int]]:
    """Returns the widths that batches are padded to, `[buckets, sequences]`, rising.

    The widths of the first sequence make its padding the least that so many buckets can have
    (dynamic programming over its distinct lengths). Each other sequence gets a width that holds
    all but `overflow` of a bucket's examples; those go to the next bucket that holds them.

    Args:
        lengths: `[N, sequences]` int.
        buckets: Number of buckets; fewer are returned where fewer lengths are distinct.
        overflow: Share of a bucket's examples that may move up for another sequence's sake.
    """
    first = lengths[:, 0]
    edges = _least_padding(*np.unique(first, return_counts=True), buckets)
    widths = []
    for low, high in zip([-1, *edges], edges, strict=False):
        inside = lengths[(first > low) & (first <= high)]
        others = np.quantile(inside[:, 1:], 1 - overflow, axis=0, method="higher").astype(int)
        widths.append([int(high), *others.tolist()])
    widths[-1] = lengths.max(axis=0).tolist()
    return np.maximum.accumulate(np.maximum(widths, 1), axis=0).tolist()


def _least_padding(values: np.ndarray, counts: np.ndarray, buckets: int) -> list[int]:
    """Returns the upper edges of at most `buckets` ranges of values with the least padding."""
    before = np.concatenate([[0], np.cumsum(counts)])
    # cost[k][j]: the least padded size of the first j values in k + 1 ranges.
    cost = [before[1:] * values]
    cut = []
    for _ in range(min(buckets, len(values)) - 1):
        # choices[i, j]: ranges so far end with value i, and one more goes to value j.
        last = (before[None, 1:] - before[1:, None]) * values[None, :]
        choices = np.where(np.triu(np.ones_like(last), 1) > 0, cost[-1][:, None] + last, np.inf)
        cut.append(np.argmin(choices, axis=0))
        cost.append(np.min(choices, axis=0))
    edges, j = [len(values) - 1], len(values) - 1
    for best in reversed(cut):
        j = best[j]
        edges.append(j)
    return [int(values[j]) for j in reversed(edges)]


def training_batches(
    records: tf.data.Dataset,
    task: Task,
    names: Sequence[str],
    widths: Sequence[Sequence[int]],
    batch_tokens: int,
    shuffle_buffer: int,
    seed: int,
) -> tf.data.Dataset:
    """Returns endless batches of padded features, the same for the same seed.

    A batch holds `batch_tokens // width` examples of one bucket. Epochs follow one another
    without a break, so that no batch is short.

    Args:
        records: Raw records, some together.
        task: Gives the features, and says which examples are feasible.
        names: The sequence features, in the order of the widths.
        widths: Of `bucket_widths`.
        batch_tokens: Padded symbols of the first sequence in a batch.
        shuffle_buffer: Number of examples among which the next is chosen; what it is filled
            from comes in random order too.
        seed: Of the order.
    """
    # Two shuffles: of a wide range by chunks, and of single examples, all of which a checkpoint
    # of the iterator holds.
    chunks = records.shuffle(_CHUNKS_TO_SHUFFLE, seed=seed)
    examples = chunks.map(lambda batch: keep_feasible(task, task.features(batch)), tf.data.AUTOTUNE)
    examples = examples.unbatch().shuffle(shuffle_buffer, seed=seed).repeat()
    sizes = tf.constant([max(1, batch_tokens // width[0]) for width in widths], tf.int64)
    bounds = tf.constant(widths)

    def bucket(example):
        lengths = tf.stack([tf.shape(example[name])[0] for name in names])
        fits = tf.reduce_all(lengths <= bounds, axis=1)
        return tf.argmax(fits, output_type=tf.int64)

    batches = examples.group_by_window(
        bucket,
        lambda key, window: window.ragged_batch(sizes[key]).map(
            lambda batch: _pad_to(batch, names, bounds[key])
        ),
        window_size_func=lambda key: sizes[key],
    )
    options = tf.data.Options()
    options.deterministic = True
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)


def keep_feasible(task: Task, features):
    """Returns the features of those examples that can be learnt from."""
    keep = task.feasible(features)

    def select(feature):
        ragged = isinstance(feature, tf.RaggedTensor)
        return (tf.ragged.boolean_mask if ragged else tf.boolean_mask)(feature, keep)

    return {name: select(feature) for name, feature in features.items()}


def _pad_to(batch, names: Sequence[str], width: tf.Tensor) -> dict[str, tf.Tensor]:
    return pad(batch, dict(zip(names, tf.unstack(width, len(names)), strict=True)))
