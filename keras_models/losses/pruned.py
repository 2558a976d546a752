"""The transducer loss over a band of the lattice, and which band that may be."""

import tensorflow as tf

from keras_models import BLANK
from keras_models.losses.arcs import (
    check_arguments,
    gradient_by_logits,
    once,
    pulls_of_arcs,
    score_arcs,
    symbols_of_arcs,
)
from keras_models.losses.lattice import LOG_ZERO, Lattice, transducer_lattice


def pruned_transducer_loss(
    logits,
    starts,
    labels,
    logit_lengths,
    label_lengths,
    blank=BLANK,
    *,
    monotonic=False,
    factored_blank=False,
    fastemit=0.0,
):
    """Returns `transducer_loss` over those paths only that stay within a band of the lattice.

    At frame `t` the band has the S columns from `starts[b, t]` on (Kuang et al. 2022, "Pruned
    RNN-T for fast, memory-efficient ASR training", arXiv 2206.13236), so that the joint network
    is needed at B T S nodes only. The loss is at least that over the whole lattice, by as much
    as the paths left out weigh. `band_of_occupancies` finds a band that few paths leave.

    Args:
        logits: `[B, T, S, V]` floats, unnormalised: `logits[b, t, s]` are those of the node
            `(t, starts[b, t] + s)`.
        starts: `[B, T]` integers, the first column at each frame, in `[0, U]`. What the band has
            past the last column is not read.
        labels: as for `transducer_loss`, and so is all below.
        logit_lengths: `[B]` integers.
        label_lengths: `[B]` integers.
        blank: the symbol that consumes a frame.
        monotonic: whether a label consumes a frame, too.
        factored_blank: whether the blank has a distribution of its own.
        fastemit: λ of FastEmit.

    Returns:
        `[B]` float32, in nats; inf, with a gradient of 0, where no path stays within the band.

    Raises:
        ValueError: static shapes, dtypes or `blank` do not fit together.
    """
    logits, starts, labels, logit_lengths, label_lengths = (
        tf.convert_to_tensor(x) for x in (logits, starts, labels, logit_lengths, label_lengths)
    )
    check_arguments(
        {"logits": (logits, "BTSV")},
        labels,
        logit_lengths,
        label_lengths,
        blank,
        starts=(starts, "BT"),
    )
    columns = tf.cast(starts, tf.int32)[:, :, None] + tf.range(tf.shape(logits)[2])  # [B, T, S]
    width = tf.shape(labels)[1] + 1
    symbols = symbols_of_arcs(labels, tf.shape(logits)[3])
    symbols = tf.gather(symbols, tf.clip_by_value(columns, 0, width - 1), batch_dims=1)

    @tf.custom_gradient
    def losses_of(logits):
        arcs = score_arcs(logits, symbols, blank, factored_blank)
        whole = transducer_lattice(
            _spread(arcs.blanks, starts, width),
            _spread(arcs.labels, starts, width),
            logit_lengths,
            label_lengths,
            monotonic,
        )
        lattice = Lattice(
            whole.losses,
            _at(whole.blank_occupancies, columns),
            _at(whole.label_occupancies, columns),
        )

        def gradient(upstream):
            pulls = pulls_of_arcs(lattice, arcs, upstream, factored_blank, fastemit)
            by_logits = gradient_by_logits(logits, arcs, pulls, symbols, blank, factored_blank)
            return once(by_logits, "pruned_transducer_loss")

        return lattice.losses, gradient

    return losses_of(logits)


def band_of_occupancies(occupancies, logit_lengths, label_lengths, size):
    """Returns `starts [B, T]` int32 of a band that paths of these occupancies seldom leave.

    At each frame it is the band that holds the most, as far as a path can stay within it: from
    the last frame, where it ends with the last label, back to the first, where it begins with
    column 0, it moves by 0 to `size − 1` columns a frame. There is such a band if
    `(size − 1) T ≥ U` for the lengths of an example; if not, no path stays within what is
    returned.

    Args:
        occupancies: `[B, T, U + 1]` floats, probability that a path goes through each node, such
            as `nodes` of `additive_transducer_occupancies`.
        logit_lengths: `[B]` integers, frames of each example.
        label_lengths: `[B]` integers, labels of each example.
        size: S, the columns at each frame, at least 1.

    Raises:
        ValueError: `size` is not positive.
    """
    if size < 1:
        raise ValueError(f"`size` must be positive. Received: size={size}")
    frames = tf.shape(occupancies)[1]
    logit_lengths = tf.cast(logit_lengths, tf.int32)
    last = tf.maximum(tf.cast(label_lengths, tf.int32) + 1 - size, 0)  # [B]
    before = tf.cumsum(tf.pad(occupancies, [[0, 0], [0, 0], [0, size]]), axis=2, exclusive=True)
    held = before[:, :, size:] - before[:, :, :-size]  # [B, T, U + 1]
    best = tf.argmax(held, axis=2, output_type=tf.int32)  # [B, T]
    found = tf.TensorArray(tf.int32, frames, element_shape=best.shape[:1])

    def step(t, after, found):
        most = tf.minimum(after, (size - 1) * t)
        start = tf.clip_by_value(best[:, t], tf.minimum(after - (size - 1), most), most)
        start = tf.where(t < logit_lengths - 1, tf.maximum(start, 0), after)
        return t - 1, start, found.write(t, start)

    _, _, found = tf.while_loop(lambda t, *_: t >= 0, step, (frames - 1, last, found))
    return tf.transpose(found.stack())


def _spread(x, starts, width):
    """Returns `[B, T, U + 1]` with the band's values in their columns, elsewhere LOG_ZERO."""
    size = tf.shape(x)[2]
    within = tf.range(width) - tf.cast(starts, tf.int32)[:, :, None]  # [B, T, U + 1]
    values = tf.gather(x, tf.clip_by_value(within, 0, size - 1), batch_dims=2)
    return tf.where((within >= 0) & (within < size), values, LOG_ZERO)


def _at(x, columns):
    """Returns the values `[B, T, S]` of `[B, T, U + 1]` in these columns, 0 where there is none."""
    width = tf.shape(x)[2]
    values = tf.gather(x, tf.clip_by_value(columns, 0, width - 1), batch_dims=2)
    return tf.where((columns >= 0) & (columns < width), values, 0.0)
