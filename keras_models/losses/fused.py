"""The transducer loss together with its joint network, in tiles of the lattice."""

import tensorflow as tf

from keras_models import BLANK
from keras_models.losses.arcs import (
    Arcs,
    Pulls,
    check_arguments,
    gradient_by_logits,
    once,
    pulls_of_arcs,
    score_arcs,
    symbols_of_arcs,
)
from keras_models.losses.lattice import transducer_lattice

# Scores in a tile, so that they stay in the cache, and the fewest nodes that keep its products
# products of matrices.
_TILE_SCORES = 2**20
_TILE_NODES = (256, 1024)

# An occupancy so small that all nodes of a lattice together are lost in rounding.
_NO_OCCUPANCY = 2.0**-40


def fused_transducer_loss(
    encoding,
    prediction,
    kernel,
    bias,
    labels,
    logit_lengths,
    label_lengths,
    blank=BLANK,
    *,
    monotonic=False,
    factored_blank=False,
    fastemit=0.0,
    tile=None,
):
    """Returns `transducer_loss` of the joint scores `tanh(encoding + prediction) kernel + bias`.

    Neither the hidden layer nor the scores of the whole lattice are ever held. One tile of it
    after another, some frames of an example by some of its labels, has its scores computed and
    reduced to the scores of its arcs; on the way back they are computed once more, and then
    reduced to gradients. Memory beyond that of the arguments and gradients is some `[B, T, U + 1]`
    and one tile. Tiles wholly past the lengths are not computed at all, and on the way back
    neither are those that no path goes through: that have nowhere an occupancy above 2^−40.

    Args:
        encoding: `[B, T, D]` floats, the encoder's output as projected for the joint.
        prediction: `[B, U + 1, D]` floats, the prediction network's output, likewise.
        kernel: `[D, V]` floats.
        bias: `[V]` floats.
        labels: `[B, U]` integers in `[0, V)`, none of them `blank`.
        logit_lengths: `[B]` integers, frames of each example, in `[0, T]`.
        label_lengths: `[B]` integers, labels of each example, in `[0, U]`.
        blank: the symbol that consumes a frame, in `[0, V)`.
        monotonic: as for `transducer_loss`.
        factored_blank: as for `transducer_loss`.
        fastemit: as for `transducer_loss`.
        tile: how many frames and how many columns of `[T, U + 1]` a tile has, two integers; by
            default as many as keep its scores in a processor's cache.

    Returns:
        `[B]` float32, in nats, as `transducer_loss` does; so are padding and dtypes.

    Raises:
        ValueError: static shapes, dtypes or `blank` do not fit together, or `tile` is empty.
    """
    names = {"encoding": "BTD", "prediction": "BWD", "kernel": "DV", "bias": "V"}
    joint = [tf.convert_to_tensor(x) for x in (encoding, prediction, kernel, bias)]
    labels = tf.convert_to_tensor(labels)
    logit_lengths = tf.convert_to_tensor(logit_lengths)
    label_lengths = tf.convert_to_tensor(label_lengths)
    named = {name: (x, names[name]) for name, x in zip(names, joint, strict=True)}
    check_arguments(named, labels, logit_lengths, label_lengths, blank)
    if tile is None:
        tile = _tile_for(joint[0].shape[1], joint[1].shape[1], joint[2].shape[1])
    if min(tile) < 1:
        raise ValueError(f"`tile` must be two positive integers. Received: tile={tile}")

    @tf.custom_gradient
    def losses_of(*joint):
        lattice_of_tiles = _Tiles(
            *joint, labels, logit_lengths, label_lengths, blank, factored_blank, tile
        )
        arcs = lattice_of_tiles.arcs()
        lattice = transducer_lattice(
            arcs.blanks, arcs.labels, logit_lengths, label_lengths, monotonic
        )

        def gradient(upstream):
            occupied = lattice.blank_occupancies + lattice.label_occupancies
            pulls = pulls_of_arcs(lattice, arcs, upstream, factored_blank, fastemit)
            gradients = lattice_of_tiles.gradients(arcs, pulls, occupied)
            return [
                once(tf.cast(by, x.dtype), "fused_transducer_loss")
                for by, x in zip(gradients, joint, strict=True)
            ]

        return lattice.losses, gradient

    return losses_of(*joint)


