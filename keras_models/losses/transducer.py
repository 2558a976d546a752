"""The transducer loss, and the lattice that it and its variants stand on."""

from typing import NamedTuple

import tensorflow as tf

from keras_models import BLANK

# The logarithm of no probability at all. Finite, so that two of them differ by a number.
LOG_ZERO = -1e30

_ASIDE = 2.0**64


class Lattice(NamedTuple):
    """What is known of a transducer's lattice once all its paths are summed.

    An occupancy is the probability that a path, drawn given the labels, takes that arc. It is
    also minus the derivative of the loss by the score of that arc.
    """

    losses: tf.Tensor  # [B]
    blank_occupancies: tf.Tensor  # [B, T, U + 1]
    label_occupancies: tf.Tensor  # [B, T, U + 1]


def transducer_loss(logits, labels, logit_lengths, label_lengths, blank=BLANK):
    """Returns the negative log-likelihood of each example's labels under a transducer.

    Node `(t, u)` of the lattice stands for `u` labels emitted and `t` frames consumed. From it a
    blank leads to `(t + 1, u)` and label `u` to `(t, u + 1)`, each with the probability that
    softmax gives it there. The likelihood is the sum over all paths from `(0, 0)` to `(T, U)`
    whose last step is a blank (Graves 2012, "Sequence transduction with recurrent neural
    networks", arXiv 1211.3711):

        α(t, u) = α(t − 1, u) blank(t − 1, u) + α(t, u − 1) label(t, u − 1),    α(0, 0) = 1
        loss    = −log α(T, U)

    The gradient is in closed form: softmax times the occupancy of the node, less the occupancies
    of the blank and of the label. Beside the logits and that gradient, memory is a few
    `[B, T, U + 1]`; arithmetic is in float32 and the gradient in the dtype of the logits. There
    is no second-order gradient.

    What lies past the lengths changes nothing, be it infinite or NaN, and has a gradient of 0.
    Labels past their length may be any integer.

    Args:
        logits: `[B, T, U + 1, V]` floats, unnormalised.
        labels: `[B, U]` integers in `[0, V)`, none of them `blank`.
        logit_lengths: `[B]` integers, frames of each example, in `[0, T]`.
        label_lengths: `[B]` integers, labels of each example, in `[0, U]`.
        blank: the symbol that consumes a frame, in `[0, V)`.

    Returns:
        `[B]` float32, in nats. Where there is no path (labels but no frame, or a label whose
        logit is −inf throughout) the loss is inf and its gradient 0; with neither frame nor label
        both are 0.

    Raises:
        ValueError: static shapes, dtypes or `blank` do not fit together.
    """
    logits = tf.convert_to_tensor(logits)
    labels = tf.convert_to_tensor(labels)
    logit_lengths = tf.convert_to_tensor(logit_lengths)
    label_lengths = tf.convert_to_tensor(label_lengths)
    _check_arguments(logits, labels, logit_lengths, label_lengths, blank)
    symbols = _symbols_of_arcs(labels, tf.shape(logits)[3])

    @tf.custom_gradient
    def losses_of(logits):
        scores = tf.cast(logits, tf.float32)
        # Of the log-sum-exp both parts are kept: their sum has lost the lesser's digits.
        tops = tf.reduce_max(scores, axis=-1)  # [B, T, U + 1]
        sums = tf.reduce_sum(tf.exp(scores - tops[..., None]), axis=-1)
        lattice = transducer_lattice(
            scores[..., blank] - tops - tf.math.log(sums),
            _scores_of_labels(scores, symbols) - tops - tf.math.log(sums),
            logit_lengths,
            label_lengths,
        )

        def gradient(upstream):
            # "no NaN": an infinite loss may well come back with an infinite weight.
            weights = upstream[:, None, None]
            by_logits = _gradient_by_logits(
                logits,
                tops,
                sums,
                tf.math.multiply_no_nan(weights, lattice.blank_occupancies),
                tf.math.multiply_no_nan(weights, lattice.label_occupancies),
                symbols,
                blank,
            )
            return tf.raw_ops.PreventGradient(
                input=by_logits, message="transducer_loss has no second-order gradient."
            )

        return lattice.losses, gradient

    return losses_of(logits)


def transducer_lattice(blank_scores, label_scores, logit_lengths, label_lengths):
    """Returns the `Lattice` of arcs with these scores: its loss and the occupancy of each arc.

    Nothing is assumed of the scores but that a path's score is the sum of its arcs': they need
    not be normalised. This function is not to be differentiated; the derivatives are in what it
    returns.

    The nodes with one `t + u` are a row, as all arcs lead from one such row to the next. Forward,
    a row of log α is found from the last and shifted to have a maximum of 0, so that float32 is
    as exact after thousands of rows as after one. Backward there are no logarithms: the share of
    α that each node had by its blank is known, and occupancies flow back in these proportions.

    Args:
        blank_scores: `[B, T, U + 1]` float32, log-probability of the blank at each node.
        label_scores: `[B, T, U + 1]` float32, log-probability of the next label at each node.
            The last column is not read.
        logit_lengths: `[B]` integers, frames of each example.
        label_lengths: `[B]` integers, labels of each example.
    """
    frames, width = tf.unstack(tf.shape(blank_scores)[1:])
    blank_rows, label_rows = _mask_arcs(
        _skew(blank_scores), _skew(label_scores), logit_lengths, label_lengths
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
        blank_occupancies=tf.where(in_frames, _unskew(occupancies * blank_shares, frames), 0.0),
        label_occupancies=_unskew(_shift_left(occupancies * label_shares), frames),
    )


