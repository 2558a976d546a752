"""Ragged features to dense ones: the one place that pads, in training and in serving."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from keras_models import PADDING

LENGTHS = "_lengths"


def pad(
    features: Mapping[str, tf.Tensor | tf.RaggedTensor],
    widths: Mapping[str, tf.Tensor] | None = None,
) -> dict[str, tf.Tensor]:
    """Returns dense features, each sequence `NAME` joined by its `NAME_lengths` `[B]` int32.

    Args:
        features: Tensors, passed on as they are, and ragged tensors `[B, (T), …]`.
        widths: What to pad to, by name: scalar integers, no less than any length. Without it,
            the longest example, but at least 1: a loop over no steps cannot be in every graph.
    """
    widths = widths or {}
    dense = {}
    for name, feature in features.items():
        if isinstance(feature, tf.RaggedTensor):
            width = widths[name] if name in widths else _longest(feature)
            any_size = [-1] * (feature.shape.rank - 2)
            shape = tf.stack([-1, tf.cast(width, tf.int64), *any_size])
            dense[name] = feature.to_tensor(PADDING, shape=shape)
            dense[name + LENGTHS] = tf.cast(feature.row_lengths(), tf.int32)
        else:
            dense[name] = feature
    return dense


def _longest(feature: tf.RaggedTensor) -> tf.Tensor:
    return tf.reduce_max(tf.concat([[1], feature.row_lengths()], axis=0))
