"""Series of numbers to what a model reads: the same code in tf.data and in the served graph."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from keras_models.configs.series import Series
from keras_models.frontends.normalization import Normalization
from keras_models.frontends.padding import LENGTHS, pad


class SeriesFrontend(tf.Module):
    """Normalizes series by what is known of the training data.

    Args:
        config: The form of the series.
        folder: Holds the statistics, as `Series.prepare` left them.

    Attributes:
        shape: Steps, of which there may be any number, and channels.
    """

    def __init__(self, config: Series, folder: Path):
        super().__init__()
        self._config = config
        self._normalization = Normalization(config.field, folder)
        self.shape = config.shape

    @property
    def signature(self) -> dict[str, tf.TensorSpec]:
        """What `served` takes: series, padded by anything, and their lengths."""
        field = self._config.field
        return {
            field: tf.TensorSpec([None, *self._config.record.shape], tf.float32, field),
            field + LENGTHS: tf.TensorSpec([None], tf.int32, field + LENGTHS),
        }

    @property
    def forms(self) -> dict:
        """What is served beside arrays: nothing."""
        return {}

    def parse(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns what `served` takes, for serialized `tf.Example`s `[B]` string.

        Raises:
            InvalidArgumentError: If one has no whole number of steps.
        """
        field, channels = self._config.field, self._config.channels
        numbers = tf.io.parse_example(examples, {field: tf.io.RaggedFeature(tf.float32)})[field]
        lengths = numbers.row_lengths()
        message = f"Each `{field}` must hold {channels} numbers a step. Received, in all:"
        with tf.control_dependencies([_none(lengths % channels != 0, message, lengths)]):
            steps = tf.reshape(numbers.flat_values, [-1, *self._config.record.shape[1:]])
        return pad({field: tf.RaggedTensor.from_row_lengths(steps, lengths // channels)})

    def encode(self, series: tf.Tensor | tf.RaggedTensor) -> tf.RaggedTensor:
        """Returns normalized series `[B, (T), C]` for series `[B, (T)]` or `[B, (T), C]`."""
        if not isinstance(series, tf.RaggedTensor):
            series = tf.RaggedTensor.from_tensor(series)
        steps = tf.reshape(series.flat_values, [-1, self._config.channels])
        return series.with_flat_values(self._normalization.normalized(steps))

    def feasible(self, series: tf.RaggedTensor) -> tf.Tensor:
        """Returns `[B]` bool: whether `encode` gave a step at least, and nothing but numbers."""
        finite = tf.reduce_all(tf.math.is_finite(series.flat_values), axis=-1)
        whole = tf.reduce_all(series.with_flat_values(finite), axis=1)
        return whole & (series.row_lengths() > 0)

    def refuses(self, series: tf.Tensor | tf.RaggedTensor) -> tf.Tensor:
        """Returns `[B]` bool: whether `served` refuses a series."""
        encoded = self.encode(series)
        return ~self.feasible(encoded) | (encoded.row_lengths() > self._config.max_length)

    @property
    def refusal(self) -> str:
        """What is wrong with inputs that `refuses` is true of, in words."""
        return (
            "of no step, with what is no finite number, or longer than --task.input.max_length, "
            f"which is {self._config.max_length}"
        )

    def served(self, inputs) -> dict[str, tf.Tensor]:
        """Returns a batch for `inputs`, of what the `signature` says.

        Raises:
            InvalidArgumentError: In a graph or out of it, if a series is of no step or too long, or
                holds what is no finite number.
        """
        field, limit = self._config.field, self._config.max_length
        series, lengths = inputs[field], inputs[field + LENGTHS]
        bad = (lengths < 1) | (lengths > tf.minimum(limit, tf.shape(series)[1]))
        message = f"Each `{field}` must have 1 to {limit} steps. Received, by number, lengths:"
        with tf.control_dependencies([_none(bad, message, lengths)]):
            encoded = self.encode(tf.RaggedTensor.from_tensor(series, tf.identity(lengths)))
        message = f"Each `{field}` must hold finite numbers alone. Received others, by number:"
        with tf.control_dependencies([_none(~self.feasible(encoded), message)]):
            return pad({field: tf.identity(encoded)})

    def inputs(self, batch) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns what a model takes: series `[B, T, C]`, and their lengths."""
        field, channels = self._config.field, self._config.channels
        return tf.ensure_shape(batch[field], [None, None, channels]), batch[field + LENGTHS]

    def augmented(self, series: tf.Tensor, seed: tf.Tensor) -> tf.Tensor:
        """Returns the series: training sees them as they are."""
        return series


def _none(bad: tf.Tensor, message: str, told: tf.Tensor | None = None) -> tf.Operation:
    """Asserts that nothing in a batch is bad; tells the numbers of what is, and more if given."""
    numbers = tf.cast(tf.where(bad), tf.int32)[:, 0]
    more = [] if told is None else [tf.boolean_mask(told, bad)]
    return tf.debugging.Assert(~tf.reduce_any(bad), [message, numbers, *more])
