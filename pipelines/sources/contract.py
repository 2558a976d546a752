"""Whether what a source has is what a task asks for, and its conversion."""

from __future__ import annotations

import tensorflow as tf

from keras_models.configs.records import Field
from pipelines.datasets.splits import DataError

# Records are handed on some together: frontends are faster on many than on one.
RECORDS_TOGETHER = 256


def require(field: Field, dtype: tf.DType, shape: tf.TensorShape, source: str) -> None:
    """Raises unless a source's feature can be taken for a field.

    Raises:
        DataError: If one is a string and the other is not, if numbers would lose their fractions,
            or if no value is of both shapes.
    """
    wanted = tf.as_dtype(field.dtype)
    alike = (wanted == tf.string) == (dtype == tf.string)
    whole = wanted.is_floating or not dtype.is_floating
    if not (alike and whole and shape.is_compatible_with(field.shape)):
        received = "any shape" if shape.rank is None else f"shape {_written(shape)}"
        raise DataError(
            f"The field `{field.name}` must be {field.dtype} of shape {_written(field.shape)}. "
            f"Received: {dtype.name} of {received} from {source}."
        )


def convert(value: tf.Tensor, field: Field) -> tf.Tensor:
    """Returns a record's value in the dtype and the static shape that its field declares."""
    if field.dtype != "string":
        value = tf.cast(value, field.dtype)
    return tf.ensure_shape(value, field.shape)


def decode(contents: tf.Tensor, field: Field) -> tf.Tensor:
    """Returns what a file holds, a scalar string, as its field declares it.

    A string is the file itself; one axis of numbers are the samples of a WAV file, of one channel,
    two axes those of several; three axes are the pixels of an image.
    """
    if field.dtype == "string":
        return contents
    if len(field.shape) == 3:
        pixels = tf.io.decode_image(contents, field.shape[2] or 0, expand_animations=False)
        return convert(pixels, field)
    samples, _ = tf.audio.decode_wav(contents)
    return convert(samples[:, 0] if len(field.shape) == 1 else samples, field)


def together(records: tf.data.Dataset) -> tf.data.Dataset:
    """Returns records, some together; what differs in size is ragged."""
    return records.ragged_batch(RECORDS_TOGETHER)


def _written(shape) -> str:
    return str([None if size is None else int(size) for size in tf.TensorShape(shape)])
