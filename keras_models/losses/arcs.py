"""From scores of symbols to the arcs of a transducer's lattice, and their gradient back."""

import functools
from typing import NamedTuple

import tensorflow as tf

_ASIDE = 2.0**64


class Arcs(NamedTuple):
    """Log-probabilities of the two arcs that leave each node, and what normalised them.

    Of the log-sum-exp over symbols both parts are kept: their sum has lost the lesser's digits.
    It is over all symbols, or over all but a factored blank.
    """

    blanks: tf.Tensor  # [B, T, U + 1]
    labels: tf.Tensor  # [B, T, U + 1]
    tops: tf.Tensor  # [B, T, U + 1], the greatest score
    sums: tf.Tensor  # [B, T, U + 1], of exp(score − top)


def symbols_of_arcs(labels, size):
    """Returns the label that leads on from each column, `[B, U + 1]`; any symbol past the last."""
    labels = tf.cast(labels, tf.int32)
    return tf.pad(tf.clip_by_value(labels, 0, size - 1), [[0, 0], [0, 1]])


def score_arcs(logits, symbols, blank, factored_blank, parts=1):
    """Returns the `Arcs` of joint scores.

    Args:
        logits: `[B, T, U + 1, V]` floats.
        symbols: `[B, T or 1, U + 1]` integers, the label that leads on from each node.
        blank: the symbol that consumes a frame.
        factored_blank: whether the blank has a sigmoid of its own, as in `transducer_loss`.
        parts: how many parts of the symbols are reduced beside each other: with 8, XLA takes a
            third less time for it, and a plain graph twice as long.
    """
    logits = tf.cast(logits, tf.float32)
    scores = without_blank(logits, blank) if factored_blank else logits
    tops, sums = _tops_and_sums(scores, parts)  # [B, T, U + 1]
    symbols = tf.broadcast_to(symbols, tf.shape(scores)[:3])
    of_labels = tf.gather(scores, symbols, batch_dims=3)
    return normalise_arcs(
        logits[..., blank] - (0.0 if factored_blank else tops),
        of_labels - tops,
        tops,
        sums,
        factored_blank,
    )


def _tops_and_sums(scores, parts):
    """Returns the greatest of the scores over the last axis, and the sum of exp(score − top).

    Of all parts of the axis the first numbers are reduced beside the second ones, and so on: many
    at a time, where XLA would reduce a row number by number.
    """
    size = tf.shape(scores)[-1]
    even = size - size % parts
    equal, rest = tf.split(scores[..., :even], parts, axis=-1), scores[..., even:]
    tops = tf.maximum(
        tf.reduce_max(functools.reduce(tf.maximum, equal), axis=-1), tf.reduce_max(rest, axis=-1)
    )
    added = tf.add_n([tf.exp(x - tops[..., None]) for x in equal])
    of_rest = tf.exp(rest - tops[..., None])
    return tops, tf.reduce_sum(added, axis=-1) + tf.reduce_sum(of_rest, axis=-1)


def normalise_arcs(blanks, labels, tops, sums, factored_blank):
    """Returns the `Arcs` for the scores of both arcs, less `tops` unless the blank is factored."""
    logs = tf.math.log(sums)
    if not factored_blank:
        return Arcs(blanks - logs, labels - logs, tops, sums)
    return Arcs(-tf.math.softplus(-blanks), labels - logs - tf.math.softplus(blanks), tops, sums)


def without_blank(scores, blank):
    """Returns `[…, V]` scores with that of the blank −inf."""
    return tf.where(tf.range(tf.shape(scores)[-1]) == blank, float("-inf"), scores)


class Pulls(NamedTuple):
    """What each node's gradient is made of: softmax times `nodes`, less `blanks` and `labels`.

    `nodes` is the weight that the softmax has, `blanks` is taken at the blank and `labels` at the
    next label.
    """

    nodes: tf.Tensor  # [B, T, U + 1]
    blanks: tf.Tensor  # [B, T, U + 1]
    labels: tf.Tensor  # [B, T, U + 1]


