"""Dropout as a function of its seed: no generator, no state."""

import tensorflow as tf


def dropout(x, rate, seed):
    """Returns `x` with a share `rate` of its elements zeroed, the others over `1 - rate`.

    The same seed drops the same elements eagerly, in a graph and under XLA. So whole random
    integers are compared: TensorFlow and XLA agree on those, but not on uniform floats.

    Args:
        x: Float tensor of any shape.
        rate: Share of elements dropped, a Python float in `[0, 1)`.
        seed: Int32 tensor `[2]`, or None: nothing is dropped.
    """
    check_rate("rate", rate)
    if seed is None or rate == 0:
        return x
    integers = tf.random.stateless_uniform(
        tf.shape(x), seed, minval=None, maxval=None, dtype=tf.int32, alg="philox"
    )
    kept = integers >= int(rate * 2**32) - 2**31
    return tf.where(kept, x / (1 - rate), tf.zeros_like(x))


def check_rate(name, rate):
    """Raises ValueError unless the argument `name` is a share that can be dropped."""
    if not 0 <= rate < 1:
        raise ValueError(f"Argument `{name}` must be in [0, 1). Received: {name}={rate}")


def fold_in(seed, number):
    """Returns the seed for part `number` of a model, derived from the whole's; None from None."""
    if seed is None:
        return None
    return tf.random.experimental.stateless_fold_in(seed, number, alg="philox")
