"""From the mean gradient to new weights: decay, noise, clipping, the optimizer, averages."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import contextmanager

import keras
import tensorflow as tf

from pipelines.job import Train

_NOISE_DECAY = 0.55
_FIRST_SCALE, _LEAST_SCALE = 2.0**15, 1.0
_STEPS_TO_DOUBLE = 2000


def optimizer(config: Train) -> keras.optimizers.Optimizer:
    """Returns the optimizer whose `update_step` makes the update of one variable.

    Its learning rate is given to each update; decay and clipping are ours.
    """
    if config.optimizer == "sgd":
        return keras.optimizers.SGD(momentum=config.beta_1)
    return keras.optimizers.Adam(beta_1=config.beta_1, beta_2=config.beta_2)


def is_decayed(variable: tf.Variable) -> bool:
    """Returns whether weight decay and L2 apply: to kernels and embeddings, not to biases."""
    return variable.shape.rank > 1


def clipped(
    gradients: Sequence[tf.Tensor], kind: str, limit: float
) -> tuple[list[tf.Tensor], tf.Tensor]:
    """Returns clipped gradients, and their global norm before.

    Args:
        gradients: Of the mean loss over all replicas.
        kind: `global_norm` (Pascanu et al. 2013, arXiv 1211.5063), `norm` of each gradient,
            `value` of each element, or `none`.
        limit: The largest norm or absolute value.
    """
    norm = tf.linalg.global_norm(gradients)
    if kind == "global_norm":
        return tf.clip_by_global_norm(gradients, limit, norm)[0], norm
    clip = {
        "norm": lambda gradient: tf.clip_by_norm(gradient, limit),
        "value": lambda gradient: tf.clip_by_value(gradient, -limit, limit),
        "none": tf.identity,
    }[kind]
    return [clip(gradient) for gradient in gradients], norm


def noise(
    gradients: Sequence[tf.Tensor], variance: float, seed: tf.Tensor, step: tf.Tensor
) -> list[tf.Tensor]:
    """Returns gradients with Gaussian noise added (Neelakantan et al. 2015, arXiv 1511.06807).

    Args:
        gradients: One a variable.
        variance: That of step 0.
        seed: `[2]` int32, of this step.
        step: Counted from 0.
    """
    deviation = tf.sqrt(variance / (1.0 + tf.cast(step, tf.float32)) ** _NOISE_DECAY)
    seeds = tf.random.experimental.stateless_split(seed, len(gradients))
    return [
        gradient + deviation * tf.random.stateless_normal(tf.shape(gradient), each)
        for gradient, each in zip(gradients, tf.unstack(seeds), strict=True)
    ]


class MovingAverage(tf.Module):
    """An exponential moving average of variables, made in the strategy's scope.

    Its decay rises with the steps, `min(decay, (1 + step) / (10 + step))`, so that the initial
    weights are soon forgotten.
    """

    def __init__(self, variables: Sequence[tf.Variable], decay: float):
        super().__init__()
        self._variables, self._decay = list(variables), decay
        self.averages = [tf.Variable(each, trainable=False) for each in variables]

    def update(self, strategy: tf.distribute.Strategy, step: tf.Tensor) -> None:
        """Takes in the variables after a step, counted from 0. Called across replicas."""
        step = tf.cast(step, tf.float32)
        decay = tf.minimum(self._decay, (1.0 + step) / (10.0 + step))

        def move(average, variable, decay):
            average.assign_sub((1.0 - decay) * (average - variable))

        for average, variable in zip(self.averages, self._variables, strict=True):
            strategy.extended.update(average, move, args=(variable, decay), group=False)

    @contextmanager
    def applied(self):
        """Gives the variables their averages inside this context."""
        before = [tf.identity(variable) for variable in self._variables]
        _assign(self._variables, self.averages)
        try:
            yield
        finally:
            _assign(self._variables, before)


class LossScale(tf.Module):
    """What losses are multiplied by, so that gradients in float16 do not vanish.

    Halved when a gradient is not finite, doubled after 2,000 steps in which each was
    (Micikevicius et al. 2018, arXiv 1710.03740, section 3.2).
    """

    def __init__(self):
        super().__init__()
        self.scale = tf.Variable(_FIRST_SCALE, trainable=False)
        self._good_steps = tf.Variable(0, dtype=tf.int64, trainable=False)

    def update(self, finite: tf.Tensor) -> None:
        """Takes in whether the gradients of a step were finite. Called across replicas."""
        good = tf.where(finite, self._good_steps + 1, 0)
        doubles = good >= _STEPS_TO_DOUBLE
        scale = tf.where(finite, self.scale, tf.maximum(_LEAST_SCALE, self.scale / 2.0))
        self.scale.assign(tf.where(doubles, 2.0 * scale, scale))
        self._good_steps.assign(tf.where(doubles, tf.zeros_like(good), good))

    @property
    def is_least(self) -> tf.Tensor:
        """Whether the scale cannot be halved any more: what is not finite is not its doing."""
        return self.scale <= _LEAST_SCALE


def _assign(variables: Sequence[tf.Variable], values: Sequence[tf.Tensor]) -> None:
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
