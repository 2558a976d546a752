"""A model's answers to a split, and how far they are from the references."""

from __future__ import annotations

import functools
import math
import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import tensorflow as tf

from keras_models.frontends.padding import pad
from keras_models.tasks.task import Task
from pipelines.examples import Example, inputs, may_go_together, one_by_one, shown, together
from pipelines.input import keep_feasible
from pipelines.store import rows

# Examples that are answered together where they are no sequences.
_BATCH_SIZE = 256
_LONGEST_QUESTION = 100
Inputs = dict[str, np.ndarray]  # by name, as a signature takes them


@dataclass(frozen=True)
class Evaluation:
    """What a model answers to each example, beside what it should.

    Attributes:
        examples: What was asked.
        inputs: The same for people: texts, or numbers in the data.
        answers: The model's answers: texts, numbers, arrays.
        references: For each example all answers that count as right.
        numbers: What the task measures, the first of which selects, and the mean `loss`.
        confusions: (part of a reference, what was answered for it, times), the worst first.
    """

    examples: list[Example]
    inputs: list[str]
    answers: list
    references: list[list]
    numbers: dict[str, float]
    confusions: list[tuple[str, str, int]]

    def record(self) -> dict:
        """Returns what can be written down as JSON; arrays are left out."""
        texts = all(isinstance(answer, str) for answer in self.answers)
        rows = (self.inputs, self.answers, self.references) if texts else ([], [], [])
        return {
            "examples": len(self.answers),
            **dict(zip(("inputs", "answers", "references"), rows, strict=True)),
            "numbers": self.numbers,
            "confusions": self.confusions,
            "question": self._question,
        }

    @property
    def _question(self) -> str:
        """What can be asked of the served model on a command line."""
        middle = len(self.examples) // 2
        value = next(iter(self.examples[middle].values()))
        if not isinstance(value, bytes):
            return "< FILE"
        text = self.inputs[middle]
        if text.encode() != value:
            return "--files FILE"
        return shlex.quote(text) if len(text) <= _LONGEST_QUESTION else "< FILE"


class Evaluator:
    """Evaluates a task on a split, any number of times.

    Args:
        task: Answers by the function that is served.
        records: Raw records, some together, each with one reference; where the task has
            `many_references`, an input may recur.
        batch_tokens: Padded elements of sequences that are answered together.
        like: An evaluator of the same task, whose traced functions serve here, too.

    Attributes:
        examples: What is asked, the short sequences first.
    """

    def __init__(
        self,
        task: Task,
        records: tf.data.Dataset,
        batch_tokens: int,
        like: Evaluator | None = None,
    ):
        self._task = task
        self._found = _in_order(task, records)
        self._budget = batch_tokens if self._found[-1].length else _BATCH_SIZE
        self._asked, self._references = _asked(task, self._found)
        if like is None:
            self._answer = task.signatures()["serving_default"]
            self._sums = tf.function(functools.partial(_sums, task), reduce_retracing=True)
        else:
            self._answer, self._sums = like._answer, like._sums

    @property
    def examples(self) -> list[Example]:
        return [each.example for each in self._asked]

    def __call__(self) -> Evaluation:
        """Returns the answers and error rates of the task as it is now."""
        answers = [_plain(each[self._task.output_name]) for each in self.outputs()]
        numbers = self._task.measure(answers, self._references) | {"loss": self._mean_loss()}
        worst = self._task.confusions(answers, self._references).most_common()
        confusions = [(*pair, count) for pair, count in worst]
        names = [shown(self._task, each.example, each.number) for each in self._asked]
        return Evaluation(self.examples, names, answers, self._references, numbers, confusions)

    def inputs(self, rows: Sequence[int] | None = None, alone: int = 0) -> Iterator[Inputs]:
        """Yields what the task's signature takes, for those of the `examples` or for all.

        Args:
            rows: Numbers of examples.
            alone: How many of them, from the first, are not to go together.
        """
        asked = self._asked if rows is None else [self._asked[row] for row in rows]
        for each in asked[:alone]:
            yield inputs(self._task, [each.example])
        for group in self._groups(asked[alone:]):
            yield inputs(self._task, group)

    def outputs(self, rows: Sequence[int] | None = None) -> list[dict[str, bytes | np.ndarray]]:
        """Returns all that the task answers to those of the `examples`, or to all."""
        outputs = []
        for given in self.inputs(rows):
            # In the signature's order, which is that of the function's arguments.
            found = self._answer(*(tf.constant(given[name]) for name in self._task.input_signature))
            outputs += one_by_one([found])
        return outputs

    def _groups(self, found: Sequence[_Found]) -> Iterator[list[Example]]:
        """Yields neighbours, together of a size that fits the budget when padded, or one."""
        group: list[_Found] = []
        for each in found:
            size = (len(group) + 1) * max(1, *(other.length for other in [*group, each]))
            alike = not group or may_go_together(self._task, [group[0].example, each.example])
            if group and (size > self._budget or not alike):
                yield [other.example for other in group]
                group = []
            group.append(each)
        if group:
            yield [other.example for other in group]

    @functools.cached_property
    def _batches(self) -> list[dict[str, tf.Tensor]]:
        """Padded features, without the examples that cannot be learnt from."""
        groups = map(together, self._groups(self._found))
        return [pad(keep_feasible(self._task, self._task.features(group))) for group in groups]

    def _mean_loss(self) -> float:
        sums = [[each.numpy().tolist() for each in self._sums(batch)] for batch in self._batches]
        losses, weights = (math.fsum(each) for each in zip(*sums, strict=True))
        return losses / max(1.0, weights)


