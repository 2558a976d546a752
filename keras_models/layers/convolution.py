"""Convolution, pooling and normalisation of series, images and volumes: the rank is a parameter.

Inputs are `[B, …, C]`, with one axis or several in the middle, all of which a layer treats alike.
Examples of different sizes in one batch are padded at the ends of these axes, and travel with
their sizes, `[B, axes]`. Every place of an output depends on the beginning of an axis alone, never
on its padded end, so that an example has in a batch what it has by itself.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import Literal

import keras
import tensorflow as tf

Padding = Literal["valid", "same", "full"]
Sharing = Literal["shared", "tiled", "local"]


def output_size(size, kernel: int, stride: int = 1, dilation: int = 1, padding: Padding = "same"):
    """Returns how many places a convolution has along an axis, none where it does not fit.

    Args:
        size: That of the input, an integer or a tensor of integers.
        kernel: Number of weights.
        stride: Steps between two places.
        dilation: Steps between two weights.
        padding: As `Convolution` has it.
    """
    reach = (kernel - 1) * dilation
    places = (size + sum(_margins(reach, padding)) - reach - 1) // stride + 1
    return tf.maximum(places, 0) if isinstance(places, tf.Tensor) else max(places, 0)


def _margins(reach: int, padding: Padding) -> tuple[int, int]:
    """Returns the zeros before and after an axis."""
    same = (reach // 2, reach - reach // 2)
    return {"valid": (0, 0), "same": same, "full": (reach, reach)}[padding]


def size_mask(sizes: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """Returns 1 within each example's size and 0 in its padding, `[B, …, 1]`.

    Args:
        sizes: `[B, axes]` int.
        values: `[B, …, C]`, whose padding it is.
    """
    axes = range(1, values.shape.rank - 1)
    mask = tf.ones([1] * values.shape.rank, values.dtype)
    for axis in axes:
        there = tf.sequence_mask(sizes[:, axis - 1], tf.shape(values)[axis], values.dtype)
        mask *= tf.reshape(there, [-1, *(tf.shape(there)[1] if i == axis else 1 for i in axes), 1])
    return mask


class Convolution(keras.layers.Layer):
    """Convolution along all the axes between the first and the last.

        y(p) = Σ_o x(stride p + dilation o - margin) W(p, o) + b(p)

    for places `p` and the kernel's offsets `o`, both with one coordinate an axis. (It is what is
    called so everywhere, a correlation.) Outside of its axes x is 0. The margin is 0 where the
    padding is `valid`, so that nothing from outside is met; the kernel's reach
    `r = dilation (kernel - 1)` where it is `full`, so that everything is met that holds anything
    from inside; `r // 2` where it is `same`, so that a stride of 1 keeps the size.

    Weights are the same at every place where they are `shared`; every `tile` places along each
    axis where they are `tiled` (Le et al. 2010, "Tiled convolutional neural networks"); nowhere
    the same where they are `local`, which takes inputs of one size alone.

    Args:
        filters: Number of output channels.
        kernel: Number of weights along each axis.
        stride: Steps between two places, along each axis.
        dilation: Steps between two weights.
        padding: What is 0 beside the input.
        sharing: Which places have the same weights.
        tile: Places, along each axis, after which tiled weights come again.
    """

    def __init__(
        self,
        filters: int,
        kernel: int,
        stride: int = 1,
        dilation: int = 1,
        padding: Padding = "same",
        sharing: Sharing = "shared",
        tile: int = 2,
    ):
        super().__init__()
        self._filters, self._kernel = filters, kernel
        self._stride, self._dilation, self._padding = stride, dilation, padding
        self._sharing, self._tile = sharing, tile

    def build(self, shape):
        """Makes the weights, for inputs of this shape, `[None, …, C]`."""
        axes, channels = shape[1:-1], shape[-1]
        if self._sharing == "local" and None in axes:
            raise ValueError(f"Local weights must be for inputs of one size. Received: {shape}")
        self._rank = len(axes)
        self._tiles = {
            "shared": (),
            "tiled": (self._tile,) * self._rank,
            "local": self.sizes(axes),
        }[self._sharing]
        kernel = [*self._tiles, *[self._kernel] * self._rank, channels, self._filters]
        # The initializer takes the tiles for inputs: their number makes up for it.
        he = keras.initializers.VarianceScaling(2.0 * math.prod(self._tiles), "fan_in")
        self._weight = self.add_weight(shape=kernel, initializer=he, name="kernel")
        bias = [*self._tiles, self._filters]
        self._bias = self.add_weight(shape=bias, initializer="zeros", name="bias")
        self.built = True

    def size(self, size):
        """Returns the size of an output's axis for that of the input's: integers, or tensors."""
        return output_size(size, self._kernel, self._stride, self._dilation, self._padding)

    def sizes(self, axes: Sequence[int | None]) -> tuple[int | None, ...]:
        """Returns the sizes of an output's axes, None where the input's are None."""
        return tuple(None if axis is None else self.size(axis) for axis in axes)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns `[B, …, filters]` for `[B, …, C]`."""
        kernel, bias = (tf.convert_to_tensor(each) for each in (self._weight, self._bias))
        if self._sharing == "shared" and self._dilation == 1:
            if self._padding == "same" and self._stride == 1:
                outputs = tf.nn.convolution(inputs, kernel, padding="SAME")
            else:
                outputs = tf.nn.convolution(self._widened(inputs), kernel, self._stride, "VALID")
            # Of no examples, oneDNN (TensorFlow 2.21) returns as many channels as came in.
            shape = [*tf.unstack(tf.shape(outputs)[:-1], self._rank + 1), self._filters]
            return tf.reshape(outputs, shape) + bias
        patches = self._patches(self._widened(inputs))
        kernel = tf.reshape(kernel, [*self._tiles, patches.shape[-1], self._filters])
        if self._sharing == "shared":
            return tf.tensordot(patches, kernel, 1) + bias
        return self._unshared(patches, kernel, bias)

    def _widened(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns inputs with the zeros beside them."""
        margins = _margins((self._kernel - 1) * self._dilation, self._padding)
        return tf.pad(inputs, [(0, 0), *[margins] * self._rank, (0, 0)])

    def _patches(self, inputs: tf.Tensor) -> tf.Tensor:
        """Returns what each place sees, `[B, …, offsets C]`."""
        reach = (self._kernel - 1) * self._dilation
        ends = tf.unstack(tf.maximum(tf.shape(inputs)[1:-1] - reach, 0), self._rank)
        seen = []
        for offset in itertools.product(range(0, reach + 1, self._dilation), repeat=self._rank):
            places = (slice(o, o + e, self._stride) for o, e in zip(offset, ends, strict=True))
            seen.append(inputs[(slice(None), *places)])
        return tf.concat(seen, axis=-1)

    def _unshared(self, patches: tf.Tensor, kernel: tf.Tensor, bias: tf.Tensor) -> tf.Tensor:
        """Returns the outputs where the weights of a place are those of its place in a tile."""
        sizes = tf.unstack(tf.shape(patches)[1:-1], self._rank)
        counts = [-(-size // tile) for size, tile in zip(sizes, self._tiles, strict=True)]
        covered = [count * tile for count, tile in zip(counts, self._tiles, strict=True)]
        missing = [(0, c - size) for c, size in zip(covered, sizes, strict=True)]
        patches = tf.pad(patches, [(0, 0), *missing, (0, 0)])
        parts = [part for pair in zip(counts, self._tiles, strict=True) for part in pair]
        patches = tf.reshape(patches, [-1, *parts, kernel.shape[-2]])
        tiles, places = "xyz"[: self._rank], "pxqyrz"[: 2 * self._rank]
        outputs = tf.einsum(f"b{places}k,{tiles}kf->b{places}f", patches, kernel)
        outputs = tf.reshape(outputs, [-1, *covered, self._filters]) + tf.tile(bias, [*counts, 1])
        return outputs[(slice(None), *(slice(size) for size in sizes))]


def pooled_size(size, window: int):
    """Returns how many windows an axis has, an integer or a tensor of integers."""
    return -(-size // window)


def pool(
    inputs: tf.Tensor,
    window: int,
    kind: Literal["max", "mean"],
    mask: tf.Tensor | None = None,
) -> tf.Tensor:
    """Returns the largest or the mean value of each window, `[B, …, C]`, along all middle axes.

    Windows lie side by side from the beginning of an axis on, `pooled_size` of them. What
    is past its end, or an example's own, belongs to none.

    Args:
        inputs: `[B, …, C]` float.
        window: Size along each axis.
        kind: Which value.
        mask: `[B, …, 1]`, 0 where an example has ended; None: nowhere.
    """
    if mask is None:
        mask = tf.ones_like(inputs[..., :1])
    rank = inputs.shape.rank - 2
    sizes = tf.unstack(tf.shape(inputs)[1:-1], rank)
    margins = [(0, 0), *((0, -size % window) for size in sizes), (0, 0)]

    def pooled(values: tf.Tensor, kind: str, outside: tf.Tensor) -> tf.Tensor:
        values = tf.pad(values, margins, constant_values=outside)
        return tf.nn.pool(values, [window] * rank, kind, [window] * rank)

    mask = tf.cast(mask, inputs.dtype)
    if kind == "max":
        lowest = tf.constant(inputs.dtype.min, inputs.dtype)
        return pooled(tf.where(mask > 0, inputs, lowest), "MAX", lowest)
    zero = tf.zeros([], inputs.dtype)
    share = pooled(mask, "AVG", zero)
    return tf.math.divide_no_nan(pooled(inputs * mask, "AVG", zero), share)


def global_mean(inputs: tf.Tensor, mask: tf.Tensor | None = None) -> tf.Tensor:
    """Returns the mean over all places of each example, `[B, C]` for `[B, …, C]`."""
    axes = range(1, inputs.shape.rank - 1)
    if mask is None:
        return tf.reduce_mean(inputs, axes)
    return tf.math.divide_no_nan(tf.reduce_sum(inputs * mask, axes), tf.reduce_sum(mask, axes))


class GroupNormalization(keras.layers.Layer):
    """Each example's groups of channels, brought to mean 0 and variance 1; then scaled, shifted.

    (Wu and He 2018, arXiv 1803.08494; with one group a layer normalisation.) The mean is over all
    places of the one example, its padding apart. So an example's result does not depend on the
    others of its batch, as it would with batch normalisation: neither in training, where replicas
    would have to exchange statistics at every layer, nor by averages that serving takes instead.

    Args:
        groups: Number of groups, which divides the number of channels.
    """

    def __init__(self, groups: int, epsilon: float = 1e-5):
        super().__init__()
        self._groups, self._epsilon = groups, epsilon

    def build(self, shape):
        """Makes the weights, for inputs of this shape, `[None, …, C]`."""
        if shape[-1] % self._groups:
            raise ValueError(
                f"Channels must be a multiple of the {self._groups} groups. Received: {shape[-1]}"
            )
        self._scale = self.add_weight(shape=[shape[-1]], initializer="ones", name="scale")
        self._shift = self.add_weight(shape=[shape[-1]], initializer="zeros", name="shift")
        self.built = True

    def call(self, inputs: tf.Tensor, inside: tf.Tensor | None = None) -> tf.Tensor:
        """Returns `[B, …, C]`, for the same with a mask `[B, …, 1]`, of which 0 is padding."""
        values = tf.cast(inputs, tf.float32)
        mean = self._spread(global_mean(values, inside), values)
        variance = self._spread(global_mean(tf.square(values - mean), inside), values)
        scale, shift = (tf.cast(each, tf.float32) for each in (self._scale, self._shift))
        factor = scale * tf.math.rsqrt(variance + self._epsilon)
        return tf.cast((values - mean) * factor + shift, inputs.dtype)

    def _spread(self, means: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
        """Returns the mean of each channel's group, `[B, 1 …, C]`, for those of channels."""
        channels = means.shape[-1]
        grouped = tf.reshape(means, [-1, self._groups, channels // self._groups])
        spread = tf.zeros_like(grouped) + tf.reduce_mean(grouped, axis=2, keepdims=True)
        return tf.reshape(spread, [-1, *[1] * (values.shape.rank - 2), channels])


def upsampled(inputs: tf.Tensor, factor: int, size: Sequence) -> tf.Tensor:
    """Returns `[B, *size, C]`: every place `factor` times along each axis, cut to a size."""
    for axis in range(1, inputs.shape.rank - 1):
        inputs = tf.repeat(inputs, factor, axis=axis)
    return inputs[(slice(None), *(slice(each) for each in size))]
