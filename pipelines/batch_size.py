"""The batch size that is fastest on this machine."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import psutil
import tensorflow as tf

from keras_models.frontends.padding import pad
from keras_models.tasks.task import Task
from pipelines.errors import UsageError
from pipelines.input import keep_feasible
from pipelines.step import forward_and_backward

_FIRST_TOKENS = 512
_TRIALS = 3
_LEAST_GAIN = 1.03
_SHARE_OF_MEMORY = 0.7


def fastest_batch_tokens(
    records: tf.data.Dataset,
    task: Task,
    names: Sequence[str],
    widths: Sequence[int],
    jit_compile: bool,
) -> dict[int, float]:
    """Returns tokens per second by token budget, of those that were tried.

    Budgets double as long as the memory suffices, until two in a row were not faster than the
    best before them by 3 % at least. A budget is tried on a batch of the widest bucket, the one
    that takes the most memory.

    Args:
        records: Raw records, some together.
        task: Gives losses and their gradients.
        names: The sequence features.
        widths: Those of the widest bucket, in the same order.
        jit_compile: Whether XLA compiles it.

    Raises:
        UsageError: If examples are no sequences.
    """
    if not names:
        raise UsageError(
            "`data.batch_size` must be given where examples are no sequences. Received: "
            "`data.batch_tokens` is auto"
        )
    gradients = tf.function(
        lambda batch, seed: forward_and_backward(task, batch, seed, tf.constant(1.0)),
        jit_compile=jit_compile,
    )
    features = keep_feasible(task, task.features(next(iter(records))))
    tried: dict[int, float] = {}
    without_gain = 0
    for tokens in _budgets(widths[0]):
        batch = _batch(features, tokens // widths[0], dict(zip(names, widths, strict=True)))
        before = psutil.Process().memory_info().rss
        try:
            rate = tokens / _seconds(gradients, batch)
        except tf.errors.ResourceExhaustedError:
            break
        gains = rate > _LEAST_GAIN * max(tried.values(), default=0.0)
        tried[tokens], without_gain = rate, 0 if gains else without_gain + 1
        taken = psutil.Process().memory_info().rss - before
        if without_gain == 2 or 2 * taken > _SHARE_OF_MEMORY * psutil.virtual_memory().available:
            break
    return tried


def _budgets(width: int) -> Iterator[int]:
    tokens = max(_FIRST_TOKENS, width)
    while True:
        yield tokens
        tokens *= 2


def _batch(features, rows: int, widths: dict[str, int]) -> dict[str, tf.Tensor]:
    """Returns so many of the examples, each as often as it takes."""
    some = next(iter(features.values()))
    count = some.nrows() if isinstance(some, tf.RaggedTensor) else tf.shape(some, tf.int64)[0]
    chosen = tf.range(rows, dtype=tf.int64) % count
    return pad({name: tf.gather(value, chosen) for name, value in features.items()}, widths)


def _seconds(gradients, batch) -> float:
    """Returns the least time of some calls, after one that compiles."""
    seed = tf.zeros([2], tf.int32)
    times = []
    for _ in range(1 + _TRIALS):
        started = time.monotonic()
        loss, *_ = gradients(batch, seed)
        loss.numpy()
        times.append(time.monotonic() - started)
    return min(times[1:])
