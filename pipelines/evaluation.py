"""A model's answers to a split, and how far they are from the references."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import tensorflow as tf

from keras_models.frontends.padding import pad
from keras_models.tasks.task import Task
from pipelines.input import keep_feasible

_EXAMPLES_AT_ONCE = 256


@dataclass(frozen=True)
class Evaluation:
    """What a model answers to each distinct input, beside what it should.

    Attributes:
        inputs: The raw inputs, as text.
        answers: The model's answers.
        references: For each input all answers that count as right.
        numbers: Error rates, the first of which is to become small, and the mean `loss`.
    """

    inputs: list[str]
    answers: list[str]
    references: list[list[str]]
    numbers: dict[str, float]


class Evaluator:
    """Evaluates a task on a split, any number of times.

    Args:
        task: Answers by the function that is served.
        records: Raw records, some together, each with one reference; an input may recur.
    """

    def __init__(self, task: Task, records: tf.data.Dataset):
        self._task = task
        pairs = _pairs(records, task)
        self._references: dict[str, list[str]] = {}
        for text, reference in pairs:
            self._references.setdefault(text, []).append(reference)
        self._batches = _batches(pairs, task)
        self._answer = task.signatures()["serving_default"]
        self._losses = tf.function(task.losses, reduce_retracing=True)

    def __call__(self) -> Evaluation:
        """Returns the answers and error rates of the task as it is now."""
        inputs, references = list(self._references), list(self._references.values())
        answers = answer_all(self._answer, self._task, inputs)
        numbers = self._task.measure(answers, references) | {"loss": self._mean_loss()}
        return Evaluation(inputs, answers, references, numbers)

    def _mean_loss(self) -> float:
        losses = [loss for batch in self._batches for loss in self._losses(batch).numpy().tolist()]
        return math.fsum(losses) / max(1, len(losses))


def answer_all(answer, task: Task, inputs: Sequence[str]) -> list[str]:
    """Returns the answer of a served function to each input, as text.

    Args:
        answer: The signature of `task` that gives answers.
        task: Names its input and output.
        inputs: Raw inputs, in an order in which neighbours are about as long.
    """
    answers = []
    for start in range(0, len(inputs), _EXAMPLES_AT_ONCE):
        texts = tf.constant(inputs[start : start + _EXAMPLES_AT_ONCE])
        answers += [text.decode() for text in answer(texts)[task.output_name].numpy()]
    return answers


def _pairs(records: tf.data.Dataset, task: Task) -> list[tuple[str, str]]:
    """Returns (input, reference) of every record, the short inputs first."""
    names = (*task.input_signature, task.output_name)
    columns = [[], []]
    for batch in records.as_numpy_iterator():
        for column, name in zip(columns, names, strict=True):
            column += [text.decode() for text in batch[name]]
    return sorted(zip(*columns, strict=True), key=lambda pair: (len(pair[0]), pair))


def _batches(pairs: list[tuple[str, str]], task: Task) -> list[dict[str, tf.Tensor]]:
    """Returns padded features, without the examples that cannot be learnt from."""
    names = (*task.input_signature, task.output_name)
    batches = []
    for start in range(0, len(pairs), _EXAMPLES_AT_ONCE):
        columns = zip(*pairs[start : start + _EXAMPLES_AT_ONCE], strict=True)
        records = {name: tf.constant(column) for name, column in zip(names, columns, strict=True)}
        batches.append(pad(keep_feasible(task, task.features(records))))
    return batches
