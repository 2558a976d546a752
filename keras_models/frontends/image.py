"""Images to pixels: the same code in tf.data and in the served graph."""

from __future__ import annotations

import math
from typing import Literal

import tensorflow as tf

from keras_models.configs.image import Augmentation, Image

# In a batch, how many rows and columns of each padded image are its own, `[B, 2]` int32.
SIZES = "_sizes"
_PNG, _JPEG = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"
# Where a PNG has its width and height, four bytes each, the highest first.
_PNG_HEADER, _PNG_SIDES = 24, 16


class ImageFrontend(tf.Module):
    """Turns PNG, JPEG or arrays of pixels into batches of pixels.

    Args:
        config: The form of the images.

    Attributes:
        shape: Rows, columns and channels of a training image.
    """

    def __init__(self, config: Image):
        super().__init__()
        self._config = config
        self.shape = (config.height, config.width, config.channels)

    @property
    def signature(self) -> dict[str, tf.TensorSpec]:
        """What `served` takes: files."""
        field = self._config.field
        return {field: tf.TensorSpec([None], tf.string, field)}

    @property
    def forms(self):
        """What is served beside files: by signature, what it takes and what makes a batch of it."""
        pixels = tf.TensorSpec([None, None, None, None], tf.uint8, self._config.field)
        return {"pixels": (pixels, self._of_pixels)}

    def parse(self, examples: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns what `served` takes, for serialized `tf.Example`s `[B]` string."""
        feature = {self._config.field: tf.io.FixedLenFeature([], tf.string)}
        return tf.io.parse_example(examples, feature)

    def encode(self, files: tf.Tensor) -> tf.Tensor:
        """Returns the pixels of training images, `[B, *shape]` uint8, for `[B]` string.

        Raises:
            InvalidArgumentError: In a graph or out of it, if one is no PNG or JPEG, or not of the
                size that the configuration says and not to be brought to it.
        """
        files, sizes = self._checked(files)
        if not self._config.resize:
            height, width, _ = self.shape
            message = (
                f"Each training `{self._config.field}` must be of {height} rows and {width} "
                "columns; with resize it is brought to that. Received one of:"
            )
            right = tf.reduce_all(sizes == [[height, width]], axis=1)
            wrong = tf.boolean_mask(sizes, ~right)
            with tf.control_dependencies([_all(right, message, wrong)]):
                files = tf.identity(files)
        return tf.ensure_shape(self._decoded(files, self.shape[:2]), [None, *self.shape])

    def feasible(self, pixels: tf.Tensor) -> tf.Tensor:
        """Returns `[B]` bool: all that `encode` gives can be learnt from."""
        return tf.ones([tf.shape(pixels)[0]], tf.bool)

    def refuses(self, files: tf.Tensor) -> tf.Tensor:
        """Returns `[B]` bool: whether `served` refuses a file for its kind or its size."""
        return ~self._is_served(_sizes(files))

    @property
    def refusal(self) -> str:
        """What is wrong with inputs that `refuses` is true of, in words."""
        return (
            "that are no PNG or JPEG, or of more rows or columns than --task.input.largest, "
            f"which is {self._config.largest}"
        )

    def served(self, inputs) -> dict[str, tf.Tensor]:
        """Returns a batch for `inputs`, of files `[B]` string: pixels, padded, and their sizes.

        Raises:
            InvalidArgumentError: If one is no PNG or JPEG, is broken, or too large.
        """
        files, sizes = self._checked(inputs[self._config.field])
        if self._config.resize:
            return {self._config.field: self._decoded(files, self.shape[:2])}
        largest = tf.reduce_max(tf.concat([sizes, [[1, 1]]], axis=0), axis=0)
        return {
            self._config.field: self._decoded(files, largest),
            self._config.field + SIZES: sizes,
        }

    def inputs(self, batch) -> tuple[tf.Tensor, tf.Tensor | None]:
        """Returns what a model takes: values in 0 … 1, `[B, H, W, C]`, and their sizes, if told."""
        pixels = tf.cast(batch[self._config.field], tf.float32)
        return pixels / 255.0, batch.get(self._config.field + SIZES)

    def augmented(
        self,
        pixels: tf.Tensor,
        seed: tf.Tensor,
        interpolation: Literal["BILINEAR", "NEAREST"] = "BILINEAR",
    ) -> tf.Tensor:
        """Returns images `[B, H, W, C]` uint8, each changed by chance; what comes in is 0.

        Args:
            pixels: The images.
            seed: `[2]` int32. The same one changes other images alike.
            interpolation: Whether a pixel is a mean of those that were near its place, or one.
        """
        how = self._config.augmentation
        if how == Augmentation():
            return pixels
        changed = tf.raw_ops.ImageProjectiveTransformV3(
            images=tf.cast(pixels, tf.float32),
            transforms=_transforms(how, tf.shape(pixels)[0], self.shape[:2], seed),
            output_shape=self.shape[:2],
            fill_value=0.0,
            interpolation=interpolation,
        )
        return tf.cast(tf.round(changed), tf.uint8)

    def _of_pixels(self, pixels: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns a batch for `inputs`, of arrays `[B, H, W, C]` uint8."""
        channels, shape = self._config.channels, tf.shape(pixels)[1:]
        message = (
            f"`{self._config.field}` must have 1 to {self._config.largest} rows and columns, and "
            f"{channels} as its last size, of channels. Received:"
        )
        right = self._is_served(shape[:2]) & (shape[2] == channels)
        with tf.control_dependencies([_all(right, message, shape)]):
            pixels = tf.ensure_shape(tf.identity(pixels), [None, None, None, channels])
        if self._config.resize:
            pixels = _resized(pixels, self.shape[:2])
        return {self._config.field: pixels}

    def _is_served(self, sizes: tf.Tensor) -> tf.Tensor:
        return tf.reduce_all((sizes >= 1) & (sizes <= self._config.largest), axis=-1)

    def _checked(self, files: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns files that may be decoded, and the sizes `[B, 2]` of the images."""
        sizes = _sizes(files)
        message = (
            f"Each `{self._config.field}` must be a PNG or JPEG of 1 to {self._config.largest} "
            "rows and columns. Received, by number in the batch, rows and columns (0 if neither):"
        )
        served = self._is_served(sizes)
        numbers = tf.cast(tf.where(~served), tf.int32)
        wrong = tf.concat([numbers, tf.boolean_mask(sizes, ~served)], axis=1)
        with tf.control_dependencies([_all(served, message, wrong)]):
            return tf.identity(files), sizes

    def _decoded(self, files: tf.Tensor, size) -> tf.Tensor:
        """Returns pixels `[B, H, W, C]` uint8, each brought to a size, or padded to it by zeros."""
        return _decoded(files, tf.stack(size), self._config.channels, self._config.resize)


# In a graph even where the caller is not: outside of one, each image would take milliseconds.
@tf.function(reduce_retracing=True)
def _decoded(files: tf.Tensor, size: tf.Tensor, channels: int, resize: bool) -> tf.Tensor:
    def decode(file):
        pixels = tf.io.decode_image(file, channels, expand_animations=False)
        pixels = tf.ensure_shape(pixels, [None, None, channels])
        if resize:
            return _resized(pixels, size)
        missing = size - tf.shape(pixels)[:2]
        return tf.pad(pixels, [[0, missing[0]], [0, missing[1]], [0, 0]])

    spec = tf.TensorSpec([None, None, channels], tf.uint8)
    return tf.cond(  # of no images none has a size to make a batch of
        tf.size(files) > 0,
        lambda: tf.map_fn(decode, files, fn_output_signature=spec),
        lambda: tf.zeros([0, size[0], size[1], channels], tf.uint8),
    )


@tf.function(reduce_retracing=True)
def _sizes(files: tf.Tensor) -> tf.Tensor:
    """Returns rows and columns of PNG and JPEG files, `[B, 2]` int32, from their first bytes.

    Those of anything else are 0.
    """
    heads = tf.strings.substr(files + "\0" * _PNG_HEADER, 0, _PNG_HEADER)
    is_png = tf.strings.substr(heads, 0, len(_PNG)) == _PNG
    is_jpeg = tf.strings.substr(heads, 0, len(_JPEG)) == _JPEG
    sides = tf.strings.substr(heads, _PNG_SIDES, _PNG_HEADER - _PNG_SIDES)
    sides = tf.reshape(tf.io.decode_raw(sides, tf.int32, little_endian=False), [-1, 2])
    of_png = tf.where(is_png[:, tf.newaxis], sides[:, ::-1], 0)

    def size(row):
        file, of_png, is_jpeg = row
        return tf.cond(is_jpeg, lambda: tf.image.extract_jpeg_shape(file)[:2], lambda: of_png)

    spec = tf.TensorSpec([2], tf.int32)
    return tf.map_fn(size, (files, of_png, is_jpeg), fn_output_signature=spec)


def _resized(pixels: tf.Tensor, size) -> tf.Tensor:
    """Returns images `[…, H, W, C]` uint8 of another size."""
    resized = tf.image.resize(pixels, size, antialias=True)
    return tf.cast(tf.clip_by_value(tf.round(resized), 0, 255), tf.uint8)


def _all(true: tf.Tensor, message: str, values: tf.Tensor) -> tf.Operation:
    return tf.debugging.Assert(tf.reduce_all(true), [message, values])


def _transforms(how: Augmentation, count: tf.Tensor, size, seed: tf.Tensor) -> tf.Tensor:
    """Returns for each image where a pixel is taken from, as `[B, 8]` projective coefficients.

    The place is A (x, y) + shift, both measured from the image's middle, where A shears, scales
    each side, turns and perhaps flips.
    """
    seeds = iter(tf.unstack(tf.random.experimental.stateless_split(seed, 7)))

    def within(limit: float) -> tf.Tensor:
        return tf.random.stateless_uniform([count], next(seeds), -limit, limit)

    angle, shear = within(math.radians(how.rotation)), within(how.shear)
    across, down = 1 + within(how.scale), 1 + within(how.scale)
    turn = within(1.0) < 0
    across = tf.where(turn, -across, across) if how.flip else across
    height, width = size
    cos, sin = tf.cos(angle), tf.sin(angle)
    a, b = across * cos, across * (shear * cos - sin)
    c, d = down * sin, down * (shear * sin + cos)
    x, y = (width - 1) / 2, (height - 1) / 2
    from_x = x + within(how.shift * width) - a * x - b * y
    from_y = y + within(how.shift * height) - c * x - d * y
    zero = tf.zeros_like(a)
    return tf.stack([a, b, from_x, c, d, from_y, zero, zero], axis=1)
