"""What a served model answered, as lines for people and programs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from pipelines.errors import UsageError


def signature(n_best: int | None, timestamps: bool) -> str:
    """Returns the signature that gives what is asked for."""
    if n_best is not None:
        return "n_best"
    return "timestamps" if timestamps else "serving_default"


def lines(
    texts: Sequence[str],
    outputs: Mapping[str, np.ndarray],
    n_best: int | None,
    timestamps: bool,
    as_json: bool,
) -> Iterator[str]:
    """Yields a line for each text, or with `n_best` one for each of its answers.

    Args:
        texts: What was asked.
        outputs: What the model's signature gave, each with a row for every text.
        n_best: How many answers are wanted; None: the one there is.
        timestamps: Whether to write tokens and their frames in place of the answer.
        as_json: Whether to write an object of all outputs instead, one a text.

    Raises:
        UsageError: If the model gives fewer answers than are wanted.
    """
    write = _tokens_with_frames if timestamps else _answer
    columns = {name: value.tolist() for name, value in outputs.items()}
    for row, text in enumerate(texts):
        example = {name: column[row] for name, column in columns.items()}
        answers = [_unpadded(example)] if n_best is None else _first(example, n_best)
        if as_json and n_best is None:
            yield json.dumps(answers[0], ensure_ascii=False)
        elif as_json:
            together = {name: [each[name] for each in answers] for name in example}
            yield json.dumps(together, ensure_ascii=False)
        elif n_best is None:
            yield write(answers[0])
        else:
            yield from (f"{text}\t{each['log_probability']:.3f}\t{write(each)}" for each in answers)


def _first(example: dict, count: int) -> list[dict]:
    """Returns the first answers of an example, as far as there are any."""
    available = len(example["log_probability"])
    if count > available:
        raise UsageError(
            f"`n_best` must be at most {available}, as many as the served model gives; "
            f"transduce export --n_best makes one that gives more. Received: {count}"
        )
    rows = zip(*example.values(), strict=True)
    answers = [_unpadded(dict(zip(example, row, strict=True))) for row in rows][:count]
    return [answer for answer in answers if answer["log_probability"] > -math.inf]


def _unpadded(answer: dict) -> dict:
    if "frames" not in answer:
        return answer
    tokens = [token for token in answer["tokens"] if token]
    return {**answer, "tokens": tokens, "frames": answer["frames"][: len(tokens)]}


def _tokens_with_frames(answer: dict) -> str:
    pairs = zip(answer["tokens"], answer["frames"], strict=True)
    return " ".join(f"{token}@{frame}" for token, frame in pairs)


def _answer(answer: dict) -> str:
    """Returns the first text among the outputs, else the first output."""
    values = list(answer.values())
    return str(next((value for value in values if isinstance(value, str)), values[0]))
