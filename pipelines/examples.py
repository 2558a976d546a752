"""Examples one by one, and together again: what evaluation, verification and pictures go by."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
import tensorflow as tf

from keras_models.frontends.padding import LENGTHS, pad
from keras_models.tasks.task import Task

# What a record holds, by field: a string is `bytes`, all else an array.
Example = Mapping[str, bytes | np.ndarray]


def one_by_one(records: Iterable[Mapping[str, tf.Tensor | tf.RaggedTensor]]) -> list[Example]:
    """Returns the examples of records that come some together."""
    examples = []
    for batch in records:
        columns = [_values(column) for column in batch.values()]
        examples += [dict(zip(batch, row, strict=True)) for row in zip(*columns, strict=True)]
    return examples


def together(examples: Sequence[Example]) -> dict[str, tf.Tensor | tf.RaggedTensor]:
    """Returns examples as records; arrays of other lengths than each other are ragged."""
    return {name: _column([example[name] for example in examples]) for name in examples[0]}


def inputs(task: Task, examples: Sequence[Example]) -> dict[str, np.ndarray]:
    """Returns what the task's signature takes: sequences padded, and with their lengths."""
    signature = task.input_signature
    records = together([_fields(task, example) for example in examples])
    for name, value in records.items():
        if name + LENGTHS in signature and not isinstance(value, tf.RaggedTensor):
            records[name] = tf.RaggedTensor.from_tensor(value)
    return {name: value.numpy() for name, value in pad(records).items()}


def may_go_together(task: Task, examples: Sequence[Example]) -> bool:
    """Returns whether all are of one shape, apart from what goes with its lengths."""
    signature = task.input_signature
    fixed = [name for name in _fields(task, examples[0]) if name + LENGTHS not in signature]
    return all(np.shape(e[name]) == np.shape(examples[0][name]) for e in examples for name in fixed)


def shown(task: Task, example: Example, number: int) -> str:
    """Returns an input as people know it: its text, or its number in the data."""
    values = list(_fields(task, example).values())
    if len(values) == 1 and isinstance(values[0], bytes):
        try:
            return values[0].decode()
        except UnicodeDecodeError:
            pass
    return f"#{number}"


def _fields(task: Task, example: Example) -> Example:
    """Returns those fields of an example that are inputs."""
    return {name: example[name] for name in task.input_signature if name in example}


def _values(column: tf.Tensor | tf.RaggedTensor) -> list:
    if not isinstance(column, tf.RaggedTensor):
        return list(column.numpy())
    if column.ragged_rank == 1:
        return np.split(column.values.numpy(), column.row_splits.numpy()[1:-1])
    return [value.to_tensor().numpy() for value in column]


def _column(values: list) -> tf.Tensor | tf.RaggedTensor:
    if isinstance(values[0], bytes):
        return tf.constant(values)
    if len({value.shape for value in values}) == 1:
        return tf.constant(np.stack(values))
    return tf.RaggedTensor.from_row_lengths(np.concatenate(values), [len(v) for v in values])
