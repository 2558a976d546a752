"""Sums over the steps since the last line of the log."""

from __future__ import annotations

import resource
import sys
import time
from contextlib import contextmanager

import tensorflow as tf

from pipelines.step import Totals


class Pace(tf.Module):
    """What steps came to, in a variable that is part of a checkpoint, and how fast they went.

    The sums go on after a resume where they were; the seconds are of this process.

    Attributes:
        skipped: Steps of the whole run whose loss or gradient was not finite.
    """

    def __init__(self):
        super().__init__()
        zeros = [0.0] * len(Totals._fields)
        self._sums = tf.Variable(zeros, dtype=tf.float64, trainable=False)
        self._skipped = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self.restart()

    @property
    def skipped(self) -> int:
        return int(self._skipped)

    def restart(self) -> None:
        """Starts measuring speed anew: what was done since was no training."""
        self._started, self._waited = time.monotonic(), 0.0
        self._examples, self._tokens = 0.0, 0.0

    def add(self, totals: Totals) -> None:
        """Takes in steps."""
        self._sums.assign_add(tf.stack(totals))
        self._skipped.assign_add(totals.skipped)
        self._examples += float(totals.examples)
        self._tokens += float(totals.real)

    @contextmanager
    def waiting(self):
        """Counts the time inside this context as spent on waiting for input."""
        started = time.monotonic()
        yield
        self._waited += time.monotonic() - started

    def flush(self) -> tuple[dict[str, float], dict[str, float]]:
        """Returns numbers that a resume does not change, and those of speed; and starts anew."""
        sums = Totals(*self._sums.numpy().tolist())
        numbers = {
            "loss": sums.loss / sums.weight if sums.weight else 0.0,
            "examples": sums.examples,
            "padding_share": 1 - sums.real / sums.padded if sums.padded else 0.0,
            "skipped_steps": sums.skipped,
        }
        seconds = time.monotonic() - self._started
        speed = {
            "examples_per_second": self._examples / seconds,
            "tokens_per_second": self._tokens / seconds,
            "waiting_share": self._waited / seconds,
            "memory_gigabytes": _peak_memory() / 1e9,
        }
        self._sums.assign(tf.zeros_like(self._sums))
        self.restart()
        return numbers, speed


def _peak_memory() -> int:
    """Returns the largest number of bytes that this process, or its first GPU, has held."""
    if tf.config.list_logical_devices("GPU"):
        return tf.config.experimental.get_memory_info("GPU:0")["peak"]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
