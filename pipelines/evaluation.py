"""A model's answers to a split, and how far they are from the references."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import tensorflow as tf

from keras_models.frontends.padding import pad
from keras_models.tasks.task import Task
from pipelines.input import keep_feasible


@dataclass(frozen=True)
class Evaluation:
    """What a model answers to each distinct input, beside what it should.

    Attributes:
        inputs: The raw inputs, as text.
        answers: The model's answers.
        references: For each input all answers that count as right.
        numbers: Error rates, the first of which is to become small, and the mean `loss`.
        confusions: (part of a reference, what was answered for it, times), the worst first.
    """

    inputs: list[str]
    answers: list[str]
    references: list[list[str]]
    numbers: dict[str, float]
    confusions: list[tuple[str, str, int]]


class Evaluator:
    """Evaluates a task on a split, any number of times.

    Args:
        task: Answers by the function that is served.
        records: Raw records, some together, each with one reference; an input may recur.
        batch_tokens: Characters of padded input that are answered together.
    """

    def __init__(self, task: Task, records: tf.data.Dataset, batch_tokens: int):
        self._task, self._batch_tokens = task, batch_tokens
        pairs = _pairs(records, task)
        self._references: dict[str, list[str]] = {}
        for text, reference in pairs:
            self._references.setdefault(text, []).append(reference)
        self._batches = _batches(pairs, task, batch_tokens)
        self._answer = task.signatures()["serving_default"]
        self._sums = tf.function(self._sums_of, reduce_retracing=True)

    def __call__(self) -> Evaluation:
        """Returns the answers and error rates of the task as it is now."""
        inputs, references = list(self._references), list(self._references.values())
        answers = self.answers(inputs)
        numbers = self._task.measure(answers, references) | {"loss": self._mean_loss()}
        worst = self._task.confusions(answers, references).most_common()
        confusions = [(*pair, count) for pair, count in worst]
        return Evaluation(inputs, answers, references, numbers, confusions)

    def answers(self, inputs: Sequence[str]) -> list[str]:
        """Returns the task's answers to raw inputs, of which the short ones had better be first."""
        answers = []
        for texts in _grouped(inputs, [len(text) for text in inputs], self._batch_tokens):
            found = self._answer(tf.constant(texts))[self._task.output_name]
            answers += [text.decode() for text in found.numpy()]
        return answers

    def _mean_loss(self) -> float:
        sums = [[each.numpy().tolist() for each in self._sums(batch)] for batch in self._batches]
        losses, weights = (math.fsum(each) for each in zip(*sums, strict=True))
        return losses / max(1.0, weights)

    def _sums_of(self, batch) -> tuple[tf.Tensor, tf.Tensor]:
        return tuple(
            tf.reduce_sum(tf.cast(each, tf.float64))
            for each in (self._task.losses(batch), self._task.weights(batch))
        )


def _grouped(items: Sequence, lengths: Sequence[int], budget: int) -> Iterator[Sequence]:
    """Yields runs of neighbours, each of a size that fits the budget when padded, or of one."""
    start = 0
    for end in range(1, len(items) + 1):
        if end == len(items) or (end + 1 - start) * max(1, *lengths[start : end + 1]) > budget:
            yield items[start:end]
            start = end


def _pairs(records: tf.data.Dataset, task: Task) -> list[tuple[str, str]]:
    """Returns (input, reference) of every record, the short inputs first."""
    names = (*task.input_signature, task.output_name)
    columns = [[], []]
    for batch in records.as_numpy_iterator():
        for column, name in zip(columns, names, strict=True):
            column += [text.decode() for text in batch[name]]
    return sorted(zip(*columns, strict=True), key=lambda pair: (len(pair[0]), pair))


def _batches(
    pairs: list[tuple[str, str]], task: Task, batch_tokens: int
) -> list[dict[str, tf.Tensor]]:
    """Returns padded features, without the examples that cannot be learnt from."""
    names = (*task.input_signature, task.output_name)
    lengths = [max(map(len, pair)) for pair in pairs]
    batches = []
    for group in _grouped(pairs, lengths, batch_tokens):
        columns = zip(*group, strict=True)
        records = {name: tf.constant(column) for name, column in zip(names, columns, strict=True)}
        batches.append(pad(keep_feasible(task, task.features(records))))
    return batches
