"""What a person sees while a job runs: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Prints a run's progress to standard error."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task = None
        self._steps = self._first = 0
        self._started = 0.0

    def note(self, text: str) -> None:
        """Shows one line."""
        self._console.print(text, markup=False)

    @contextmanager
    def training(self, step: int, steps: int):
        """Shows a bar, inside this context, where standard error is a terminal."""
        self._first, self._steps, self._started = step, steps, time.monotonic()
        if not self._console.is_terminal:
            yield
            return
        columns = (
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        try:
            with Progress(*columns, console=self._console) as self._progress:
                self._task = self._progress.add_task("", total=steps, completed=step)
                yield
        finally:
            self._progress = None

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Shows the numbers of the last steps."""
        text = (
            f"loss {numbers['loss']:.3f}, {numbers['examples_per_second']:.0f} examples/s, "
            f"{numbers['tokens_per_second']:.0f} tokens/s, {numbers['padding_share']:.0%} padding, "
            f"{numbers['waiting_share']:.0%} waiting, {numbers['memory_gigabytes']:.1f} GB"
        )
        if self._progress is None:
            self.note(f"step {step} of {self._steps}: {text}, {self._time_left(step)} left")
        else:
            self._progress.update(self._task, completed=step, description=text)

    def _time_left(self, step: int) -> timedelta:
        pace = (time.monotonic() - self._started) / (step - self._first)
        return timedelta(seconds=round(pace * (self._steps - step)))

    def evaluation(self, step: int, numbers: Mapping[str, float], best: bool) -> None:
        """Shows an evaluation on the validation split."""
        text = ", ".join(f"{label(name)} {show(name, value)}" for name, value in numbers.items())
        self.note(f"step {step}: validation {text}{' (best so far)' if best else ''}")


def is_share(name: str) -> bool:
    """Returns whether a number of this name is a part of 1."""
    return name.endswith(("_rate", "accuracy", "_iou"))


def show(name: str, value: float) -> str:
    """Returns a number as text, a share in percent."""
    return f"{value:.2%}" if is_share(name) else f"{value:.4f}"


def label(name: str) -> str:
    """Returns a number's name as people say it: `phoneme_error_rate` is PER."""
    words = name.split("_")
    return "".join(word[0] for word in words).upper() if len(words) > 2 else " ".join(words)
