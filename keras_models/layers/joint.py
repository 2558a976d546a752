"""The joint network of a transducer."""

from __future__ import annotations

import keras
import tensorflow as tf


class Joint(keras.layers.Layer):
    """Scores of every output symbol for an encoding and a prediction taken together.

        scores = W tanh(A encoding + B prediction + a) + b        (Graves, Mohamed, Hinton 2013)

    Args:
        units: Width of the hidden layer.
        symbols: Number of output symbols, blank counted.
        encoding_width: Width of the encoder's output.
        prediction_width: Width of the prediction network's output.
    """

    def __init__(self, units: int, symbols: int, encoding_width: int, prediction_width: int):
        super().__init__()
        self._encoding = keras.layers.Dense(units)
        self._prediction = keras.layers.Dense(units, use_bias=False)
        self._scores = keras.layers.Dense(symbols)
        self._encoding.build((None, encoding_width))
        self._prediction.build((None, prediction_width))
        self._scores.build((None, units))
        self.built = True

    def project_encoding(self, encoding: tf.Tensor) -> tf.Tensor:
        """Returns `[…, units]`, to be computed once a frame, for `[…, encoding_width]`."""
        return self._encoding(encoding)

    def project_prediction(self, prediction: tf.Tensor) -> tf.Tensor:
        """Returns `[…, units]`, to be computed once a symbol, for `[…, prediction_width]`."""
        return self._prediction(prediction)

    def output_weights(self) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns W `[units, symbols]` and b `[symbols]`, for a loss that computes the scores."""
        return tuple(tf.convert_to_tensor(weights) for weights in self._scores.weights)

    def call(self, encoding: tf.Tensor, prediction: tf.Tensor) -> tf.Tensor:
        """Returns scores `[…, symbols]` for two projections of shapes that broadcast."""
        return self._scores(tf.tanh(encoding + prediction))
