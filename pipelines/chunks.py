"""One long sequence to batches of chunks, each row going on where it was in the batch before."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from keras_models.frontends.padding import LENGTHS
from keras_models.tasks.task import Task
from pipelines.batches import Batch, Batches
from pipelines.errors import UsageError
from pipelines.order import mixed
from pipelines.store import FeatureStore

# In a batch: `[B]` bool, whether a row begins anew, and with it the state.
STARTS = "_starts"


def chunk_batches(store: FeatureStore, rows: int, chunk: int, seed: int) -> Batches:
    """Returns endless batches `[rows, chunk]`, each a function of the seed and its number.

    All examples, one after the other, are a circle. In each epoch it is cut at random into as many
    arcs as rows, all of a length, and each row goes through one of them chunk by chunk. What is
    then left, less than a chunk a row, lies elsewhere in the next epoch.

    Args:
        store: Its one feature, a sequence.
        rows: How many chunks are in a batch.
        chunk: Steps of each; fewer where a row has not as many.
        seed: Of the cuts.

    Raises:
        UsageError: If the sequence is too short, or from several places.
    """
    if len(store.examples) > 1:
        raise UsageError(
            "What is trained on as one sequence must come from one place. Received: `data.mix`"
        )
    (name,) = store.sequences
    total = store.values(name).shape[0]
    if total < rows:
        raise UsageError(
            "A sequence must have a step at least for each row of a batch. Received: "
            f"{total} steps and {rows} rows; --data.batch_size {total} would do."
        )
    chunk = min(chunk, total // rows)
    chunks = total // rows // chunk
    firsts = tf.range(rows, dtype=tf.int64) * total // rows

    def make(number: tf.Tensor) -> Batch:
        epoch, place = number // chunks, number % chunks
        turn = tf.bitcast(mixed(tf.constant(seed, tf.uint64), epoch), tf.int64)
        begins = firsts + place * chunk + turn % total
        places = begins[:, tf.newaxis] + tf.range(chunk, dtype=tf.int64)
        return {
            name: tf.gather(store.values(name), places % total),
            name + LENGTHS: tf.fill([rows], chunk),
            STARTS: tf.fill([rows], place == 0),
        }

    return Batches(lambda numbers: (), make)


def entered(task: Task, batch, carried: Sequence[tf.Tensor]):
    """Returns a batch of chunks as its task takes it, and the state to begin with.

    Args:
        task: Whose state it is.
        batch: Of `chunk_batches`.
        carried: The state after the batch before, flat.
    """
    starts = batch[STARTS]
    zero = task.zero_state(tf.shape(starts)[0])

    def begun(new, old):
        return tf.where(tf.reshape(starts, [-1, *[1] * (new.shape.rank - 1)]), new, old)

    state = tf.nest.map_structure(begun, zero, tf.nest.pack_sequence_as(zero, list(carried)))
    return {name: value for name, value in batch.items() if name != STARTS}, state
