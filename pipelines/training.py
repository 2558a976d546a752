"""The training loop: one for every task and every strategy."""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterable
from contextlib import contextmanager, nullcontext
from pathlib import Path

import tensorflow as tf

from keras_models.tasks.task import Task
from pipelines import strategies
from pipelines.batches import Batch
from pipelines.checkpoints import Checkpoints, DamagedCheckpoint, weights_of
from pipelines.display import Display
from pipelines.errors import Interrupted, Terminated, Termination
from pipelines.job import Train
from pipelines.log import MetricsLog
from pipelines.pace import Pace
from pipelines.profiling import Profiler
from pipelines.selection import Selection, restore_best
from pipelines.step import Totals, TrainStep


class NotFinite(ArithmeticError):
    """More losses or gradients than allowed were infinite or not a number."""


class Trainer:
    """Trains a task's model, and saves all that it takes to go on exactly.

    Args:
        task: What to train; its variables must have been made in the strategy's scope.
        config: How.
        batches: Returns endless padded features from the batch of a number on, the same ones on
            every worker: all that there is to save of them is the number of steps.
        strategy: Where.
        folder: The run's folder.
        profile: Number of steps to write a profile of, for TensorBoard.
        rows: Where batches are of chunks, how many; as for `TrainStep`.

    Attributes:
        passed_over: Checkpoints that could not be read, each in words; an older one was taken.
    """

    def __init__(
        self,
        task: Task,
        config: Train,
        batches: Callable[[int], Iterable[Batch]],
        strategy: tf.distribute.Strategy,
        folder: Path,
        profile: int = 0,
        rows: int = 0,
    ):
        self._task, self._config, self._strategy, self._folder = task, config, strategy, folder
        self._step = TrainStep(task, config, strategy, rows)
        self._weights = weights_of(task)
        self._selection = Selection(config, folder)
        self._pace = Pace()
        self._checkpoints = Checkpoints(
            folder / "checkpoints",
            config.keep_checkpoints,
            self._weights,
            **self._step.state,
            selection=self._selection,
            totals=self._pace,
        )
        self.passed_over = self._checkpoints.restore_latest()
        self._require_same_step()
        self._batches = iter(batches(self.step * config.accumulate))
        self._chief = strategies.is_chief(strategy)
        self._several_workers = strategies.has_several_workers(strategy)
        self._log = MetricsLog(folder, self.step) if self._chief else None
        self._profiler = Profiler(folder / "events", profile if self._chief else 0)

    def _require_same_step(self) -> None:
        chief = int(strategies.from_chief(self._strategy, self.step))
        if self.step != chief:
            raise DamagedCheckpoint(
                "All workers must go on from the same checkpoint. Received: step "
                f"{self.step} here, in {self._folder}, and step {chief} at the chief."
            )

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self._step.step.numpy())

    @property
    def best_step(self) -> int:
        """The step of the best evaluation."""
        return self._selection.best_step

    def train(self, evaluate: Callable[[], dict[str, float]], display: Display) -> None:
        """Trains to the last step or until no evaluation improves; the best weights remain.

        Args:
            evaluate: Returns numbers by name on the validation split, of which `config.metric` or
                the first selects. It is called where files are written.
            display: Shows the progress.

        Raises:
            Interrupted: On SIGINT, once a checkpoint is saved; `Terminated` on SIGTERM.
            NotFinite: If more steps than allowed had a loss or gradient that is not finite; the
                last checkpoint stays as it was.
            CheckpointNotSaved: On a full disk; earlier checkpoints stay as they were.
        """
        with (
            _until_signal() as received,
            display.training(self.step, self._config.steps),
            self._profiler,
        ):
            while self.step < self._config.steps and not self._selection.exhausted:
                stopped = self._advance(bool(received))
                step = self.step
                if step % self._config.log_every == 0:
                    self._report(step, display)
                if step % self._config.evaluate_every == 0 or step == self._config.steps:
                    self._evaluate(step, evaluate, display)
                if not self._several_workers:  # then there is nobody to agree with
                    stopped = bool(received)
                exhausted = self._selection.exhausted
                if step % self._config.checkpoint_every == 0 or stopped or exhausted:
                    self._save(step)
                if stopped:
                    raise _ending(received)(f"stopped at step {step} of {self._config.steps}")
        self._save(self.step)
        if self._chief:
            for what in restore_best(self._weights, self._folder):
                display.note(f"train: {what}")

    def _advance(self, stop: bool) -> bool:
        """Does the steps up to the next thing to do, and returns whether any worker is to stop."""
        count = self._profiler.before(self._steps_to_do())
        with self._pace.waiting():
            groups = tuple(self._group() for _ in range(count))
        with self._profiler.step(self.step):
            totals, stopped = self._step(groups, stop)
        self._profiler.after(count)
        self._take_in(totals, groups[-1][-1])
        return stopped

    def _take_in(self, totals: Totals, batch: dict[str, tf.Tensor] | None = None) -> None:
        """Counts steps that are done; names the last batch where they were not finite."""
        self._pace.add(totals)
        if self._pace.skipped > self._config.nonfinite_limit:
            known = batch is not None and not strategies.is_asynchronous(self._strategy)
            raise NotFinite(
                f"At most {self._config.nonfinite_limit} steps may have a loss or gradient that is "
                f"not finite (--train.nonfinite_limit). Received one more by step {self.step}"
                f"{f', of {_described(batch)}' if known else ''}. The last checkpoint is as it "
                "was. A lower --train.learning_rate, or a longer --train.warmup_steps, may help."
            )

    def _join(self) -> None:
        """Waits for steps that are under way elsewhere, if there are any."""
        self._take_in(self._step.join())

    def _group(self) -> tuple[Batch, ...]:
        """Returns the batches that make a step."""
        return tuple(next(self._batches) for _ in range(self._config.accumulate))

    def _steps_to_do(self) -> int:
        """Returns how many steps come before anything else is to be done."""
        config, step = self._config, self.step
        every = (config.log_every, config.evaluate_every, config.checkpoint_every)
        every = (config.steps_per_call, *every)
        return min(config.steps - step, *(n - step % n for n in every))

    def _report(self, step: int, display: Display) -> None:
        self._join()
        numbers, speed = self._pace.flush()
        if self._chief:
            numbers["learning_rate"] = self._step.learning_rate
            self._log.write(step, **numbers)
            self._log.write_speed(step, **speed)
            display.step(step, numbers | speed)

    def _evaluate(self, step: int, evaluate, display: Display) -> None:
        self._join()
        average = self._step.average
        value = 0.0
        with average.applied() if average is not None else nullcontext():
            if self._chief:
                display.note(f"step {step}: evaluating on the validation split")
                numbers = evaluate()
                value = self._selecting(numbers)
            value = strategies.from_chief(self._strategy, value)
            best = self._selection.update(step, value, self._weights, self._chief)
        if self._chief:
            validation = {f"validation_{name}": number for name, number in numbers.items()}
            self._log.write(step, **validation)
            display.evaluation(step, numbers, best)
        if self._selection.reduces_rate():
            scale = self._step.rate_scale
            scale.assign(scale * self._config.plateau_factor)
            display.note(f"step {step}: learning rate times {scale.numpy():g} from here")
        self._pace.restart()

    def _selecting(self, numbers: dict[str, float]) -> float:
        """Returns what is to become small."""
        name = self._config.metric or next(iter(numbers))
        return -numbers[name] if name in self._task.higher_is_better else numbers[name]

    def _save(self, step: int) -> None:
        self._join()
        if self._chief:
            self._checkpoints.save(step)


def _described(batch: Batch) -> str:
    first = {name: value[0].numpy().tolist() for name, value in batch.items()}
    return f"{len(next(iter(batch.values())))} examples, the first being {first}"


def _ending(received: list[int]) -> type[Interrupted]:
    """Returns how a signal of this worker, or of another one, is told."""
    return Terminated if received[:1] == [signal.SIGTERM] else Interrupted


@contextmanager
def _until_signal():
    """Gives a list that gets the SIGINT or SIGTERM that came; the second one interrupts."""
    received = []

    def note(number, frame):
        if received:
            raise Termination if number == signal.SIGTERM else KeyboardInterrupt
        received.append(number)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, note) for number in signals]
    try:
        yield received
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
