"""Records to batches: features → a store of them → shuffle, bucket by length → pad."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_models.frontends.padding import pad
from keras_models.tasks.task import Task
from pipelines.batches import Batch, Batches
from pipelines.errors import UsageError
from pipelines.order import Order
from pipelines.store import FeatureStore, write_features


def write_examples(
    parts: Iterable[tf.data.Dataset], task: Task, folder: Path
) -> tuple[FeatureStore, int]:
    """Writes the features of the examples that can be learnt from.

    Args:
        parts: Raw records, some together.
        task: Gives the features, and says which examples are feasible.
        folder: Where to write them.

    Returns:
        The store, and the number of the other examples.
    """
    left_out = 0

    def kept_and_left_out(records):
        features = task.features(records)
        return keep_feasible(task, features), tf.math.count_nonzero(~task.feasible(features))

    def features(records: tf.data.Dataset):
        nonlocal left_out
        for kept, others in records.map(kept_and_left_out, tf.data.AUTOTUNE):
            left_out += int(others)
            yield kept

    return write_features(map(features, parts), folder), left_out


def refused(records: tf.data.Dataset, task: Task) -> int:
    """Returns the number of records whose input the served model would refuse."""
    return sum(int(np.sum(refuses)) for refuses in records.map(task.refuses).as_numpy_iterator())


def unknown_shares(records: tf.data.Dataset, task: Task) -> dict[str, float]:
    """Returns, by field of text, the share of its symbols that the vocabulary lacks."""
    counts: dict[str, np.ndarray] = {}
    for batch in records:
        for name, count in task.unknown(batch).items():
            counts[name] = counts.get(name, 0) + count.numpy()
    return {name: unknown / max(1, total) for name, (unknown, total) in counts.items()}


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
    if not lengths.shape[1]:
        return [[]]
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


def batch_sizes(
    widths: Sequence[Sequence[int]], batch_tokens: int, batch_size: int | None, multiple: int = 1
) -> list[int]:
    """Returns the number of examples in a batch of each bucket.

    Args:
        widths: Of `bucket_widths`.
        batch_tokens: Padded symbols of the first sequence in a batch.
        batch_size: The number itself, which goes before.
        multiple: What every number is to be a multiple of.

    Raises:
        UsageError: If examples are no sequences, and the number is not given; or it is given and
            no such multiple.
    """
    if batch_size is not None:
        if batch_size % multiple:
            raise UsageError(
                f"`data.batch_size` must be a multiple of {multiple}, as so many replicas are to "
                f"share every batch evenly. Received: {batch_size}"
            )
        return [batch_size] * len(widths)
    if not widths[0]:
        raise UsageError("`data.batch_size` must be given where examples are no sequences.")
    return [max(1, batch_tokens // width[0] // multiple) * multiple for width in widths]


def training_batches(
    store: FeatureStore,
    widths: Sequence[Sequence[int]],
    sizes: Sequence[int],
    seed: int,
    weights: Sequence[float] | None = None,
    augmented: Callable[[Batch, tf.Tensor], Batch] = lambda batch, seed: batch,
    together: int = 1,
) -> Batches:
    """Returns endless batches of padded features, each a function of the seed and its number.

    Each batch is of one bucket, and full. `Order` says of which examples: where several batches
    are of one bucket together, these are the parts of one large batch.

    Args:
        store: The features of all examples that can be learnt from.
        widths: Of `bucket_widths`.
        sizes: Of `batch_sizes`.
        seed: Of the order.
        weights: Of the parts of the store; None: their numbers of examples.
        augmented: Changes a batch by a seed `[2]`, its own.
        together: So many batches, from a multiple of that number on, are of one bucket.
    """
    parts = store.examples
    large = [size * together for size in sizes]
    order = Order(store.lengths(), parts, weights or parts, widths, large, seed)
    bounds = tf.constant(widths)

    def draw(numbers: tf.Tensor) -> tuple[tf.Tensor, tf.RaggedTensor]:
        drawn, which = tf.unique(numbers // together)
        buckets, examples = (tf.gather(each, which) for each in order.batches(drawn))
        size = examples.row_lengths() // together
        starts = examples.row_starts() + numbers % together * size
        part = tf.ragged.range(starts, starts + size)
        return buckets, part.with_flat_values(tf.gather(examples.flat_values, part.flat_values))

    def make(number: tf.Tensor, bucket: tf.Tensor, examples: tf.Tensor) -> Batch:
        ends = tf.unstack(bounds[bucket], len(store.sequences))
        padded = pad(store.gather(examples), dict(zip(store.sequences, ends, strict=True)))
        return augmented(padded, tf.stack([seed, tf.cast(number, tf.int32)]))

    return Batches(order.batches if together == 1 else draw, make)


def keep_feasible(task: Task, features):
    """Returns the features of those examples that can be learnt from."""
    keep = task.feasible(features)

    def select(feature):
        ragged = isinstance(feature, tf.RaggedTensor)
        return (tf.ragged.boolean_mask if ragged else tf.boolean_mask)(feature, keep)

    return {name: select(feature) for name, feature in features.items()}
