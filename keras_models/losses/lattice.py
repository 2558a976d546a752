"""The lattice that the transducer loss and its variants stand on."""

from typing import NamedTuple

import tensorflow as tf

# The logarithm of no probability at all. Finite, so that two of them differ by a number.
LOG_ZERO = -1e30


class Lattice(NamedTuple):
    """What is known of a transducer's lattice once all its paths are summed.

    An occupancy is the probability that a path, drawn given the labels, takes that arc. It is
    also minus the derivative of the loss by the score of that arc.
    """

    losses: tf.Tensor  # [B]
    blank_occupancies: tf.Tensor  # [B, T, U + 1]
    label_occupancies: tf.Tensor  # [B, T, U + 1]


class TransducerOccupancies(NamedTuple):
    """Posterior probabilities, given the labels, that a path goes through a place of the lattice.

    `labels[b, t, u]` is the probability that label `u` is emitted at frame `t`: over the frames
    it sums to 1. So does `blanks[b, t]` over `u`, unless labels consume frames. All are 0 past the
    lengths and in examples without a path.
    """

    nodes: tf.Tensor  # [B, T, U + 1]
    blanks: tf.Tensor  # [B, T, U + 1]
    labels: tf.Tensor  # [B, T, U + 1], the last column 0


def occupancies_of(lattice):
    """Returns the `TransducerOccupancies` of a `Lattice`."""
    blanks, labels = lattice.blank_occupancies, lattice.label_occupancies
    return TransducerOccupancies(blanks + labels, blanks, labels)


def transducer_lattice(blank_scores, label_scores, logit_lengths, label_lengths, monotonic=False):
    """Returns the `Lattice` of arcs with these scores: its loss and the occupancy of each arc.

    Nothing is assumed of the scores but that a path's score is the sum of its arcs': they need
    not be normalised. This function is not to be differentiated; the derivatives are in what it
    returns.

    The nodes with one `t + u` are a row, as all arcs lead from one such row to the next; where
    every arc consumes a frame, those with one `t`. Forward, a row of log α is found from the last
    and shifted to have a maximum of 0, so that float32 is as exact after thousands of rows as
    after one. Backward there are no logarithms: the share of α that each node had by its blank is
    known, and occupancies flow back in these proportions.

    Args:
        blank_scores: `[B, T, U + 1]` float32, log-probability of the blank at each node.
        label_scores: `[B, T, U + 1]` float32, log-probability of the next label at each node.
            The last column is not read.
        logit_lengths: `[B]` integers, frames of each example.
        label_lengths: `[B]` integers, labels of each example.
        monotonic: whether a label consumes a frame as a blank does, so that it leads from
            `(t, u)` to `(t + 1, u + 1)`.
    """
    frames, width = tf.unstack(tf.shape(blank_scores)[1:])
    to_rows, from_rows = (_stack, _unstack) if monotonic else (_skew, _unskew)
    blank_rows, label_rows = _mask_arcs(
        to_rows(blank_scores), to_rows(label_scores), logit_lengths, label_lengths, monotonic
    )
    log_probabilities, log_odds = _sum_paths(blank_rows, label_rows)
    blank_shares = tf.sigmoid(log_odds)
    label_shares = tf.sigmoid(-log_odds)
    # Not `not >`: a NaN among the scores is to be seen in the loss.
    impossible = log_probabilities < LOG_ZERO / 2
    ends = tf.where(impossible[:, None], 0.0, tf.one_hot(label_lengths, width))
    occupancies = _push_back(blank_shares, label_shares, ends)
    in_frames = tf.sequence_mask(logit_lengths, frames)[:, :, None]
    return Lattice(
        losses=tf.where(impossible, float("inf"), -log_probabilities),
        blank_occupancies=tf.where(in_frames, from_rows(occupancies * blank_shares, frames), 0.0),
        label_occupancies=from_rows(_shift_left(occupancies * label_shares), frames),
    )


def _mask_arcs(blank_rows, label_rows, logit_lengths, label_lengths, monotonic):
    """Returns the rows without arcs that lead off the lattice, `[rows, B, U + 1]`.

    From the final node on a blank of probability 1 leads straight through the remaining rows, so
    that every example ends in the last.
    """
    rows, width = tf.shape(blank_rows)[0], tf.shape(blank_rows)[2]
    emitted = tf.range(width)  # [U + 1]
    behind = tf.zeros_like(emitted) if monotonic else emitted
    frame = (tf.range(rows)[:, None] - behind)[:, None, :]  # [rows, 1, U + 1]
    frames = tf.cast(logit_lengths, tf.int32)[:, None]
    labels = tf.cast(label_lengths, tf.int32)[:, None]
    in_frames = frame < frames  # [rows, B, U + 1]
    blank_rows = tf.where(in_frames & (emitted <= labels), blank_rows, LOG_ZERO)
    blank_rows = tf.where(~in_frames & (emitted == labels), 0.0, blank_rows)
    label_rows = tf.where(in_frames & (emitted < labels), label_rows, LOG_ZERO)
    # −inf only: `maximum` would swallow a NaN.
    return tuple(tf.where(x < LOG_ZERO, LOG_ZERO, x) for x in (blank_rows, label_rows))


