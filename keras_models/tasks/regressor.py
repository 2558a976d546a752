"""Regression: an input of any kind in, a number out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_models.configs.regression import Regression
from keras_models.frontends.normalization import Normalization
from keras_models.tasks.one_input import OneInputTask


class Regressor(OneInputTask):
    """A model that estimates a number of a whole input.

    It learns the number less the mean of the training data, over their deviation.

    Args:
        config: Names of input and value, what an input is, the loss.
        model: Config whose `build(shape, 1)` gives a layer for inputs of the frontend's `shape`. It
            is called by what the frontend's `inputs` gives and a `dropout_seed`, and gives
            `[B, 1]`.
        folder: Holds the statistics of the value, and what the input's frontend knows.
    """

    def __init__(self, config: Regression, model, folder: Path):
        super().__init__(config.input, folder)
        self._config, self._value = config, config.value
        self._normalization = Normalization(config.value, folder)
        self.frontends = {self._input: self._frontend, self._value: self._normalization}
        self.model = model.build(self._frontend.shape, 1)

    def features(self, records):
        return {
            self._input: self._frontend.encode(records[self._input]),
            self._value: self._normalization.normalized(records[self._value]),
        }

    def feasible(self, features):
        """Returns `[B]` bool: whether the input is whole, and its value a finite number."""
        whole = self._frontend.feasible(features[self._input])
        return whole & tf.math.is_finite(features[self._value])

    def losses(self, batch, dropout_seed=None):
        """Returns the squared or the absolute errors, in deviations of the training data."""
        errors = self._estimates(batch, dropout_seed) - batch[self._value]
        return tf.square(errors) if self._config.loss == "squared" else tf.abs(errors)

    def predict(self, batch):
        """Returns the values, `[B]` float32."""
        return (self._normalization.restored(self._estimates(batch)),)

    def _estimates(self, batch, dropout_seed=None):
        """Returns normalized values, `[B]` float32."""
        found = self.model(*self._frontend.inputs(batch), dropout_seed=dropout_seed)
        return tf.cast(tf.squeeze(found, axis=-1), tf.float32)

    def _answer(self, batch):
        (values,) = self.predict(batch)
        return {self._value: values}

    @property
    def output_name(self):
        return self._value

    @property
    def metrics(self):
        return ("mean_absolute_error", "root_mean_squared_error")

    def measure(self, answers, references):
        """Returns the errors in the values' own unit."""
        errors = np.array(answers, np.float64) - np.array(references, np.float64)[:, 0]
        return {
            "mean_absolute_error": float(np.abs(errors).mean()),
            "root_mean_squared_error": float(np.sqrt(np.square(errors).mean())),
        }
