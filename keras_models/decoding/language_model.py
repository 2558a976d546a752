"""A transducer and a language model searched as one."""

from typing import NamedTuple

import tensorflow as tf

from keras_models import BLANK
from keras_models.decoding.transducer import Steps


class FusedState(NamedTuple):
    """What both carry with a hypothesis."""

    steps: object  # nest of [N, …]
    language_model: object  # nest of [N, …]


def with_language_model(steps: Steps, language_model: Steps, weight: float, blank=BLANK) -> Steps:
    """Returns steps for any search, in which a language model has a say in every label.

        score(k | t, y) = log P(k | t, y) + weight · log P_LM(k | y)       for every label k,

    and that of the blank as it was: "shallow fusion" (Kannan et al. 2018, arXiv 1712.01996).
    A transducer has learnt a language model of its training's transcripts. Where another domain is
    to be searched that one is taken out by a model of those transcripts, fused as well with a
    negative weight (the "density ratio" of McDermott, Sak and Variani 2019, arXiv 2002.11268):

        steps = with_language_model(steps, target, 0.5)
        steps = with_language_model(steps, source, -0.3)

    Args:
        steps: those of the transducer, or of what this function has returned.
        language_model: its `score` gives log-probabilities over the same symbols, finite where
            the weight is negative, and takes no notice of frames; what it gives the blank is not
            looked at. Its state before any label is `[B, …]`, too.
        weight: see above.
        blank: the symbol that consumes a frame.
    """

    def score(frames, state):
        scores = steps.score(frames, state.steps)
        spoken = language_model.score(frames, state.language_model)
        labels = tf.range(scores.shape[-1]) != blank
        return tf.where(labels, scores + weight * tf.cast(spoken, scores.dtype), scores)

    def advance(labels, state):
        return FusedState(
            steps.advance(labels, state.steps),
            language_model.advance(labels, state.language_model),
        )

    return Steps(score, advance, FusedState(steps.initial_state, language_model.initial_state))
