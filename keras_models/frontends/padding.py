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
            the longest example.
    """
    widths = widths or {}
    dense = {}
    for name, feature in features.items():
        if isinstance(feature, tf.RaggedTensor):
            dense[name] = feature.to_tensor(PADDING, shape=_shape(feature, widths.get(name)))
            dense[name + LENGTHS] = tf.cast(feature.row_lengths(), tf.int32)
        else:
            dense[name] = feature
    return dense


def _shape(feature: tf.RaggedTensor, width: tf.Tensor | None) -> tf.Tensor | None:
    if width is None:
        return None
    any_size = [-1] * (feature.shape.rank - 2)
    return tf.stack([-1, tf.cast(width, tf.int64), *any_size])