def _sum_paths(blank_rows, label_rows):
    """Returns log α at the ends, `[B]`, and each row's log-odds of having come by its blank."""
    rows, batch, width = tf.unstack(tf.shape(blank_rows))
    blanks = tf.TensorArray(tf.float32, rows).unstack(blank_rows)
    labels = tf.TensorArray(tf.float32, rows).unstack(label_rows)
    odds = tf.TensorArray(tf.float32, rows, element_shape=blank_rows.shape[1:])
    scales = tf.TensorArray(tf.float32, rows, element_shape=blank_rows.shape[1:2])

    def step(row, alpha, odds, scales):
        by_blank = alpha + blanks.read(row)
        by_label = _shift_right(alpha + labels.read(row))
        log_odds = by_blank - by_label
        alpha = tf.maximum(by_blank, by_label) + tf.math.softplus(-tf.abs(log_odds))
        scale = tf.reduce_max(alpha, axis=1)
        return row + 1, alpha - scale[:, None], odds.write(row, log_odds), scales.write(row, scale)

    alpha = tf.tile(tf.one_hot([0], width, 0.0, LOG_ZERO), [batch, 1])
    _, alpha, odds, scales = tf.while_loop(
        lambda row, *_: row < rows, step, (0, alpha, odds, scales), maximum_iterations=rows
    )
    # Thousands of terms, often of one size and sign: their sum is the one place for float64.
    total = tf.reduce_sum(tf.cast(scales.stack(), tf.float64), axis=0)
    return tf.cast(total, tf.float32) + tf.reduce_logsumexp(alpha, axis=1), odds.stack()


def _push_back(blank_shares, label_shares, ends):
    """Returns the occupancy of the node in which each row's arcs end, `[rows, B, U + 1]`."""
    rows = tf.shape(blank_shares)[0]
    blanks = tf.TensorArray(tf.float32, rows).unstack(blank_shares)
    labels = tf.TensorArray(tf.float32, rows).unstack(label_shares)
    occupancies = tf.TensorArray(tf.float32, rows, element_shape=blank_shares.shape[1:])

    def step(row, occupancy, occupancies):
        occupancies = occupancies.write(row, occupancy)
        by_blank = occupancy * blanks.read(row)
        by_label = _shift_left(occupancy * labels.read(row))
        return row - 1, by_blank + by_label, occupancies

    ends = tf.ensure_shape(ends, blank_shares.shape[1:])
    _, _, occupancies = tf.while_loop(
        lambda row, *_: row >= 0, step, (rows - 1, ends, occupancies), maximum_iterations=rows
    )
    return occupancies.stack()


def _skew(x):
    """Returns `y [T + U + 1, B, U + 1]` with `y[t + u, b, u] = x[b, t, u]`, elsewhere LOG_ZERO.

    No arc leaves the last row. It is there for XLA, which wants one even if T and U are 0.
    """
    batch, frames, width = tf.unstack(tf.shape(x))
    rows = frames + width
    x = tf.transpose(x, [0, 2, 1])
    x = tf.pad(x, [[0, 0], [0, 0], [0, width + 1]], constant_values=LOG_ZERO)
    # Columns are longer by one here than in y, where each thus begins one row further down.
    x = tf.reshape(x, [batch, width * (rows + 1)])[:, : width * rows]
    return tf.transpose(tf.reshape(x, [batch, width, rows]), [2, 0, 1])


def _unskew(y, frames):
    """Returns `x [B, T, U + 1]` with `x[b, t, u] = y[t + u, b, u]`."""
    rows, batch, width = tf.unstack(tf.shape(y))
    y = tf.reshape(tf.transpose(y, [1, 2, 0]), [batch, width * rows])
    y = tf.reshape(tf.pad(y, [[0, 0], [0, width]]), [batch, width, rows + 1])
    return tf.transpose(y[:, :, :frames], [0, 2, 1])


def _stack(x):
    """Returns `y [T + 1, B, U + 1]` with `y[t, b, u] = x[b, t, u]` and a last row of LOG_ZERO."""
    x = tf.transpose(x, [1, 0, 2])
    return tf.pad(x, [[0, 1], [0, 0], [0, 0]], constant_values=LOG_ZERO)


def _unstack(y, frames):
    """Returns `x [B, T, U + 1]` with `x[b, t, u] = y[t, b, u]`."""
    return tf.transpose(y[:frames], [1, 0, 2])


def _shift_right(x):
    return tf.pad(x[:, :-1], [[0, 0], [1, 0]], constant_values=LOG_ZERO)


def _shift_left(x):
    return tf.pad(x[..., 1:], [[0, 0]] * (x.shape.rank - 1) + [[0, 1]])
