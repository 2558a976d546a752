"""How the answers of a run's model go back to their inputs."""

from __future__ import annotations

import random
from pathlib import Path

import tensorflow as tf

from keras_models.tasks.explanation import Explanation, NotExplained
from keras_models.tasks.task import Task
from pipelines.drawing import draw
from pipelines.errors import UsageError
from pipelines.evaluation import Evaluation
from pipelines.examples import inputs

_EXAMPLES = 10


def explain(task: Task, text: str, answer: str | None = None) -> tuple[str, Explanation]:
    """Returns an answer to a text, that of the task if none is given, and its explanation.

    Raises:
        NotExplained: If the task has none for it.
        UsageError: If the task would refuse to answer.
    """
    [name] = task.input_signature
    given = {name: tf.constant([text])}
    if task.refuses(given).numpy().any():
        raise UsageError(f"The text must be one that the model answers. Received: {text!r}")
    if answer is None:
        answer = task.answer(given)[task.output_name].numpy()[0].decode()
    [explanation] = task.explain(given, tf.constant([answer]))
    return answer, explanation


def draw_examples(task: Task, evaluation: Evaluation, seed: int, folder: Path) -> list[dict]:
    """Draws the answers to some inputs, and returns each input, its answer and the file's name.

    Inputs that have no explanation are passed over.
    """
    folder.mkdir(parents=True, exist_ok=True)
    numbers = range(len(evaluation.examples))
    drawn = []
    for number in random.Random(seed).sample(numbers, min(_EXAMPLES, len(numbers))):
        given = inputs(task, [evaluation.examples[number]])
        text, answer = evaluation.inputs[number], evaluation.answers[number]
        name = f"{len(drawn) + 1}.png"
        try:
            [explanation] = task.explain(
                {name: tf.constant(value) for name, value in given.items()}, tf.constant([answer])
            )
        except NotExplained:
            continue
        draw(explanation, folder / name)
        drawn.append({"input": text, "answer": answer, "file": name})
    return drawn
