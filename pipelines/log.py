"""What a run measured, step by step: metrics.jsonl, speed.jsonl and TensorBoard events."""

from __future__ import annotations

import json
import os
from pathlib import Path

import tensorflow as tf


class MetricsLog:
    """Numbers by step, in files of JSON lines and in TensorBoard's format.

    Those of metrics.jsonl are to the last bit the same however often a run was interrupted.

    Args:
        folder: The run's folder.
        step: The step from which a run goes on: later lines, of steps that will be done again,
            are dropped.
    """

    def __init__(self, folder: Path, step: int):
        self._path = folder / "metrics.jsonl"
        self._speed = folder / "speed.jsonl"
        for path in (self._path, self._speed):
            kept = [line for line in _lines(path) if line["step"] <= step]
            partial = path.with_suffix(".partial")
            partial.write_text("".join(json.dumps(line) + "\n" for line in kept))
            os.replace(partial, path)  # or a full disk, or a kill, would lose what was there
        self._events = tf.summary.create_file_writer(str(folder / "events"))

    def write(self, step: int, **values: float) -> None:
        """Adds one line, on the disk when this returns, of what a resume does not change."""
        self._add(self._path, step, values)

    def write_speed(self, step: int, **values: float) -> None:
        """Adds one line of numbers that are others in every run."""
        self._add(self._speed, step, values)

    def _add(self, path: Path, step: int, values: dict[str, float]) -> None:
        with path.open("a") as file:
            file.write(json.dumps({"step": step, **values}) + "\n")
        with self._events.as_default(step=step):
            for name, value in values.items():
                tf.summary.scalar(name, value)
        self._events.flush()


def read_metrics(folder: Path) -> list[dict[str, float]]:
    """Returns the lines of a run's metrics.jsonl; a torn last line is left out."""
    return _lines(folder / "metrics.jsonl")


def _lines(path: Path) -> list[dict[str, float]]:
    if not path.exists():
        return []
    lines = []
    for line in path.read_text().splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return lines