def _sums(task: Task, batch: dict[str, tf.Tensor]) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the sums of a batch's losses and of their weights."""
    return tuple(
        tf.reduce_sum(tf.cast(each, tf.float64))
        for each in (task.losses(batch), task.weights(batch))
    )


class _Found(NamedTuple):
    """An example, the length of its longest sequence (0 if it has none), its place in the data."""

    length: int
    key: tuple[bytes, ...]
    """Its texts, which bring the same examples together, however they come."""
    number: int
    example: Example


def _in_order(task: Task, records: tf.data.Dataset) -> list[_Found]:
    """Returns all examples, the short ones first."""
    found = []
    for batch in records:
        lengths = _lengths(task.features(batch))
        for example, length in zip(one_by_one([batch]), lengths, strict=True):
            names = (*task.input_signature, task.reference_name)
            texts = (example[name] for name in names if name in example)
            key = tuple(text for text in texts if isinstance(text, bytes))
            found.append(_Found(int(length), key, len(found), example))
    return sorted(found, key=lambda each: each[:3])


def _lengths(features) -> np.ndarray:
    """Returns the length of the longest sequence of each example, `[B]`."""
    lengths = [np.zeros(rows(features), np.int64)]
    ragged = [each for each in features.values() if isinstance(each, tf.RaggedTensor)]
    return np.max(lengths + [each.row_lengths().numpy() for each in ragged], axis=0)


def _asked(task: Task, found: Sequence[_Found]) -> tuple[list[_Found], list[list]]:
    """Returns what is to be answered, and for each all references."""
    asked: dict[object, tuple[_Found, list]] = {}
    for each in found:
        [*names] = (name for name in task.input_signature if name in each.example)
        key = each.example[names[0]] if task.many_references else each.number
        _, references = asked.setdefault(key, (each, []))
        references.append(_plain(each.example[task.reference_name]))
    examples, references = zip(*asked.values(), strict=True)
    return list(examples), list(references)


def _plain(value: bytes | np.ndarray):
    """Returns a text, a number, or an array of more."""
    if isinstance(value, bytes):
        return value.decode()
    return value.item() if np.ndim(value) == 0 else value
