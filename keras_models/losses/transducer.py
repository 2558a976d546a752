"""The transducer loss, and the lattice's occupancies."""

import tensorflow as tf

from keras_models import BLANK
from keras_models.losses.additive import (
    additive_transducer_loss,
    additive_transducer_occupancies,
)
from keras_models.losses.arcs import (
    check_arguments,
    gradient_by_logits,
    once,
    pulls_of_arcs,
    score_arcs,
    symbols_of_arcs,
)
from keras_models.losses.fused import fused_transducer_loss
from keras_models.losses.lattice import (
    TransducerOccupancies,
    occupancies_of,
    transducer_lattice,
)
from keras_models.losses.pruned import band_of_occupancies, pruned_transducer_loss

__all__ = [
    "TransducerOccupancies",
    "additive_transducer_loss",
    "additive_transducer_occupancies",
    "band_of_occupancies",
    "fused_transducer_loss",
    "pruned_transducer_loss",
    "transducer_lattice",
    "transducer_loss",
    "transducer_occupancies",
]


def transducer_loss(
    logits,
    labels,
    logit_lengths,
    label_lengths,
    blank=BLANK,
    *,
    monotonic=False,
    factored_blank=False,
    fastemit=0.0,
):
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

    Where the joint scores are a sum, `additive_transducer_loss` needs none of their size; where
    they come of a hidden layer, neither does `fused_transducer_loss`. `pruned_transducer_loss`
    sums over fewer paths.

    Args:
        logits: `[B, T, U + 1, V]` floats, unnormalised.
        labels: `[B, U]` integers in `[0, V)`, none of them `blank`.
        logit_lengths: `[B]` integers, frames of each example, in `[0, T]`.
        label_lengths: `[B]` integers, labels of each example, in `[0, U]`.
        blank: the symbol that consumes a frame, in `[0, V)`.
        monotonic: whether a label consumes a frame, too, and leads to `(t + 1, u + 1)`, so that
            each frame has one symbol (Tripathi, Lu, Sak, Soltau 2019, "Monotonic recurrent
            neural network transducer and decoding strategies"; Sak et al. 2017). Then the last
            step may be a label, and there is no path for more labels than frames.
        factored_blank: whether the blank has a Bernoulli distribution of its own, as in the
            hybrid autoregressive transducer (Variani, Rybach, Allauzen, Riley 2020,
            arXiv 2003.07705): its probability b is the sigmoid of its logit, and softmax over
            all other logits, times 1 − b, is that of the labels.
        fastemit: λ ≥ 0 of FastEmit (Yu et al. 2021, arXiv 2010.11148), which favours labels over
            blanks: the gradient by the probability of each label's arc is multiplied by 1 + λ.
            The loss returned remains the negative log-likelihood.

    Returns:
        `[B]` float32, in nats. Where there is no path (labels but no frame, or a label whose
        logit is −inf throughout) the loss is inf and its gradient 0; with neither frame nor label
        both are 0.

    Raises:
        ValueError: static shapes, dtypes or `blank` do not fit together.
    """
    logits, labels, logit_lengths, label_lengths = _checked(
        logits, labels, logit_lengths, label_lengths, blank
    )
    symbols = symbols_of_arcs(labels, tf.shape(logits)[3])[:, None]

    @tf.custom_gradient
    def losses_of(logits):
        arcs = score_arcs(logits, symbols, blank, factored_blank)
        lattice = transducer_lattice(
            arcs.blanks, arcs.labels, logit_lengths, label_lengths, monotonic
        )

        def gradient(upstream):
            pulls = pulls_of_arcs(lattice, arcs, upstream, factored_blank, fastemit)
            by_logits = gradient_by_logits(logits, arcs, pulls, symbols, blank, factored_blank)
            return once(by_logits, "transducer_loss")

        return lattice.losses, gradient

    return losses_of(logits)


def transducer_occupancies(
    logits,
    labels,
    logit_lengths,
    label_lengths,
    blank=BLANK,
    *,
    monotonic=False,
    factored_blank=False,
):
    """Returns the `TransducerOccupancies` of nodes and arcs: the posterior over alignments.

    They are constants, with no gradient to the logits. Arguments are those of `transducer_loss`.
    """
    logits, labels, logit_lengths, label_lengths = _checked(
        logits, labels, logit_lengths, label_lengths, blank
    )
    symbols = symbols_of_arcs(labels, tf.shape(logits)[3])[:, None]
    arcs = score_arcs(tf.stop_gradient(logits), symbols, blank, factored_blank)
    return occupancies_of(
        transducer_lattice(arcs.blanks, arcs.labels, logit_lengths, label_lengths, monotonic)
    )


def _checked(logits, labels, logit_lengths, label_lengths, blank):
    """Returns the arguments as tensors."""
    tensors = [tf.convert_to_tensor(x) for x in (logits, labels, logit_lengths, label_lengths)]
    check_arguments({"logits": (tensors[0], "BTWV")}, *tensors[1:], blank)
    return tensors
