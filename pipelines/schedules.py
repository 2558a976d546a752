"""The learning rate as a function of the step."""

from __future__ import annotations

import math

import tensorflow as tf

from pipelines.job import Train


def learning_rate(train: Train, step: tf.Tensor) -> tf.Tensor:
    """Returns the learning rate of a step counted from 0, float32.

    Linear warm-up from 0, then constant, a half cosine to 0, or the inverse square root. The
    cosine is that of Loshchilov and Hutter 2017 (arXiv 1608.03983) without restarts; the inverse
    square root that of Vaswani et al. 2017 (arXiv 1706.03762), scaled to meet the warm-up. The
    schedule `plateau` is constant here: evaluations reduce it.
    """
    done = tf.cast(step, tf.float32) + 1.0
    warmup = float(max(1, train.warmup_steps))
    warm = tf.minimum(1.0, done / warmup)
    decay = {
        "constant": lambda: 1.0,
        "plateau": lambda: 1.0,
        "cosine": lambda: _cosine(train, done),
        "inverse_sqrt": lambda: tf.math.rsqrt(tf.maximum(1.0, done / warmup)),
    }[train.schedule]()
    return train.learning_rate * warm * decay


def _cosine(train: Train, done: tf.Tensor) -> tf.Tensor:
    share = (done - train.warmup_steps) / max(1, train.steps - train.warmup_steps)
    return 0.5 * (1.0 + tf.cos(math.pi * tf.clip_by_value(share, 0.0, 1.0)))
