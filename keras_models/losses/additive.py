"""The transducer loss of a joint that is a sum, without the sum ever being held."""

import tensorflow as tf

from keras_models import BLANK
from keras_models.losses.arcs import (
    check_arguments,
    normalise_arcs,
    once,
    pulls_of_arcs,
    symbols_of_arcs,
    without_blank,
)
from keras_models.losses.lattice import occupancies_of, transducer_lattice

# Of a sum of products this large, nothing that float32 loses below 2^−126 is missed.
_LEAST = 2.0**-80


def additive_transducer_loss(
    encoder_scores,
    predictor_scores,
    labels,
    logit_lengths,
    label_lengths,
    blank=BLANK,
    *,
    monotonic=False,
    factored_blank=False,
    fastemit=0.0,
):
    """Returns `transducer_loss` of the joint scores `f(t) + g(u)` (Graves 2012, arXiv 1211.3711).

    The joint scores `[B, T, U + 1, V]` are never held. What normalises them is one product:

        Σ_v exp(f(t, v) + g(u, v)) = exp(F(t) + G(u)) Σ_v exp(f(t, v) − F(t)) exp(g(u, v) − G(u))

    with F and G the greatest scores over symbols, and the gradients are two products more. Time
    is that of three products `T × V × U` an example, memory O(B (T + U) V + B T U).

    That product is taken where it is at least 2^−80, which is so wherever some symbol is within
    55 nats of F(t) + G(u). Elsewhere, where encoder and predictor contradict each other that
    firmly, float32 might have lost the terms that count: the frames with such a node are computed
    once more from f + g itself, one frame at a time. Results are thus as exact as those of
    `transducer_loss` for scores of any size. If all frames are such, that takes the time of two
    times T U V exponentials, and no more memory.

    Args:
        encoder_scores: `[B, T, V]` floats, f, unnormalised.
        predictor_scores: `[B, U + 1, V]` floats, g, unnormalised.
        labels: `[B, U]` integers in `[0, V)`, none of them `blank`.
        logit_lengths: `[B]` integers, frames of each example, in `[0, T]`.
        label_lengths: `[B]` integers, labels of each example, in `[0, U]`.
        blank: the symbol that consumes a frame, in `[0, V)`.
        monotonic: as for `transducer_loss`.
        factored_blank: as for `transducer_loss`.
        fastemit: as for `transducer_loss`.

    Returns:
        `[B]` float32, in nats, as `transducer_loss` does; so are padding and dtypes.

    Raises:
        ValueError: static shapes, dtypes or `blank` do not fit together.
    """
    encoder_scores, predictor_scores, labels, logit_lengths, label_lengths = _checked(
        encoder_scores, predictor_scores, labels, logit_lengths, label_lengths, blank
    )
    if encoder_scores.shape[1] == 0:
        # XLA takes nothing from an empty list, not even where there is nothing to be done.
        encoder_scores = tf.pad(encoder_scores, [[0, 0], [0, 1], [0, 0]])
    symbols = symbols_of_arcs(labels, tf.shape(encoder_scores)[2])

    @tf.custom_gradient
    def losses_of(encoder_scores, predictor_scores):
        f = _within(encoder_scores, logit_lengths)
        g = _within(predictor_scores, label_lengths + 1)
        joint = _Joint(f, g, blank, factored_blank)
        arcs = joint.arcs(symbols)
        lattice = transducer_lattice(
            arcs.blanks, arcs.labels, logit_lengths, label_lengths, monotonic
        )

        def gradient(upstream):
            pulls = pulls_of_arcs(lattice, arcs, upstream, factored_blank, fastemit)
            by_f, by_g = joint.gradients(arcs, pulls, symbols)
            name = "additive_transducer_loss"
            return (
                once(tf.cast(by_f, encoder_scores.dtype), name),
                once(tf.cast(by_g, predictor_scores.dtype), name),
            )

        return lattice.losses, gradient

    return losses_of(encoder_scores, predictor_scores)


def additive_transducer_occupancies(
    encoder_scores,
    predictor_scores,
    labels,
    logit_lengths,
    label_lengths,
    blank=BLANK,
    *,
    monotonic=False,
    factored_blank=False,
):
    """Returns `transducer_occupancies` of the joint scores `f(t) + g(u)`, which are never held.

    They are constants, with no gradient. Arguments are those of `additive_transducer_loss`.
    """
    encoder_scores, predictor_scores, labels, logit_lengths, label_lengths = _checked(
        encoder_scores, predictor_scores, labels, logit_lengths, label_lengths, blank
    )
    f = tf.stop_gradient(_within(encoder_scores, logit_lengths))
    g = tf.stop_gradient(_within(predictor_scores, label_lengths + 1))
    arcs = _Joint(f, g, blank, factored_blank).arcs(symbols_of_arcs(labels, tf.shape(f)[2]))
    return occupancies_of(
        transducer_lattice(arcs.blanks, arcs.labels, logit_lengths, label_lengths, monotonic)
    )


def _checked(encoder_scores, predictor_scores, *rest):
    """Returns the arguments as tensors, but for the blank."""
    *rest, blank = rest
    f, g, *rest = [tf.convert_to_tensor(x) for x in (encoder_scores, predictor_scores, *rest)]
    check_arguments({"encoder_scores": (f, "BTV"), "predictor_scores": (g, "BWV")}, *rest, blank)
    return f, g, *rest


def _within(scores, lengths):
    """Returns scores in float32, 0 past the lengths."""
    mask = tf.sequence_mask(lengths, tf.shape(scores)[1])[:, :, None]
    return tf.where(mask, tf.cast(scores, tf.float32), 0.0)


