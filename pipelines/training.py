"""The training loop: one for every task and every strategy."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import keras
import tensorflow as tf

from keras_models.frontends.padding import LENGTHS
from keras_models.tasks.task import Task
from pipelines.display import Display
from pipelines.errors import Interrupted
from pipelines.job import Train
from pipelines.log import MetricsLog
from pipelines.schedules import LearningRate


class NotFinite(ArithmeticError):
    """A loss or gradient was infinite or not a number."""


# What TensorFlow raises for a checkpoint that is torn or gone.
_UNREADABLE = (tf.errors.OpError, IndexError)


class DamagedCheckpoint(OSError):
    """No checkpoint of a run can be read."""


class EarlyStopping(tf.Module):
    """The best error rate so far, and how many evaluations it has stood; part of a checkpoint."""

    def __init__(self):
        super().__init__()
        self.best = tf.Variable(float("inf"), dtype=tf.float64, trainable=False)
        self.best_step = tf.Variable(0, dtype=tf.int64, trainable=False)
        self.waited = tf.Variable(0, dtype=tf.int64, trainable=False)

    def update(self, step: int, value: float) -> bool:
        """Takes in an evaluation, and returns whether it is the best so far."""
        if value < float(self.best):
            self.best.assign(value)
            self.best_step.assign(step)
            self.waited.assign(0)
            return True
        self.waited.assign_add(1)
        return False


class Trainer:
    """Trains a task's model, and saves all that it takes to go on exactly.

    Gradients are of the sum of the losses over the global number of examples; they are reduced
    over replicas first, then clipped. Dropout is a function of seed and step, so that there is no
    generator whose state could be lost.

    Args:
        task: What to train; its variables must have been made in the strategy's scope.
        config: How.
        batches: Endless padded features.
        strategy: Where.
        folder: The run's folder.

    Attributes:
        passed_over: Checkpoints that could not be read, each in words; an older one was taken.
    """

    def __init__(
        self,
        task: Task,
        config: Train,
        batches: tf.data.Dataset,
        strategy: tf.distribute.Strategy,
        folder: Path,
    ):
        self._task, self._config, self._strategy = task, config, strategy
        self._batches = iter(batches)
        with strategy.scope():
            self._optimizer = keras.optimizers.AdamW(
                LearningRate(config), weight_decay=config.weight_decay
            )
            self._optimizer.build(task.model.trainable_variables)
        self._stopping = EarlyStopping()
        checkpoint = tf.train.Checkpoint(
            weights=_weights(task),
            optimizer=self._optimizer,
            batches=self._batches,
            stopping=self._stopping,
        )
        self._checkpoints = tf.train.CheckpointManager(
            checkpoint, str(folder / "checkpoints"), config.keep_checkpoints
        )
        self._best = _best_checkpoint(task, folder)
        self._losses_and_gradients = tf.function(
            self._forward_and_backward, jit_compile=config.jit_compile, reduce_retracing=True
        )
        self.passed_over = _restore_latest(self._checkpoints)
        self._log = MetricsLog(folder, self.step)

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return int(self._optimizer.iterations)

    @property
    def best_step(self) -> int:
        """The step of the best evaluation."""
        return int(self._stopping.best_step)

    def train(self, evaluate: Callable[[], dict[str, float]], display: Display) -> None:
        """Trains to the last step or until no evaluation improves; the best weights remain.

        Args:
            evaluate: Returns numbers by name on the validation split, the first of which is to
                become small.
            display: Shows the progress.

        Raises:
            Interrupted: On SIGINT or SIGTERM, once a checkpoint is saved.
            NotFinite: If a loss or gradient is not finite; the last checkpoint stays as it was.
        """
        with _until_signal() as stopped, display.training(self.step, self._config.steps):
            pace = _Pace()
            while self.step < self._config.steps and not self._exhausted():
                loss, batch = self._one_step()
                pace.add(loss, batch)
                step = self.step
                if step % self._config.log_every == 0:
                    numbers = pace.flush(float(self._optimizer.learning_rate))
                    self._log.write(step, **numbers)
                    display.step(step, numbers)
                if step % self._config.evaluate_every == 0 or step == self._config.steps:
                    self._evaluate(step, evaluate, display)
                    pace = _Pace()
                if step % self._config.checkpoint_every == 0 or stopped() or self._exhausted():
                    self._checkpoints.save(step)
                if stopped():
                    raise Interrupted(f"stopped at step {step} of {self._config.steps}")
        self._checkpoints.save(self.step)
        restore_best(self._task, Path(self._best.directory).parent)

    def _exhausted(self) -> bool:
        return int(self._stopping.waited) >= self._config.patience

    def _evaluate(self, step: int, evaluate, display: Display) -> None:
        display.note(f"step {step}: evaluating on the validation split")
        numbers = evaluate()
        self._log.write(step, **{f"validation_{name}": value for name, value in numbers.items()})
        best = self._stopping.update(step, next(iter(numbers.values())))
        if best:
            self._best.save(step)
        display.evaluation(step, numbers, best)

    def _one_step(self):
        loss, finite, batch = self._update(self._batches)
        if not finite:
            raise NotFinite(
                f"The loss ({float(loss)}) or its gradient is not finite at step {self.step}, in a "
                f"batch of {self._describe(batch)}. The last checkpoint is as it was. "
                "A lower --train.learning_rate, or a longer --train.warmup_steps, may help."
            )
        return loss, batch

    @tf.function
    def _update(self, batches: Iterator):
        batch = next(batches)
        loss, finite = self._strategy.run(self._replica_step, args=(batch,))
        return loss, finite, batch

    def _replica_step(self, batch):
        context = tf.distribute.get_replica_context()
        step = tf.cast(self._optimizer.iterations, tf.int32)
        seed = tf.stack([self._config.seed, step])
        loss_sum, gradients = self._losses_and_gradients(batch, seed)
        examples = tf.cast(tf.shape(next(iter(batch.values())))[0], tf.float32)
        *gradients, loss_sum, examples = context.all_reduce(
            tf.distribute.ReduceOp.SUM, [*gradients, loss_sum, examples]
        )
        # Keras's optimizer sums over the replicas once more.
        scale = 1.0 / self._strategy.num_replicas_in_sync
        gradients = [gradient / examples for gradient in gradients]
        norm = tf.linalg.global_norm(gradients)
        gradients, _ = tf.clip_by_global_norm(gradients, self._config.clip_norm, norm)
        variables = self._task.model.trainable_variables
        self._optimizer.apply([gradient * scale for gradient in gradients], variables)
        loss = loss_sum / examples
        return loss, tf.math.is_finite(loss) & tf.math.is_finite(norm)

    def _forward_and_backward(self, batch, seed):
        variables = [variable.value for variable in self._task.model.trainable_variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(self._task.losses(batch, dropout_seed=seed))
        unconnected = tf.UnconnectedGradients.ZERO
        gradients = tape.gradient(loss, variables, unconnected_gradients=unconnected)
        return loss, [tf.convert_to_tensor(gradient) for gradient in gradients]

    def _describe(self, batch) -> str:
        return f"{len(next(iter(batch.values())))} examples, the first being " + str(
            {name: value[0].numpy().tolist() for name, value in batch.items()}
        )


class _Pace:
    """Sums over the steps since the last line of the log."""

    def __init__(self):
        self._started = time.monotonic()
        self._losses, self._examples, self._real, self._held = [], 0, 0, 0

    def add(self, loss: tf.Tensor, batch) -> None:
        self._losses.append(float(loss))
        for name, lengths in batch.items():
            if name.endswith(LENGTHS):
                padded = batch[name.removesuffix(LENGTHS)]
                self._real += int(tf.reduce_sum(lengths))
                self._held += padded.shape[0] * padded.shape[1]
        self._examples += len(next(iter(batch.values())))

    def flush(self, learning_rate: float) -> dict[str, float]:
        """Returns the means since the last call, and starts anew."""
        seconds = time.monotonic() - self._started
        numbers = {
            "loss": sum(self._losses) / len(self._losses),
            "learning_rate": learning_rate,
            "examples_per_second": self._examples / seconds,
            "padding_share": 1 - self._real / self._held,
        }
        self.__init__()
        return numbers


def _best_checkpoint(task: Task, folder: Path) -> tf.train.CheckpointManager:
    checkpoint = tf.train.Checkpoint(weights=_weights(task))
    return tf.train.CheckpointManager(checkpoint, str(folder / "best"), 1)


def _weights(task: Task) -> list[tf.Variable]:
    """Returns the variables one by one: of a task, a checkpoint misses the layers kept in lists."""
    return [variable.value for variable in task.model.variables]


def _restore_latest(manager: tf.train.CheckpointManager) -> list[str]:
    """Restores the last checkpoint that is whole, all of it; nothing where none was saved.

    Returns:
        What was wrong with each later one.
    """
    passed_over = []
    for path in reversed(manager.checkpoints):
        try:
            manager.checkpoint.restore(path).assert_consumed()
            return passed_over
        except _UNREADABLE as error:
            passed_over.append(f"{path} cannot be read: {error}")
    if passed_over:
        raise DamagedCheckpoint(
            f"One of the checkpoints in {manager.directory} must be whole. Received: "
            f"{'; '.join(passed_over)}. Delete that folder to start anew."
        )
    return []


def restore_best(task: Task, folder: Path) -> None:
    """Gives a task the best weights of the run in `folder`."""
    manager = _best_checkpoint(task, folder)
    if manager.latest_checkpoint is None:
        raise FileNotFoundError(
            f"{folder} must hold a trained model. Received a folder without {folder / 'best'}; "
            "run its job to the end of a first evaluation."
        )
    _restore_latest(manager)


@contextmanager
def _until_signal():
    """Gives a function that tells whether SIGINT or SIGTERM came; the second one interrupts."""
    received = []

    def note(number, frame):
        if received:
            raise KeyboardInterrupt
        received.append(number)

    signals = (signal.SIGINT, signal.SIGTERM)
    before = [signal.signal(number, note) for number in signals]
    try:
        yield lambda: bool(received)
    finally:
        for number, handler in zip(signals, before, strict=True):
            signal.signal(number, handler)
