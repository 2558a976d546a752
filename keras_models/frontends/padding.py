"""Ragged features to dense ones: the one place that pads, in training and in serving."""

from __future__ import annotations

from collections.abc import Mapping

import tensorflow as tf

from keras_models import PADDING

LENGTHS = "_lengths"


def pad(
    features: Mapping[str, tf.Tensor | tf.RaggedTensor], widths: Mapping[str, int] | None = None
) -> dict[str, tf.Tensor]:
    """Returns dense features, each sequence `NAME` joined by its `NAME_lengths` `[B]` int32.

    Args:
        features: Tensors, passed on as they are, and ragged tensors `[B, (T), …]`.
        widths: What to pad to, by name; the longest example where it says nothing.
    """
    widths = widths or {}
    dense = {}
    for name, feature in features.items():
        if isinstance(feature, tf.RaggedTensor):
            shape = [None, widths.get(name)] + [None] * (feature.shape.rank - 2)
            dense[name] = feature.to_tensor(PADDING, shape=shape)
            dense[name + LENGTHS] = tf.cast(feature.row_lengths(), tf.int32)
        else:
            dense[name] = feature
    return dense
