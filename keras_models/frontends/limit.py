"""The refusal of inputs that are too long to be answered."""

import tensorflow as tf


def within_limit(
    sequences: tf.RaggedTensor, limit: int, field: str, unit: str = "symbols"
) -> tf.RaggedTensor:
    """Returns the same sequences, if none is longer than `limit`.

    Args:
        sequences: `[B, (T), …]`.
        limit: Greatest length.
        field: What they are called in the message.
        unit: What their elements are called there.

    Raises:
        tf.errors.InvalidArgumentError: If one is longer, in the served graph too.
    """
    longest = tf.reduce_max(tf.concat([sequences.row_lengths(), [0]], 0))
    message = f"`{field}` must have at most {limit} {unit}. Received more, in {unit}:"
    check = tf.debugging.Assert(longest <= limit, [message, longest])
    with tf.control_dependencies([check]):
        return tf.identity(sequences)
