"""The learning rate as a function of the step."""

from __future__ import annotations

import math

import keras
import tensorflow as tf

from pipelines.job import Train


class LearningRate(keras.optimizers.schedules.LearningRateSchedule):
    """Linear warm-up from 0, then constant, a half cosine to 0, or the inverse square root.

    The cosine is that of Loshchilov and Hutter 2017 (arXiv 1608.03983) without restarts; the
    inverse square root that of Vaswani et al. 2017 (arXiv 1706.03762), scaled to meet the warm-up.
    """

    def __init__(self, train: Train):
        self._train = train

    def __call__(self, step) -> tf.Tensor:
        """Returns the learning rate of a step, counted from 0."""
        train, done = self._train, tf.cast(step, tf.float32) + 1.0
        warmup = float(max(1, train.warmup_steps))
        warm = tf.minimum(1.0, done / warmup)
        decay = {
            "constant": lambda: 1.0,
            "cosine": lambda: self._cosine(done),
            "inverse_sqrt": lambda: tf.math.rsqrt(tf.maximum(1.0, done / warmup)),
        }[train.schedule]()
        return train.learning_rate * warm * decay

    def _cosine(self, done: tf.Tensor) -> tf.Tensor:
        warmup, steps = self._train.warmup_steps, self._train.steps
        share = (done - warmup) / max(1, steps - warmup)
        return 0.5 * (1.0 + tf.cos(math.pi * tf.clip_by_value(share, 0.0, 1.0)))