def _mask_arcs(blank_rows, label_rows, logit_lengths, label_lengths):
    """Returns the rows without arcs that lead off the lattice, `[T + U + 1, B, U + 1]`.

    From the final node on a blank of probability 1 leads straight through the remaining rows, so
    that every example ends in the last.
    """
    rows, width = tf.shape(blank_rows)[0], tf.shape(blank_rows)[2]
    emitted = tf.range(width)  # [U + 1]
    frame = (tf.range(rows)[:, None] - emitted)[:, None, :]  # [T + U + 1, 1, U + 1]
    frames = tf.cast(logit_lengths, tf.int32)[:, None]
    labels = tf.cast(label_lengths, tf.int32)[:, None]
    in_frames = frame < frames  # [T + U + 1, B, U + 1]
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
    """Returns the occupancy of the node in which each row's arcs end, `[T + U + 1, B, U + 1]`."""
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


def _shift_right(x):
    return tf.pad(x[:, :-1], [[0, 0], [1, 0]], constant_values=LOG_ZERO)


def _shift_left(x):
    return tf.pad(x[..., 1:], [[0, 0]] * (x.shape.rank - 1) + [[0, 1]])


def _symbols_of_arcs(labels, size):
    """Returns the label that leads on from each column, `[B, U + 1]`; any symbol past the last."""
    labels = tf.cast(labels, tf.int32)
    return tf.pad(tf.clip_by_value(labels, 0, size - 1), [[0, 0], [0, 1]])


def _scores_of_labels(scores, symbols):
    symbols = tf.broadcast_to(symbols[:, None, :], tf.shape(scores)[:3])
    return tf.gather(scores, symbols, batch_dims=3)


def _gradient_by_logits(logits, tops, sums, blanks, labels, symbols, blank):
    """Returns softmax times the occupancy of the node, less those of its arcs, as `logits`.

    To subtract at one symbol only, all others are so large meanwhile that the difference is lost
    in rounding; powers of two lose nothing else. Unlike a `where` this needs no operand of the
    size of the logits, so that even without XLA every step happens in place.
    """
    symbol = tf.range(tf.shape(logits)[3])
    but_blank = tf.where(symbol == blank, 1.0, _ASIDE)  # [V]
    but_label = tf.where(symbol == symbols[:, None, :, None], 1.0, _ASIDE)  # [B, 1, U + 1, V]
    # 0 where the occupancy is 0, be the logits there NaN.
    weights = tf.math.multiply_no_nan(1.0 / sums, blanks + labels)[..., None]
    gradient = tf.exp(tf.cast(logits, tf.float32) - tops[..., None])
    gradient = tf.math.multiply_no_nan(gradient, weights)
    gradient = gradient * but_blank - blanks[..., None]
    gradient = gradient * (but_label / but_blank) - labels[..., None]
    return tf.cast(gradient * (1.0 / but_label), logits.dtype)


def _check_arguments(logits, labels, logit_lengths, label_lengths, blank):
    if not logits.dtype.is_floating:
        raise ValueError(f"`logits` must be floating. Received: dtype={logits.dtype.name}")
    named = {"labels": labels, "logit_lengths": logit_lengths, "label_lengths": label_lengths}
    for name, value in named.items():
        if not value.dtype.is_integer:
            raise ValueError(f"`{name}` must be integers. Received: dtype={value.dtype.name}")
    named = {"logits": logits, **named}
    letters = {"logits": "BTUV", "labels": "BU", "logit_lengths": "B", "label_lengths": "B"}
    for name, value in named.items():
        if value.shape.rank != len(letters[name]):
            raise ValueError(
                f"`{name}` must have rank {len(letters[name])}. Received: shape={value.shape}"
            )
        if not value.shape[:1].is_compatible_with(logits.shape[:1]):
            raise ValueError(
                f"`{name}` must have as many examples as `logits`. Received: "
                f"{name}.shape={value.shape}, logits.shape={logits.shape}"
            )
    width, size = logits.shape[2:]
    if None not in (width, labels.shape[1]) and width != labels.shape[1] + 1:
        raise ValueError(
            "`logits` must be one longer in its third axis than `labels` in its second. "
            f"Received: logits.shape={logits.shape}, labels.shape={labels.shape}"
        )
    if blank < 0 or (size is not None and blank >= size):
        raise ValueError(f"`blank` must be in [0, {size}). Received: blank={blank}")
