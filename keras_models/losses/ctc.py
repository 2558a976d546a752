"""The loss of connectionist temporal classification (CTC), and its occupancies."""

from typing import NamedTuple

import tensorflow as tf

from keras_models import BLANK
from keras_models.losses.arcs import check_arguments, once
from keras_models.losses.lattice import LOG_ZERO, TransducerOccupancies


class CTCLattice(NamedTuple):
    """What is known of the states of CTC once all paths through them are summed.

    State `2u` is the blank after `u` labels, state `2u + 1` label `u`; `S = 2U + 1`. An occupancy
    is the probability that a path, drawn given the labels, is in a state at a frame. It is also
    minus the derivative of the loss by that state's score.
    """

    losses: tf.Tensor  # [B]
    occupancies: tf.Tensor  # [B, T, S]
    stays: tf.Tensor  # [B, T, S], the part of them that was in that state the frame before


def ctc_loss(logits, labels, logit_lengths, label_lengths, blank=BLANK):
    """Returns the negative log-likelihood of each example's labels under CTC.

    Every frame has one symbol, of which softmax gives the probability. A path through the frames
    stands for the labels that are left of it once what repeats is taken together and the blanks
    are taken out, so that a blank must part a label from the same one after it. The likelihood is
    the sum over all paths that stand for the labels (Graves, Fernández, Gomez, Schmidhuber 2006,
    "Connectionist temporal classification"). With the labels' states `s`, blanks between them,

        α(t, s) = (α(t − 1, s) + α(t − 1, s − 1) + α(t − 1, s − 2)) p(t, symbol of s)
        loss    = −log (α(T, 2U) + α(T, 2U − 1))

    where the third summand is there for a label that differs from the one before it. The gradient
    is in closed form: softmax less the occupancies of a symbol's states. Arithmetic is in float32
    and the gradient in the dtype of the logits. There is no second-order gradient.

    What lies past the lengths changes nothing, be it infinite or NaN, and has a gradient of 0.
    Labels past their length may be any integer.

    Args:
        logits: `[B, T, V]` floats, unnormalised.
        labels: `[B, U]` integers in `[0, V)`, none of them `blank`.
        logit_lengths: `[B]` integers, frames of each example, in `[0, T]`.
        label_lengths: `[B]` integers, labels of each example, in `[0, U]`.
        blank: the symbol between labels, in `[0, V)`.

    Returns:
        `[B]` float32, in nats. Where there is no path (fewer frames than labels and repetitions
        together, or a label whose logit is −inf throughout) the loss is inf and its gradient 0;
        with neither frame nor label both are 0.

    Raises:
        ValueError: static shapes, dtypes or `blank` do not fit together.
    """
    scores, *lattice = _states(logits, labels, logit_lengths, label_lengths, blank)

    @tf.custom_gradient
    def losses_of(scores):
        found = ctc_lattice(scores, *lattice)

        def gradient(upstream):
            # "no NaN": an infinite loss may well come back with an infinite weight.
            pulls = tf.math.multiply_no_nan(upstream[:, None, None], found.occupancies)
            return once(-pulls, "ctc_loss")

        return found.losses, gradient

    return losses_of(scores)


def ctc_occupancies(logits, labels, logit_lengths, label_lengths, blank=BLANK):
    """Returns the posterior over alignments, as of a transducer whose every arc takes a frame.

    A label is emitted at the first of its frames. In all others it counts as a blank after it.
    Arguments are those of `ctc_loss`; what is returned has no gradient to the logits.

    Returns:
        `TransducerOccupancies` of frames, in which `labels[b, t]` and `blanks[b, t]` together sum
        to 1.
    """
    states = _states(tf.stop_gradient(logits), labels, logit_lengths, label_lengths, blank)
    _, occupancies, stays = ctc_lattice(*states)
    repeated = stays[:, :, 1::2]  # [B, T, U]
    blanks = occupancies[:, :, ::2] + tf.pad(repeated, [[0, 0], [0, 0], [1, 0]])
    labels = tf.pad(occupancies[:, :, 1::2] - repeated, [[0, 0], [0, 0], [0, 1]])
    return TransducerOccupancies(blanks + labels, blanks, labels)


def ctc_lattice(scores, skips, logit_lengths, label_lengths):
    """Returns the `CTCLattice` of states with these scores.

    As in `transducer_lattice`, log α is shifted frame by frame to have a maximum of 0; backward
    there are no logarithms: the share of α that each state had from each of its three predecessors
    is known, and occupancies flow back in these proportions. This function is not to be
    differentiated; the derivatives are in what it returns.

    Args:
        scores: `[B, T, S]` float32, log-probability of each state's symbol at each frame.
        skips: `[B, S]` bool, whether a state may follow the one two before it.
        logit_lengths: `[B]` integers, frames of each example.
        label_lengths: `[B]` integers, labels of each example.
    """
    _, frames, states = tf.unstack(tf.shape(scores))
    # One frame more, past all lengths, for XLA, which wants one even if T is 0.
    in_frames = tf.sequence_mask(logit_lengths, frames + 1)
    scores = tf.pad(scores, [[0, 0], [0, 1], [0, 0]])
    # −inf only: `maximum` would swallow a NaN.
    scores = tf.where(scores < LOG_ZERO, LOG_ZERO, scores)
    alpha, scale, shares = _sum_paths(scores, in_frames, skips)
    last = 2 * tf.cast(label_lengths, tf.int32)[:, None] - tf.range(states)
    ends = tf.where((last == 0) | (last == 1), alpha, LOG_ZERO)
    log_probabilities = scale + tf.reduce_logsumexp(ends, axis=1)
    # Not `not >`: a NaN among the scores is to be seen in the loss.
    impossible = log_probabilities < LOG_ZERO / 2
    ends = tf.where(impossible[:, None], 0.0, tf.nn.softmax(ends))
    occupancies, stays = _push_back(shares, ends, in_frames)
    return CTCLattice(tf.where(impossible, float("inf"), -log_probabilities), occupancies, stays)


