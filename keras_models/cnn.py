"""Convolutional networks over series, images and volumes, and a network without convolutions."""

from __future__ import annotations

import functools
import itertools
import math
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_models.configs.cnn import CNNConfig, MLPConfig
from keras_models.layers.convolution import (
    Convolution,
    GroupNormalization,
    global_mean,
    pool,
    pooled_size,
    size_mask,
    upsampled,
)
from keras_models.layers.dropout import dropout, fold_in

# How many times smaller a stage is than what is before it.
SHRINKAGE = 2


class Features(NamedTuple):
    """What a network knows of a batch of inputs."""

    values: tf.Tensor  # [B, …, C]
    sizes: tf.Tensor | None = None  # [B, axes] int32, how much of each axis is there; None: all

    @property
    def mask(self) -> tf.Tensor | None:
        """`[B, …, 1]`, 0 in the padding; None: there is none."""
        return None if self.sizes is None else size_mask(self.sizes, self.values)

    def masked(self) -> tf.Tensor:
        """Returns the values, and 0 in the padding."""
        return self.values if self.sizes is None else tf.where(self.mask > 0, self.values, 0)


class CNN(keras.layers.Layer):
    """Scores of classes for a whole input: features, their mean over all places, a projection.

    Inputs may be of any size, unless weights are local.

    Args:
        config: Sizes.
        shape: That of a training input, `(…, C)`.
        classes: Number of classes.
    """

    def __init__(self, config: CNNConfig, shape, classes: int):
        super().__init__()
        self._dropout = config.dropout
        self._trunk = Trunk(config, shape)
        self._activation = Activation(config, self._trunk.channels[-1])
        self._scores = keras.layers.Dense(classes, dtype="float32")
        self._scores.build((None, self._trunk.channels[-1]))
        self.built = True

    def call(self, inputs, sizes=None, dropout_seed=None) -> tf.Tensor:
        """Returns scores `[B, classes]`.

        Args:
            inputs: `[B, …, C]`, padded at the ends of its axes.
            sizes: `[B, axes]`, or `[B]` of series, int32; None: nothing is padding.
            dropout_seed: `[2]` int32, a seed for this step; None leaves dropout out.
        """
        features = self._activation(self._trunk(inputs, sizes)[-1])
        mean = global_mean(features.values, features.mask)
        return self._scores(dropout(mean, self._dropout, dropout_seed))


class DenseCNN(keras.layers.Layer):
    """Scores of classes for every place of an input.

    From the last resolution on, features are brought to the size of the one before, put beside
    those, and convolved (Ronneberger et al. 2015, arXiv 1505.04597), up to the first.

    Args:
        config: Sizes.
        shape: That of a training input, `(…, C)`.
        classes: Number of classes.
    """

    def __init__(self, config: CNNConfig, shape, classes: int):
        super().__init__()
        if config.padding != "same":
            raise ValueError(
                "`padding` must be 'same' where every place of an input is to have its scores. "
                f"Received: {config.padding!r}"
            )
        self._dropout = config.dropout
        self._trunk = Trunk(config, shape)
        self._steps = []
        for level in reversed(range(config.stages)):
            fine, coarse = self._trunk.channels[level : level + 2]
            both = (None, *self._trunk.axes[level], fine + coarse)
            step = Activation(config, fine + coarse), _convolution(config, both, fine)
            self._steps.append(step)
        self._activation = Activation(config, config.channels)
        self._scores = keras.layers.Dense(classes, dtype="float32")
        self._scores.build((None, config.channels))
        self.built = True

    def call(self, inputs, sizes=None, dropout_seed=None) -> tf.Tensor:
        """Returns scores `[B, …, classes]`. Takes what `CNN` does."""
        *others, features = self._trunk(inputs, sizes)
        for finer, (activation, convolution) in zip(reversed(others), self._steps, strict=True):
            size = tf.unstack(tf.shape(finer.values)[1:-1], finer.values.shape.rank - 2)
            coarser = upsampled(features.values, SHRINKAGE, size)
            both = finer._replace(values=tf.concat([coarser, finer.values], axis=-1))
            features = _convolved(activation(both), convolution)
        values = self._activation(features).values
        return self._scores(dropout(values, self._dropout, dropout_seed))


