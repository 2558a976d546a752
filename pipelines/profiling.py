"""A profile of some steps, for TensorBoard's profile page."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

_STEPS_BEFORE = 5  # tracing, compilation, allocation


class Profiler:
    """Profiles `steps` steps after the first few, inside its context.

    Args:
        folder: Where TensorBoard looks for events.
        steps: How many; 0 profiles nothing.
    """

    def __init__(self, folder: Path, steps: int):
        self._folder, self._steps = folder, steps
        self._done, self._running = 0, False

    def __enter__(self) -> Profiler:
        return self

    def __exit__(self, *_) -> None:
        self._stop()

    def before(self, count: int) -> int:
        """Starts the profile when it is time, and returns how many of `count` steps to do now."""
        if not self._steps:
            return count
        if self._done >= _STEPS_BEFORE and not self._running:
            tf.profiler.experimental.start(str(self._folder))
            self._running = True
        left = self._steps if self._running else _STEPS_BEFORE - self._done
        return min(count, left)

    def step(self, number: int) -> tf.profiler.experimental.Trace:
        """Returns a context of a call for steps from that number on, which TensorBoard names so."""
        return tf.profiler.experimental.Trace("train", step_num=number, _r=1)

    def after(self, count: int) -> None:
        """Counts steps that were done, and ends the profile after the last."""
        self._done += count
        if self._running:
            self._steps -= count
            if not self._steps:
                self._stop()

    def _stop(self) -> None:
        if self._running:
            tf.profiler.experimental.stop()
            self._running, self._steps = False, 0
