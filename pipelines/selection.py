"""Which evaluation was best, when to stop, and which weights are kept for the end."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import tensorflow as tf

from pipelines.checkpoints import (
    DamagedCheckpoint,
    read_weights,
    remove_others,
    steps_in,
    write_weights,
)
from pipelines.job import Train


class Selection(tf.Module):
    """The evaluations so far, in variables that are part of a checkpoint.

    The weights of the `average` best evaluations (or last ones) are kept in the folder `best`;
    the final weights are their mean.

    Args:
        config: Which to keep, how many, when to stop.
        folder: The run's folder.
    """

    def __init__(self, config: Train, folder: Path):
        super().__init__()
        self._config, self._folder = config, folder / "best"
        nothing = [float("inf")] * config.average
        self._values = _state(nothing, tf.float64)  # of the kept ones; the best or latest first
        self._steps = _state([0] * config.average, tf.int64)
        self._best = _state(float("inf"), tf.float64)
        self._best_step = _state(0, tf.int64)
        self._waited = _state(0, tf.int64)
        self._since_reduction = _state(0, tf.int64)

    @property
    def best_step(self) -> int:
        """The step of the best evaluation."""
        return int(self._best_step)

    @property
    def exhausted(self) -> bool:
        """Whether so many evaluations were no better that training stops."""
        return int(self._waited) >= self._config.patience

    def update(
        self, step: int, value: float, weights: Mapping[str, tf.Variable], writes: bool
    ) -> bool:
        """Takes in an evaluation, keeps its weights if they are to be kept.

        Args:
            step: When.
            value: What is to become small. What is no number is the worst.
            weights: As they were evaluated.
            writes: Whether this process is the one that writes files.

        Returns:
            Whether it is the best so far.
        """
        value = math.inf if math.isnan(value) else value
        better = value < float(self._best)
        self._waited.assign(0 if better else self._waited + 1)
        self._since_reduction.assign(0 if better else self._since_reduction + 1)
        if better:
            self._best.assign(value)
            self._best_step.assign(step)
        self._keep(step, value, weights, writes)
        return better

    def reduces_rate(self) -> bool:
        """Returns whether it is time to reduce the learning rate, and waits anew if it is."""
        config = self._config
        if config.schedule != "plateau" or self._since_reduction < config.plateau_patience:
            return False
        self._since_reduction.assign(0)
        return True

    def _keep(self, step: int, value: float, weights, writes: bool) -> None:
        kept = zip(self._values.numpy(), self._steps.numpy(), strict=True)
        pairs = [(float(v), int(s)) for v, s in kept if s and s != step] + [(value, step)]
        if self._config.select == "best":
            pairs.sort()  # an earlier step first among equals
        else:
            pairs.sort(key=lambda pair: -pair[1])
        pairs = pairs[: self._config.average]
        steps = [s for _, s in pairs]
        if writes and step in steps:
            write_weights(weights, self._folder, step)
        if writes:
            remove_others(self._folder, steps)
        missing = self._config.average - len(pairs)
        self._values.assign([v for v, _ in pairs] + [float("inf")] * missing)
        self._steps.assign(steps + [0] * missing)


def restore_best(weights: Mapping[str, tf.Variable], folder: Path) -> list[str]:
    """Gives variables the best weights of the run in `folder`: the mean of those that were kept.

    Where none of them can be read, those that training last saved take their place.

    Returns:
        What was lost, and what the weights are, in words; nothing where nothing was lost.

    Raises:
        FileNotFoundError: If none were kept.
        DamagedCheckpoint: If no checkpoint can be read either.
        OtherModel: If they are another model's.
    """
    kept = sorted((folder / "best").glob("*.index"))
    if not kept:
        raise FileNotFoundError(
            f"{folder} must hold a trained model. Received a folder without {folder / 'best'}; "
            "run its job to the end of a first evaluation."
        )
    lost = _read_mean(weights, [path.with_suffix("") for path in kept])
    if not lost:
        return []
    if len(lost) < len(kept):
        return [*lost, f"the final weights are the mean of the other {len(kept) - len(lost)}"]
    checkpoints = folder / "checkpoints"
    for step in reversed(steps_in(checkpoints)):
        more = _read_mean(weights, [checkpoints / f"ckpt-{step}"])
        if not more:
            return [*lost, f"the final weights are those of step {step}, the last ones saved"]
        lost += more
    raise DamagedCheckpoint("; ".join(lost))


def _read_mean(weights: Mapping[str, tf.Variable], paths: Sequence[Path]) -> list[str]:
    """Gives variables the mean of what can be read, and returns why the others cannot."""
    sums: dict[str, np.ndarray] = {}
    damaged = []
    for path in paths:
        try:
            read_weights(weights, path)
        except DamagedCheckpoint as error:
            damaged.append(str(error))
            continue
        for name, variable in weights.items():
            sums[name] = sums.get(name, 0.0) + variable.numpy().astype(np.float64)
    for name, total in sums.items():
        mean = total / (len(paths) - len(damaged))
        weights[name].assign(mean.astype(weights[name].dtype.as_numpy_dtype))
    return damaged


def _state(value, dtype: tf.DType) -> tf.Variable:
    return tf.Variable(value, dtype=dtype, trainable=False)