def pulls_of_arcs(lattice, arcs, upstream, factored_blank, fastemit):
    """Returns the `Pulls` on the scores of each node.

    Args:
        lattice: the `Lattice` of these arcs.
        arcs: the `Arcs`.
        upstream: `[B]`, the weight of each example's loss.
        factored_blank: as for `score_arcs`.
        fastemit: by how much more than its share each label pulls.
    """
    # "no NaN": an infinite loss may well come back with an infinite weight.
    weights = upstream[:, None, None]
    blanks = tf.math.multiply_no_nan(weights, lattice.blank_occupancies)
    labels = tf.math.multiply_no_nan(weights * (1.0 + fastemit), lattice.label_occupancies)
    if not factored_blank:
        return Pulls(blanks + labels, blanks, labels)
    pulled = tf.math.multiply_no_nan(tf.exp(arcs.blanks), blanks + labels)
    return Pulls(labels, blanks - pulled, labels)


def gradient_by_logits(logits, arcs, pulls, symbols, blank, factored_blank):
    """Returns the gradient by the joint scores, `[B, T, U + 1, V]` in their dtype.

    To subtract at one symbol only, all others are so large meanwhile that the difference is lost
    in rounding; powers of two lose nothing else. Unlike a `where` this needs no operand of the
    size of the logits, so that even without XLA every step happens in place.
    """
    symbol = tf.range(tf.shape(logits)[3])
    but_blank = tf.where(symbol == blank, 1.0, _ASIDE)  # [V]
    but_label = tf.where(symbol == symbols[..., None], 1.0, _ASIDE)  # [B, T or 1, U + 1, V]
    scores = tf.cast(logits, tf.float32)
    if factored_blank:
        scores = without_blank(scores, blank)
    # 0 where the occupancy is 0, be the logits there NaN.
    weights = tf.math.multiply_no_nan(1.0 / arcs.sums, pulls.nodes)[..., None]
    gradient = tf.exp(scores - arcs.tops[..., None])
    gradient = tf.math.multiply_no_nan(gradient, weights)
    gradient = gradient * but_blank - pulls.blanks[..., None]
    gradient = gradient * (but_label / but_blank) - pulls.labels[..., None]
    return tf.cast(gradient * (1.0 / but_label), logits.dtype)


def once(gradient, name):
    """Returns a gradient that raises where it is differentiated again."""
    return tf.raw_ops.PreventGradient(
        input=gradient, message=f"{name} has no second-order gradient."
    )


def check_arguments(scores, labels, logit_lengths, label_lengths, blank, **others):
    """Raises ValueError where static shapes, dtypes or `blank` do not fit together.

    Args:
        scores: the floats of a loss, by name: a tensor and the letters of its axes, among which
            `W` stands for U + 1.
        labels: `[B, U]`.
        logit_lengths: `[B]`.
        label_lengths: `[B]`.
        blank: an integer.
        **others: more integers, as `scores` are.
    """
    integers = {
        **others,
        "labels": (labels, "BU"),
        "logit_lengths": (logit_lengths, "B"),
        "label_lengths": (label_lengths, "B"),
    }
    for name, (value, _) in scores.items():
        if not value.dtype.is_floating:
            raise ValueError(f"`{name}` must be floating. Received: dtype={value.dtype.name}")
    for name, (value, _) in integers.items():
        if not value.dtype.is_integer:
            raise ValueError(f"`{name}` must be integers. Received: dtype={value.dtype.name}")
    axes = _sizes_of_axes({**scores, **integers})
    if "W" in axes and "U" in axes and axes["W"][0] != axes["U"][0] + 1:
        (_, name, axis), (_, _, axis_of_labels) = axes["W"], axes["U"]
        raise ValueError(
            f"`{name}` must be one longer in axis {axis} than `labels` in axis {axis_of_labels}. "
            f"Received: {name}.shape={scores[name][0].shape}, labels.shape={labels.shape}"
        )
    size = axes["V"][0] if "V" in axes else None
    if blank < 0 or (size is not None and blank >= size):
        raise ValueError(f"`blank` must be in [0, {size}). Received: blank={blank}")


def _sizes_of_axes(named):
    """Returns for each letter the size that all agree on, with the first name and axis it has."""
    found = {}
    for name, (value, letters) in named.items():
        if value.shape.rank != len(letters):
            raise ValueError(
                f"`{name}` must have rank {len(letters)}. Received: shape={value.shape}"
            )
        for axis, (letter, size) in enumerate(zip(letters, value.shape, strict=True)):
            if size is None:
                continue
            expected, other, other_axis = found.setdefault(letter, (size, name, axis))
            if size != expected:
                raise ValueError(
                    f"`{name}` must have size {expected} in axis {axis}, as `{other}` has in "
                    f"axis {other_axis}. Received: {name}.shape={value.shape}"
                )
    return found