class Trunk(keras.layers.Layer):
    """Features of inputs, at one resolution after the other.

    Args:
        config: Sizes.
        shape: That of a training input, `(…, C)`.

    Attributes:
        channels: Those of the features, by resolution.
        axes: Sizes of their axes, for inputs of that shape.
    """

    def __init__(self, config: CNNConfig, shape):
        super().__init__()
        self._shape, self._local = tuple(shape), config.sharing == "local"
        self.channels = [config.channels * 2**stage for stage in range(config.stages + 1)]
        self._first = _convolution(config, (None, *shape), config.channels)
        self.axes = [self._first.sizes(shape[:-1])]
        self._stages = []
        for before, channels in itertools.pairwise(self.channels):
            stage = [Block(config, (None, *self.axes[-1], before), channels, halves=True)]
            for _ in range(config.blocks - 1):
                stage.append(Block(config, (None, *stage[-1].axes, channels), channels))
            self.axes.append(stage[-1].axes)
            self._stages.append(stage)
        self._least = self._least_size()
        self.built = True

    def call(self, inputs, sizes=None) -> list[Features]:
        """Returns features by resolution. Takes inputs and sizes as `CNN` does."""
        if sizes is not None and sizes.shape.rank == 1:
            sizes = sizes[:, tf.newaxis]
        features = Features(*self._checked(inputs, sizes))
        found = [_convolved(features, self._first)]
        for stage in self._stages:
            found.append(functools.reduce(lambda each, block: block(each), stage, found[-1]))
        return found

    def _checked(self, inputs, sizes):
        if self._local:
            return inputs_of_size(inputs, sizes, self._shape[:-1]), None
        asked = tf.shape(inputs)[1:-1] if sizes is None else sizes
        message = f"Inputs must have at least {self._least} places along each axis. Received:"
        enough = tf.debugging.Assert(tf.reduce_all(asked >= self._least), [message, asked])
        with tf.control_dependencies([enough]):
            return tf.identity(inputs), sizes

    def _least_size(self) -> int:
        """Returns the smallest size of an axis that leaves something at the last resolution."""

        def last(size: int) -> int:
            blocks = itertools.chain.from_iterable(self._stages)
            return functools.reduce(lambda n, block: block.size(n), blocks, self._first.size(size))

        least = next(size for size in itertools.count(1) if last(size) > 0)
        if any(axis is not None and axis < least for axis in self._shape[:-1]):
            raise ValueError(
                f"Inputs of such a network must have at least {least} places along each axis. "
                f"Received: {self._shape[:-1]}"
            )
        return least


class Block(keras.layers.Layer):
    """Normalisation, rectifier, convolution; what came in is added (He et al. 2016, 1603.05027).

    Args:
        config: Sizes.
        shape: That of what comes in, `(None, …, C)`.
        channels: Of what goes out.
        halves: Whether it makes the size half of what it was, and then adds nothing.

    Attributes:
        axes: Sizes of the axes of what goes out, for those of `shape`.
    """

    def __init__(self, config: CNNConfig, shape, channels: int, halves: bool = False):
        super().__init__()
        self._pooling = config.pooling if halves else None
        self._adds = config.residual and not halves
        self._activation = Activation(config, shape[-1])
        stride = SHRINKAGE if self._pooling == "stride" else 1
        pooled = (None, *map(self._pooled, shape[1:-1]), shape[-1])
        self._convolution = _convolution(config, pooled, channels, stride, config.dilation)
        self.axes = self._convolution.sizes(pooled[1:-1])
        self.built = True

    def size(self, size: int) -> int:
        """Returns the size of an axis of what goes out."""
        return self._convolution.size(self._pooled(size))

    def call(self, features: Features) -> Features:
        """Returns the next features."""
        active = self._activation(features)
        if self._pooling in ("max", "mean"):
            values = pool(active.values, SHRINKAGE, self._pooling, active.mask)
            sizes = None if active.sizes is None else self._pooled(active.sizes)
            active = Features(values, sizes)
        found = _convolved(active, self._convolution)
        return found._replace(values=found.values + features.values) if self._adds else found

    def _pooled(self, size):
        pools = self._pooling in ("max", "mean") and size is not None
        return pooled_size(size, SHRINKAGE) if pools else size


