"""The transducer loss together with its joint network, for some nodes of the lattice at a time."""

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

# Scores computed together, so that they stay in the cache, and the fewest nodes that keep their
# products products of matrices.
_SCORES = 2**21
_LEAST_NODES, _MOST_NODES = 256, 1024
# Parts of the symbols that are reduced beside each other.
_PARTS = 8

# Half of the distance between 1 and the next float32.
_ROUNDING = 2.0**-24


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
    nodes=None,
):
    """Returns `transducer_loss` of the joint scores `tanh(encoding + prediction) kernel + bias`.

    Neither the hidden layer nor the scores of the whole lattice are ever held. Some nodes after
    others have their scores computed and reduced to the scores of their arcs; on the way back
    they are computed once more, and then reduced to gradients. Memory beyond that of the
    arguments and gradients is some `[B, T, U + 1]` and what these nodes take. Nodes past the
    lengths are not computed.

    On the way back neither are nodes that hardly a path goes through: most of them, once a model
    has learnt something. The gradient by the scores of a node has at most twice the node's
    occupancy, the probability that a path goes through it, as the sum of its absolute values.
    Left out are nodes at the ends of their frame and of their column. Those of a frame, or those
    of a column, have an occupancy of 2^−24 at most together, beside the 1 of all paths; that is no
    more than float32 rounds by what it sums up there.

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
        nodes: how many nodes are computed at a time; by default as many as keep their scores in
            a processor's cache.

    Returns:
        `[B]` float32, in nats, as `transducer_loss` does; so are padding and dtypes.

    Raises:
        ValueError: static shapes, dtypes or `blank` do not fit together, or `nodes` is not
            positive.
    """
    names = {"encoding": "BTD", "prediction": "BWD", "kernel": "DV", "bias": "V"}
    joint = [tf.convert_to_tensor(x) for x in (encoding, prediction, kernel, bias)]
    labels = tf.convert_to_tensor(labels)
    logit_lengths = tf.convert_to_tensor(logit_lengths)
    label_lengths = tf.convert_to_tensor(label_lengths)
    named = {name: (x, names[name]) for name, x in zip(names, joint, strict=True)}
    check_arguments(named, labels, logit_lengths, label_lengths, blank)
    if nodes is None:
        nodes = _nodes_at_a_time(*joint[0].shape[:2], *joint[1].shape[1:2], joint[2].shape[1])
    if nodes < 1:
        raise ValueError(f"`nodes` must be positive. Received: nodes={nodes}")

    @tf.custom_gradient
    def losses_of(*joint):
        scores = _Scores(*joint, labels, logit_lengths, label_lengths, blank, factored_blank, nodes)
        arcs = scores.arcs()
        lattice = transducer_lattice(
            arcs.blanks, arcs.labels, logit_lengths, label_lengths, monotonic
        )

        def gradient(upstream):
            occupied = lattice.blank_occupancies + lattice.label_occupancies
            pulls = pulls_of_arcs(lattice, arcs, upstream, factored_blank, fastemit)
            gradients = scores.gradients(arcs, pulls, occupied)
            return [
                once(tf.cast(by, x.dtype), "fused_transducer_loss")
                for by, x in zip(gradients, joint, strict=True)
            ]

        return lattice.losses, gradient

    return losses_of(*joint)


def needed_nodes(occupied):
    """Returns which nodes the gradient needs in float32, `[B, T, U + 1]` bool.

    Of a frame or a column it does not need those at its either end that paths go through with
    2^−25 at most together. A node is left out where neither its frame nor its column needs it.

    Args:
        occupied: `[B, T, U + 1]` floats, the probability that a path goes through the node.
    """

    def needed_along(axis):
        before = tf.cumsum(occupied, axis)
        after = tf.cumsum(occupied, axis, reverse=True)
        # Not `>`: a NaN is to be seen in the gradient.
        return ~((before <= _ROUNDING / 2) | (after <= _ROUNDING / 2))

    return needed_along(1) | needed_along(2)


