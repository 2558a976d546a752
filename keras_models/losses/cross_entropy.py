"""Cross entropy between scores and a class, with label smoothing."""

from __future__ import annotations

import tensorflow as tf


def cross_entropy(logits: tf.Tensor, labels: tf.Tensor, label_smoothing: float = 0.0) -> tf.Tensor:
    """Returns -Σ_v q(v) log softmax(logits)(v) of each label, float32, in the shape of `labels`.

    The target q is 1 - ε at the label, and ε / V more at each of the V classes, ε being the
    label smoothing. Its gradient is softmax(logits) - q.

    Args:
        logits: `[…, V]`, scores.
        labels: `[…]` int, in 0 … V - 1.
        label_smoothing: ε, in 0 … 1.

    Reference: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016),
    section 7.
    """
    logits = tf.cast(logits, tf.float32)
    losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
    if not label_smoothing:
        return losses
    uniform = -tf.reduce_mean(tf.nn.log_softmax(logits), axis=-1)
    return (1 - label_smoothing) * losses + label_smoothing * uniform
