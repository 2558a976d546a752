"""Dropout as a function of its seed: no generator, no state."""

import tensorflow as tf


def dropout(x, rate, seed):
    """Returns `x` with a share `rate` of its elements zeroed and the others scaled by `1 / (1 - rate)`.

    The same seed gives the same elements, eagerly, in a graph and under XLA.

    Args:
        x: Float tensor of any shape.
        rate: Share of elements dropped, a Python float in `[0, 1)`.
        seed: Int32 tensor `[2]`, or None: nothing is dropped.
    """
    if not 0 <= rate < 1:
        raise ValueError(f"Argument `rate` must be in [0, 1). Received: rate={rate}")
    if seed is None or rate == 0:
        return x
    uniform = tf.random.stateless_uniform(tf.shape(x), seed, alg="philox")
    return tf.where(uniform >= rate, x / (1 - rate), tf.zeros_like(x))


def fold_in(seed, number):
    """Returns the seed that part `number` of a model derives from `seed`, or None from None."""
    if seed is None:
        return None
    return tf.random.experimental.stateless_fold_in(seed, number, alg="philox")