def _nodes_at_a_time(batch, frames, width, size):
    """Returns how many nodes are computed together, for static sizes that may be None."""
    most = max(_LEAST_NODES, min(_MOST_NODES, _SCORES // (size or _SCORES)))
    if None in (batch, frames, width):
        return most
    whole = max(batch * frames * width, 1)
    return -(-whole // -(-whole // most))


class _Scores:
    """The joint's scores at the nodes of the lattice, K of them at a time.

    Nodes are counted column by column within frame by frame within example by example, frames and
    columns likewise. There is one more of each, empty, to fill the last K up.
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
        nodes,
    ):
        self._blank, self._factored_blank = blank, factored_blank
        self._nodes = nodes
        self._kernel, self._bias = (tf.cast(x, tf.float32) for x in (kernel, bias))
        self._shape = [tf.shape(encoding)[0], tf.shape(encoding)[1], tf.shape(prediction)[1]]
        in_frames = tf.sequence_mask(logit_lengths, self._shape[1])
        in_columns = tf.sequence_mask(label_lengths + 1, self._shape[2])
        self._within = in_frames[:, :, None] & in_columns[:, None, :]  # [B, T, U + 1]
        # Zeroed, as a product with the kernel would spread what padding holds.
        depth, symbols = tf.unstack(tf.shape(kernel))
        self._encoding = _listed(_where(in_frames, encoding), depth)
        self._prediction = _listed(_where(in_columns, prediction), depth)
        self._symbols = _listed(symbols_of_arcs(labels, symbols))

    def arcs(self):
        """Returns the `Arcs` of the lattice, arbitrary past the lengths."""
        order, places, count = _partition(self._within)

        def step(n, nodes, found):
            hidden, _, column = self._hidden(nodes)
            scores = self._logits(hidden, column)
            arcs = score_arcs(*scores, self._blank, self._factored_blank, _PARTS)
            return [found.write(n, tf.concat(arcs, axis=0)[:, 0])]

        # At least one, for XLA, which takes nothing from an empty list.
        steps = tf.maximum(-(-tf.size(order) // self._nodes), 1)
        found = tf.TensorArray(tf.float32, steps, element_shape=[len(Arcs._fields), self._nodes])
        [found] = self._loop(step, order, count, [found])
        found = tf.reshape(tf.transpose(found.stack(), [1, 0, 2]), [len(Arcs._fields), -1])
        found = tf.reshape(tf.gather(found, places, axis=1), [len(Arcs._fields), *self._shape])
        return Arcs(*tf.unstack(found, len(Arcs._fields)))

    def gradients(self, arcs, pulls, occupied):
        """Returns the gradients by encoding, prediction, kernel and bias.

        Args:
            arcs: the `Arcs` that `arcs` returned.
            pulls: the `Pulls` on the scores of each node.
            occupied: `[B, T, U + 1]` floats, the probability that a path goes through the node.
        """
        batch, frames, width = self._shape
        depth = tf.shape(self._kernel)[0]
        order, _, count = _partition(needed_nodes(occupied))
        known = tf.stack([arcs.tops, arcs.sums, *pulls], axis=-1)  # [B, T, U + 1, 5]
        known = _listed(known, 5)
        # Multiplied by many times: here once is faster than in every product.
        transposed = tf.transpose(self._kernel)

        def step(_, nodes, by_encoding, by_prediction, by_weights):
            hidden, frame, column = self._hidden(nodes)
            logits, symbols = self._logits(hidden, column)
            tops, sums, *pulls = tf.unstack(tf.gather(known, nodes)[None, None], axis=-1)
            by_logits = gradient_by_logits(
                logits,
                Arcs(None, None, tops, sums),
                Pulls(*pulls),
                symbols,
                self._blank,
                self._factored_blank,
            )[0, 0]  # [K, V]
            by_sum = tf.matmul(by_logits, transposed) * (1.0 - hidden**2)
            # The bias is what multiplies 1. XLA's product is slower with what it transposes itself.
            inputs = tf.concat([tf.transpose(hidden), tf.ones([1, self._nodes])], axis=0)
            return [
                tf.tensor_scatter_nd_add(by_encoding, frame[:, None], by_sum),
                tf.tensor_scatter_nd_add(by_prediction, column[:, None], by_sum),
                by_weights + tf.matmul(inputs, by_logits),
            ]

        weights = tf.concat([self._kernel, self._bias[None]], axis=0)
        joint = (self._encoding, self._prediction, weights)
        by_encoding, by_prediction, by_weights = self._loop(
            step, order, count, [tf.zeros_like(x) for x in joint]
        )
        return [
            tf.reshape(by_encoding[:-1], [batch, frames, depth]),
            tf.reshape(by_prediction[:-1], [batch, width, depth]),
            by_weights[:-1],
            by_weights[-1],
        ]

    def _hidden(self, nodes):
        """Returns `[K, D]` values of the hidden layer, and the frame and column of each node."""
        _, frames, width = self._shape
        frame = nodes // width
        column = frame // frames * width + nodes % width
        inputs = tf.gather(self._encoding, frame) + tf.gather(self._prediction, column)
        return tf.tanh(inputs), frame, column

    def _logits(self, hidden, column):
        """Returns scores `[1, 1, K, V]` and the next labels `[1, 1, K]`."""
        logits = tf.matmul(hidden, self._kernel) + self._bias
        return logits[None, None], tf.gather(self._symbols, column)[None, None]

    def _loop(self, step, order, count, state):
        """Returns the state after a step for each K of the first `count` nodes in this order."""
        filled = tf.pad(order, [[0, self._nodes]], constant_values=tf.size(order))
        # One at a time, or there would be the scores of several in memory.
        _, *state = tf.while_loop(
            lambda n, *_: n * self._nodes < count,
            lambda n, *state: (
                n + 1,
                *step(n, tf.slice(filled, [n * self._nodes], [self._nodes]), *state),
            ),
            (0, *state),
            parallel_iterations=1,
        )
        return state


def _partition(chosen):
    """Returns the nodes in an order in which those chosen come first.

    Args:
        chosen: `[B, T, U + 1]` bool.

    Returns:
        The order, the place that each node has in it, and how many are chosen: two `[B T (U + 1)]`
        and a scalar, int32.
    """
    ones = tf.reshape(tf.cast(chosen, tf.int32), [-1])
    count, before = tf.reduce_sum(ones), tf.cumsum(ones, exclusive=True)
    node = tf.range(tf.size(ones))
    places = tf.where(ones > 0, before, count + node - before)
    return tf.scatter_nd(places[:, None], node, tf.shape(node)), places, count


def _where(mask, x):
    return tf.where(mask[:, :, None], tf.cast(x, tf.float32), 0.0)


def _listed(x, *shape):
    """Returns values `[N + 1, *shape]` of all examples' nodes, frames or columns; the last is 0."""
    return tf.pad(tf.reshape(x, [-1, *shape]), [[0, 1], *[[0, 0]] * len(shape)])
