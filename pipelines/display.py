"""What a person sees while a job runs: live on a terminal, plain lines elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


class Display:
    """Prints a run's progress to standard error."""

    def __init__(self, console: Console | None = None):
        self._console = console or Console(stderr=True, highlight=False, soft_wrap=True)
        self._progress: Progress | None = None
        self._task = None

    def note(self, text: str) -> None:
        """Shows one line."""
        self._console.print(text, markup=False)

    @contextmanager
    def training(self, step: int, steps: int):
        """Shows a bar, inside this context, where standard error is a terminal."""
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
        with Progress(*columns, console=self._console) as self._progress:
            self._task = self._progress.add_task("", total=steps, completed=step)
            yield
        self._progress = None

    def step(self, step: int, numbers: Mapping[str, float]) -> None:
        """Shows the numbers of the last steps."""
        text = (
            f"loss {numbers['loss']:.3f}, {numbers['examples_per_second']:.0f} examples/s, "
            f"{numbers['padding_share']:.0%} padding"
        )
        if self._progress is None:
            self.note(f"step {step}: {text}")
        else:
            self._progress.update(self._task, completed=step, description=text)

    def evaluation(self, step: int, numbers: Mapping[str, float], best: bool) -> None:
        """Shows an evaluation on the validation split."""
        text = ", ".join(f"{name.replace('_', ' ')} {show(name, v)}" for name, v in numbers.items())
        self.note(f"step {step}: validation {text}{' (best so far)' if best else ''}")


def show(name: str, value: float) -> str:
    """Returns a number as text, a rate in percent."""
    return f"{value:.2%}" if name.endswith("_rate") else f"{value:.4f}"