def _tile_for(frames, width, size):
    """Returns the frames and columns of a tile, for static sizes that may be None."""
    least, most = _TILE_NODES
    nodes = max(least, min(most, _TILE_SCORES // (size or _TILE_SCORES)))
    columns = _share(width, 16)
    return _share(frames, max(1, nodes // columns)), columns


def _share(whole, most):
    """Returns the size of the fewest equal parts that are no larger than `most`."""
    return -(-whole // -(-whole // most)) if whole else most


class _Tiles:
    """The lattice in tiles of C frames by E columns, and the joint that gives their scores.

    Encodings come as blocks of C frames and predictions as blocks of E columns, all examples' one
    after another. A tile is a pair of such blocks of one example, counted column by column within
    frame by frame.
    """

    def __init__(
        self,
        encoding,
        prediction,
        kernel,
        bias,
        labels,
        logit_lengths,
        label_lengths,
        blank,
        factored_blank,
        tile,
    ):
        self._blank, self._factored_blank = blank, factored_blank
        self._tile = tile
        self._kernel, self._bias = (tf.cast(x, tf.float32) for x in (kernel, bias))
        self._shape = [tf.shape(encoding)[0], tf.shape(encoding)[1], tf.shape(prediction)[1]]
        # At least one block, for XLA, which takes nothing from an empty list.
        self._blocks = [
            tf.maximum(-(-length // size), 1)
            for length, size in zip(self._shape[1:], tile, strict=True)
        ]
        in_frames = tf.sequence_mask(logit_lengths, self._shape[1])
        in_columns = tf.sequence_mask(label_lengths + 1, self._shape[2])
        self._within = in_frames[:, :, None] & in_columns[:, None, :]  # [B, T, U + 1]
        # Zeroed, as a product with the kernel would spread what padding holds.
        self._encoding = self._cut(_where(in_frames, encoding), 0)  # [blocks, C, D]
        self._prediction = self._cut(_where(in_columns, prediction), 1)  # [blocks, E, D]
        self._symbols = self._cut(symbols_of_arcs(labels, tf.shape(kernel)[1]), 1)  # [blocks, E]

    def arcs(self):
        """Returns the `Arcs` of the lattice, arbitrary past the lengths."""

        def step(tile, found):
            hidden, _, column = self._hidden(tile)
            logits, symbols = self._logits(hidden, column)
            arcs = score_arcs(logits, symbols, self._blank, self._factored_blank)
            return [found.write(tile, tf.concat(arcs, axis=0))]

        found = tf.TensorArray(
            tf.float32, self._count(), element_shape=[len(Arcs._fields), *self._tile]
        )
        [found] = self._loop(step, self._within, [found])
        return Arcs(*(self._join(x) for x in tf.unstack(found.stack(), axis=1)))

    def gradients(self, arcs, pulls, occupied):
        """Returns the gradients by encoding, prediction, kernel and bias.

        Args:
            arcs: the `Arcs` that `arcs` returned.
            pulls: the `Pulls` on the scores of each node.
            occupied: `[B, T, U + 1]` floats, the probability that a path goes through the node.
        """
        known = [self._split(x) for x in (arcs.tops, arcs.sums, *pulls)]
        known = tf.stack(known, axis=1)  # [tiles, 5, C, E]

        def step(tile, by_encoding, by_prediction, by_kernel, by_bias):
            hidden, row, column = self._hidden(tile)
            logits, symbols = self._logits(hidden, column)
            tops, sums, *pulls = tf.split(known[tile], 5)
            by_logits = gradient_by_logits(
                logits,
                Arcs(None, None, tops, sums),
                Pulls(*pulls),
                symbols,
                self._blank,
                self._factored_blank,
            )
            by_logits = tf.reshape(by_logits, [-1, tf.shape(logits)[3]])  # [C · E, V]
            by_sum = tf.matmul(by_logits, self._kernel, transpose_b=True) * (1.0 - hidden**2)
            by_sum = tf.reshape(by_sum, [*self._tile, -1])  # [C, E, D]
            return [
                tf.tensor_scatter_nd_add(by_encoding, [[row]], [tf.reduce_sum(by_sum, 1)]),
                tf.tensor_scatter_nd_add(by_prediction, [[column]], [tf.reduce_sum(by_sum, 0)]),
                by_kernel + tf.matmul(hidden, by_logits, transpose_a=True),
                by_bias + tf.reduce_sum(by_logits, axis=0),
            ]

        joint = (self._encoding, self._prediction, self._kernel, self._bias)
        # Not `>`: a NaN is to be seen in the gradient.
        active = ~(occupied <= _NO_OCCUPANCY)
        by_encoding, by_prediction, *by_weights = self._loop(
            step, active, [tf.zeros_like(x) for x in joint]
        )
        batch, frames, width = self._shape
        depth = tf.shape(self._kernel)[0]
        return [
            tf.reshape(by_encoding, [batch, -1, depth])[:, :frames],
            tf.reshape(by_prediction, [batch, -1, depth])[:, :width],
            *by_weights,
        ]

    def _hidden(self, tile):
        """Returns `[C · E, D]` values of the hidden layer, and the tile's two blocks."""
        row = tile // self._blocks[1]
        example = row // self._blocks[0]
        column = example * self._blocks[1] + tile % self._blocks[1]
        inputs = self._encoding[row][:, None, :] + self._prediction[column]  # [C, E, D]
        return tf.tanh(tf.reshape(inputs, [-1, tf.shape(inputs)[2]])), row, column

    def _logits(self, hidden, column):
        """Returns the scores `[1, C, E, V]` of a tile, and its labels `[1, 1, E]`."""
        logits = tf.matmul(hidden, self._kernel) + self._bias
        logits = tf.reshape(logits, [1, *self._tile, tf.shape(logits)[1]])
        return logits, self._symbols[column][None, None]

    def _loop(self, step, active, state):
        """Returns the state after the step of each tile with a node that is active."""
        active = tf.reduce_max(self._split(tf.cast(active, tf.int32)), axis=[1, 2])  # [tiles]
        order = tf.argsort(active, direction="DESCENDING", stable=True)
        count = tf.reduce_sum(active)
        # One at a time, or there would be several tiles in memory.
        _, *state = tf.while_loop(
            lambda n, *_: n < count,
            lambda n, *state: (n + 1, *step(order[n], *state)),
            (0, *state),
            parallel_iterations=1,
        )
        return state

    def _count(self):
        return self._shape[0] * self._blocks[0] * self._blocks[1]

    def _cut(self, x, axis):
        """Returns `[B, length, …]` as blocks `[B · blocks, size of a block, …]`."""
        size, blocks = self._tile[axis], self._blocks[axis]
        missing = blocks * size - tf.shape(x)[1]
        x = tf.pad(x, [[0, 0], [0, missing], *[[0, 0]] * (x.shape.rank - 2)])
        return tf.reshape(x, tf.concat([[self._shape[0] * blocks, size], tf.shape(x)[2:]], axis=0))

    def _split(self, x):
        """Returns `[B, T, U + 1]` as tiles `[tiles, C, E]`, padded with 0."""
        batch, frames, width = self._shape
        (rows, columns), (tall, wide) = self._blocks, self._tile
        x = tf.pad(x, [[0, 0], [0, rows * tall - frames], [0, columns * wide - width]])
        x = tf.reshape(x, [batch, rows, tall, columns, wide])
        return tf.reshape(tf.transpose(x, [0, 1, 3, 2, 4]), [self._count(), tall, wide])

    def _join(self, tiles):
        """Returns `[B, T, U + 1]` of what `_split` returned."""
        batch, frames, width = self._shape
        (rows, columns), (tall, wide) = self._blocks, self._tile
        x = tf.transpose(tf.reshape(tiles, [batch, rows, columns, tall, wide]), [0, 1, 3, 2, 4])
        return tf.reshape(x, [batch, rows * tall, columns * wide])[:, :frames, :width]


def _where(mask, x):
    return tf.where(mask[:, :, None], tf.cast(x, tf.float32), 0.0)