def _sum_paths(scores, in_frames, skips):
    """Returns log α after all frames, `[B, S]`, less a scale `[B]`, and shares `[T, 3, B, S]`.

    A state's shares are those that the state itself, the one before it and the one before that
    had in its α. Past the frames each state has all of its own.
    """
    batch, frames, states = tf.unstack(tf.shape(scores))
    ways = tf.stack([tf.ones_like(skips), tf.ones_like(skips), skips])  # [3, B, S]
    still = tf.reshape(tf.one_hot(0, 3), [3, 1, 1])
    scores = tf.TensorArray(tf.float32, frames).unstack(tf.transpose(scores, [1, 0, 2]))
    running = tf.TensorArray(tf.bool, frames).unstack(tf.transpose(in_frames)[:, :, None])
    shares = tf.TensorArray(tf.float32, frames, element_shape=[3, *skips.shape])
    scales = tf.TensorArray(tf.float32, frames, element_shape=skips.shape[:1])

    def step(frame, alpha, shares, scales):
        one_back = _shift_right(alpha)
        before = tf.stack([alpha, one_back, _shift_right(one_back)])
        before = tf.where(ways, before, LOG_ZERO)
        top = tf.reduce_max(before, axis=0)
        parts = tf.exp(before - top)
        total = tf.reduce_sum(parts, axis=0)
        runs = running.read(frame)
        sums = tf.where(runs, top + tf.math.log(total) + scores.read(frame), alpha)
        scale = tf.reduce_max(sums, axis=1)
        shares = shares.write(frame, tf.where(runs, parts / total, still))
        return frame + 1, sums - scale[:, None], shares, scales.write(frame, scale)

    # Before any frame, as if in the blank before the first label.
    alpha = tf.tile(tf.one_hot([0], states, 0.0, LOG_ZERO), [batch, 1])
    _, alpha, shares, scales = tf.while_loop(
        lambda frame, *_: frame < frames,
        step,
        (0, alpha, shares, scales),
        maximum_iterations=frames,
    )
    # Thousands of terms, often of one size and sign: their sum is the one place for float64.
    total = tf.reduce_sum(tf.cast(scales.stack(), tf.float64), axis=0)
    return alpha, tf.cast(total, tf.float32), shares.stack()


def _push_back(shares, ends, in_frames):
    """Returns the occupancies of states, and the part that stayed where it was, `[B, T, S]`."""
    frames = tf.shape(shares)[0]
    reads = tf.TensorArray(tf.float32, frames).unstack(shares)
    occupancies = tf.TensorArray(tf.float32, frames, element_shape=ends.shape)

    def step(frame, occupancy, occupancies):
        occupancies = occupancies.write(frame, occupancy)
        stay, one_back, two_back = tf.unstack(occupancy * reads.read(frame), num=3)
        return frame - 1, stay + _shift_left(one_back + _shift_left(two_back)), occupancies

    _, _, occupancies = tf.while_loop(
        lambda frame, *_: frame >= 0,
        step,
        (frames - 1, ends, occupancies),
        maximum_iterations=frames,
    )
    occupancies = occupancies.stack()
    both = tf.stack([occupancies, occupancies * shares[:, 0]])
    both = tf.where(in_frames[:, :, None], tf.transpose(both, [0, 2, 1, 3]), 0.0)
    return tf.unstack(both[:, :, :-1], num=2)


def _shift_right(x):
    return tf.pad(x[:, :-1], [[0, 0], [1, 0]], constant_values=LOG_ZERO)


def _shift_left(x):
    return tf.pad(x[:, 1:], [[0, 0], [0, 1]])


def _states(logits, labels, logit_lengths, label_lengths, blank):
    """Returns what `ctc_lattice` takes."""
    logits, labels, logit_lengths, label_lengths = (
        tf.convert_to_tensor(x) for x in (logits, labels, logit_lengths, label_lengths)
    )
    check_arguments({"logits": (logits, "BTV")}, labels, logit_lengths, label_lengths, blank)
    _, frames, size = tf.unstack(tf.shape(logits))
    in_frames = tf.sequence_mask(logit_lengths, frames)[:, :, None]
    # Softmax of what is NaN would have a gradient of NaN, whatever is taken of it.
    logits = tf.where(in_frames, tf.cast(logits, tf.float32), 0.0)
    labels = tf.clip_by_value(tf.cast(labels, tf.int32), 0, size - 1)
    skips = tf.pad(labels[:, 1:] != labels[:, :-1], [[0, 0], [1, 0]])[:, : tf.shape(labels)[1]]
    symbols, skips = _between(labels, blank), _between(skips, False)
    scores = tf.gather(tf.nn.log_softmax(logits), _each_frame(symbols, frames), batch_dims=2)
    return scores, skips, logit_lengths, label_lengths


def _between(values, filling):
    """Returns `[B, 2U + 1]`: values `[B, U]` with a filling before, between and after them."""
    batch, width = tf.unstack(tf.shape(values))
    both = tf.stack([tf.fill([batch, width], filling), values], axis=2)
    return tf.pad(tf.reshape(both, [batch, 2 * width]), [[0, 0], [0, 1]], constant_values=filling)


def _each_frame(symbols, frames):
    """Returns `[B, T, S]` for `[B, S]`."""
    return tf.tile(symbols[:, None], [1, frames, 1])