class Activation(keras.layers.Layer):
    """Group normalisation, if it is wanted, and a rectifier.

    Args:
        config: Says so.
        channels: Number of channels.
    """

    def __init__(self, config: CNNConfig, channels: int):
        super().__init__()
        self._normalization = None
        if config.normalization == "group":
            self._normalization = GroupNormalization(channels // config.group)
            self._normalization.build((None, channels))
        self.built = True

    def call(self, features: Features) -> Features:
        """Returns the features' positive parts."""
        values = features.values
        if self._normalization is not None:
            values = self._normalization(values, features.mask)
        return features._replace(values=tf.nn.relu(values))


class MLP(keras.layers.Layer):
    """Scores of classes by layers that see all of an input at once, in no order.

    Args:
        config: Sizes.
        shape: That of every input, `(…, C)`.
        classes: Number of classes.
    """

    def __init__(self, config: MLPConfig, shape, classes: int):
        super().__init__()
        if None in shape:
            raise ValueError(f"Inputs of an MLP must all be of one size. Received: {shape}")
        self._shape, self._dropout = tuple(shape), config.dropout
        widths = [math.prod(shape), *[config.units] * config.layers]
        self._hidden = [keras.layers.Dense(config.units, "relu") for _ in widths[1:]]
        self._scores = keras.layers.Dense(classes, dtype="float32")
        for layer, width in zip([*self._hidden, self._scores], widths, strict=True):
            layer.build((None, width))
        self.built = True

    def call(self, inputs, sizes=None, dropout_seed=None) -> tf.Tensor:
        """Returns scores `[B, classes]`. Takes what `CNN` does."""
        inputs = inputs_of_size(inputs, sizes, self._shape[:-1])
        values = tf.reshape(inputs, [-1, math.prod(self._shape)])
        for number, layer in enumerate(self._hidden):
            values = dropout(layer(values), self._dropout, fold_in(dropout_seed, number))
        return self._scores(values)


def inputs_of_size(inputs: tf.Tensor, sizes: tf.Tensor | None, axes) -> tf.Tensor:
    """Returns inputs `[B, …, C]`, all of which must be of the same size."""
    asked = tf.shape(inputs)[1:-1] if sizes is None else sizes
    message = f"Inputs of this model must be of size {list(axes)}. Received:"
    right = tf.debugging.Assert(tf.reduce_all(asked == tf.constant(axes)), [message, asked])
    with tf.control_dependencies([right]):
        return tf.ensure_shape(tf.identity(inputs), [None, *axes, inputs.shape[-1]])


def _convolution(config: CNNConfig, shape, channels: int, stride: int = 1, dilation: int = 1):
    """Returns a convolution for inputs of this shape, `(None, …, C)`."""
    convolution = Convolution(
        channels,
        config.kernel,
        stride,
        dilation,
        padding=config.padding,
        sharing=config.sharing,
        tile=config.tile,
    )
    convolution.build(shape)
    return convolution


def _convolved(features: Features, convolution: Convolution) -> Features:
    """Returns what a convolution makes of features; of padding it sees no more than zeros."""
    sizes = None if features.sizes is None else convolution.size(features.sizes)
    return Features(convolution(features.masked()), sizes)