class _Joint:
    """The scores f + g of float32 `[B, T, V]` and `[B, U + 1, V]`, by their exponentials."""

    def __init__(self, f, g, blank, factored_blank):
        self._f, self._g, self._blank, self._factored_blank = f, g, blank, factored_blank
        # What the softmax is over.
        self._of_f, self._of_g = f, g
        if factored_blank:
            self._of_f, self._of_g = without_blank(f, blank), without_blank(g, blank)
        self._f_tops = tf.reduce_max(self._of_f, axis=2, keepdims=True)  # [B, T, 1]
        self._g_tops = tf.reduce_max(self._of_g, axis=2)[:, None, :]  # [B, 1, U + 1]
        self._f_exp = tf.exp(self._of_f - self._f_tops)
        self._g_exp = tf.exp(self._of_g - tf.transpose(self._g_tops, [0, 2, 1]))
        products = tf.einsum("btv,buv->btu", self._f_exp, self._g_exp)
        self._safe = products >= _LEAST  # [B, T, U + 1]
        self._tops, self._sums = self._normalisers(products)

    def arcs(self, symbols):
        """Returns the `Arcs` for the labels that lead on from each column, `[B, U + 1]`."""
        f_labels = tf.gather(self._of_f, symbols, axis=2, batch_dims=1)  # [B, T, U + 1]
        g_labels = tf.gather(self._of_g, symbols, axis=2, batch_dims=2)[:, None, :]
        f_blanks, g_blanks = self._f[:, :, self._blank, None], self._g[:, None, :, self._blank]
        if self._factored_blank:
            blanks = f_blanks + g_blanks
        else:
            blanks = self._less_tops(f_blanks, g_blanks)
        labels = self._less_tops(f_labels, g_labels)
        return normalise_arcs(blanks, labels, self._tops, self._sums, self._factored_blank)

    def gradients(self, arcs, pulls, symbols):
        """Returns the gradients by f and g."""
        weights = tf.math.multiply_no_nan(1.0 / arcs.sums, pulls.nodes)  # [B, T, U + 1]
        safe = tf.where(self._safe, weights, 0.0)
        by_f = self._f_exp * tf.einsum("btu,buv->btv", safe, self._g_exp)
        by_g = self._g_exp * tf.einsum("btu,btv->buv", safe, self._f_exp)
        by_f, by_g = self._add_unsafe(by_f, by_g, tf.where(self._safe, 0.0, weights))
        size = tf.shape(by_f)[2]
        at_blank = tf.one_hot(self._blank, size)
        at_labels = tf.one_hot(symbols, size)  # [B, U + 1, V]
        by_f -= tf.reduce_sum(pulls.blanks, axis=2)[:, :, None] * at_blank
        by_f -= tf.einsum("btu,buv->btv", pulls.labels, at_labels)
        by_g -= tf.reduce_sum(pulls.blanks, axis=1)[:, :, None] * at_blank
        by_g -= tf.reduce_sum(pulls.labels, axis=1)[:, :, None] * at_labels
        return by_f, by_g

    def _less_tops(self, f, g):
        """Returns f + g less the tops, with no digit lost that is still there at the end."""
        shifted = (f - self._f_tops) + (g - self._g_tops)
        return tf.where(self._safe, shifted, (f + g) - self._tops)

    def _normalisers(self, products):
        """Returns the tops and sums of `Arcs`: from the products, where these are safe."""
        tops = self._f_tops + self._g_tops

        def at_frame(t):
            scores = self._scores_at(t)
            tops = tf.reduce_max(scores, axis=2)
            return tops, tf.reduce_sum(tf.exp(scores - tops[:, :, None]), axis=2)

        def step(t, *found):
            given = tops[:, t], products[:, t]
            safe = self._safe[:, t]
            exact = tf.cond(tf.reduce_all(safe), lambda: given, lambda: at_frame(t))
            exact = [tf.where(safe, *pair) for pair in zip(given, exact, strict=True)]
            return t + 1, *(x.write(t, y) for x, y in zip(found, exact, strict=True))

        def at_all_frames():
            found = self._loop(step, self._rows(products), self._rows(products))
            return tuple(tf.transpose(x.stack(), [1, 0, 2]) for x in found)

        return tf.cond(tf.reduce_all(self._safe), lambda: (tops, products), at_all_frames)

    def _add_unsafe(self, by_f, by_g, weights):
        """Returns both gradients with those of the nodes whose product was not safe, `weights`."""

        def at_frame(t, by_g):
            softmax = tf.exp(self._scores_at(t) - self._tops[:, t, :, None])  # [B, U + 1, V]
            pulled = tf.math.multiply_no_nan(softmax, weights[:, t, :, None])
            return tf.reduce_sum(pulled, axis=1), by_g + pulled

        def step(t, by_g, found):
            nothing = tf.zeros_like(by_f[:, t])
            safe = tf.reduce_all(self._safe[:, t])
            row, by_g = tf.cond(safe, lambda: (nothing, by_g), lambda: at_frame(t, by_g))
            return t + 1, by_g, found.write(t, row)

        def at_all_frames():
            more, found = self._loop(step, by_g, self._rows(by_f))
            return by_f + tf.transpose(found.stack(), [1, 0, 2]), more

        return tf.cond(tf.reduce_all(self._safe), lambda: (by_f, by_g), at_all_frames)

    def _scores_at(self, t):
        return self._of_f[:, t, None, :] + self._of_g  # [B, U + 1, V]

    def _loop(self, step, *state):
        frames = tf.shape(self._f)[1]
        state = tf.while_loop(lambda t, *_: t < frames, step, (0, *state), parallel_iterations=1)
        return state[1:]

    @staticmethod
    def _rows(like):
        shape = like.shape[:1] + like.shape[2:]
        return tf.TensorArray(tf.float32, tf.shape(like)[1], element_shape=shape)
