"""Search for the output of a decoder that goes on symbol by symbol, until it ends by itself."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_models import PADDING

# The symbol that a decoder is asked to begin with, and that it ends with: neither is in an output.
START = END = PADDING

_NEVER = float("-inf")
# What an input symbol that nothing attended to is taken to have had.
_LEAST_COVERAGE = 1e-9


class Decoding(NamedTuple):
    """What a search found: `K` hypotheses an example, the best one first."""

    tokens: tf.Tensor  # [B, K, U] int32, padded with PADDING
    lengths: tf.Tensor  # [B, K] int32
    log_probability: tf.Tensor  # [B, K] float32, in nats; -inf where there is none


class _Beam(NamedTuple):
    tokens: tf.Tensor  # [B, K, U] int32
    lengths: tf.Tensor  # [B, K] int32
    last: tf.Tensor  # [B, K] int32, the last symbol
    log_probability: tf.Tensor  # [B, K]; that of a place without a hypothesis is -inf
    rank: tf.Tensor  # [B, K], what it is ranked by
    finished: tf.Tensor  # [B, K] bool
    coverage: tf.Tensor  # [B, K, T], the attention that each input symbol had
    state: object  # nest of [B, K, …]


def beam_search(
    step: Callable,
    initial_state,
    limits: tf.Tensor,
    input_mask: tf.Tensor,
    *,
    beam: int,
    width,
    length_penalty: float = 0.0,
    coverage_penalty: float = 0.0,
) -> Decoding:
    """Returns the `K` best hypotheses of each example.

    At every step each hypothesis becomes as many as there are symbols; of those and of the ones
    that have ended, the `K` highest in rank stay. A hypothesis `Y` ranks by (Wu et al. 2016)

        log P(Y) / ((5 + |Y|) / 6)^length_penalty
            + coverage_penalty · Σ_t log min(1, Σ_u attention of step u to input t)

    the second part from when all have ended. A beam of 1 takes the likeliest symbol at every step:
    it is the greedy search. A beam with room for all prefixes finds every hypothesis.

    The search is one `tf.while_loop`: in a graph, in an exported one, eagerly, and under XLA where
    `width` is known from shapes.

    Args:
        step: Function `(labels [B, K], state) -> (scores [B, K, V], attention [B, K, T], state)`:
            the log-probability of each next symbol after one more label each, the attention paid
            for it, and the state. The first labels are `START`. `END` among the next ends it.
        initial_state: Nest of tensors `[B, …]`: the state before `START`.
        limits: `[B]` int32, the most symbols of an example's output. Where they are reached `END`
            is taken, whatever its probability.
        input_mask: `[B, T]` bool, where there are input symbols.
        beam: `K`, at least 1.
        width: Columns of the tokens, no less than any limit.
        length_penalty: See above; at least 0.
        coverage_penalty: See above; at least 0.
    """
    if beam < 1:
        raise ValueError(f"Argument `beam` must be at least 1. Received: beam={beam}")

    def body(*values):
        found = _Beam(*values)
        scores, attention, state = step(found.last, found.state)
        return _best(found, _allowed(found, scores, limits), attention, state, length_penalty)

    end = tf.while_loop(
        lambda *values: _goes_on(_Beam(*values)),
        body,
        _start(initial_state, input_mask, beam, width),
    )
    return _ranked(_Beam(*end), input_mask, coverage_penalty)


def _start(initial_state, input_mask, beam, width) -> _Beam:
    """Returns beams with one hypothesis, that of no symbols."""
    batch = tf.shape(input_mask)[0]
    zeros = tf.zeros([batch, beam], tf.int32)
    first = tf.where(tf.range(beam) + zeros == 0, 0.0, _NEVER)
    return _Beam(
        tokens=tf.fill([batch, beam, width], PADDING),
        lengths=zeros,
        last=zeros + START,
        log_probability=first,
        rank=first,
        finished=tf.zeros_like(zeros, tf.bool),
        coverage=repeated(tf.zeros_like(input_mask, tf.float32), beam),
        state=tf.nest.map_structure(lambda x: repeated(x, beam), initial_state),
    )


def repeated(values: tf.Tensor, beam: int) -> tf.Tensor:
    """Returns `[B, K, …]`, the same for each of `K`, for `[B, …]`."""
    return tf.tile(values[:, tf.newaxis], [1, beam, *[1] * (values.shape.rank - 1)])


def _goes_on(found: _Beam) -> tf.Tensor:
    return tf.reduce_any(~found.finished & (found.log_probability > _NEVER))


def _allowed(found: _Beam, scores: tf.Tensor, limits: tf.Tensor) -> tf.Tensor:
    """Returns the scores `[B, K, V]` with those of what may not follow at -inf.

    What has ended stays as it is: it is followed by `END` alone, and for certain.
    """
    ends = tf.range(tf.shape(scores)[2]) == END
    full = (found.lengths >= limits[:, tf.newaxis])[..., tf.newaxis]
    scores = tf.where(full & ~ends, _NEVER, tf.cast(scores, tf.float32))
    return tf.where(found.finished[..., tf.newaxis], tf.where(ends, 0.0, _NEVER), scores)


def _best(found: _Beam, scores, attention, state, length_penalty: float) -> _Beam:
    """Returns a beam of the candidates that rank highest."""
    beam, symbols = found.tokens.shape[1], tf.shape(scores)[2]
    totals = found.log_probability[..., tf.newaxis] + scores  # [B, K, V]
    ends = tf.range(symbols) == END
    lengths = found.lengths[..., tf.newaxis] + tf.where(ends, 0, 1)
    ranks = totals / ((5.0 + tf.cast(lengths, tf.float32)) / 6.0) ** length_penalty
    flat = [tf.shape(scores)[0], beam * symbols]
    rank, place = tf.math.top_k(tf.reshape(ranks, flat), beam)
    parent, label = place // symbols, place % symbols

    def of_parent(values):
        return tf.gather(values, parent, batch_dims=1)

    finished = of_parent(found.finished)
    coverage = found.coverage + tf.where(found.finished[..., tf.newaxis], 0.0, attention)
    at_end = tf.range(tf.shape(found.tokens)[2]) == of_parent(found.lengths)[..., tf.newaxis]
    written = at_end & (label != END)[..., tf.newaxis]
    return _Beam(
        tokens=tf.where(written, label[..., tf.newaxis], of_parent(found.tokens)),
        lengths=of_parent(found.lengths) + tf.where(label == END, 0, 1),
        last=label,
        log_probability=tf.gather(tf.reshape(totals, flat), place, batch_dims=1),
        rank=rank,
        finished=finished | (label == END),
        coverage=of_parent(coverage),
        state=tf.nest.map_structure(of_parent, state),
    )


def _ranked(found: _Beam, input_mask, coverage_penalty: float) -> Decoding:
    """Returns the hypotheses by their rank, with their coverage counted."""
    covered = tf.math.log(tf.clip_by_value(found.coverage, _LEAST_COVERAGE, 1.0))
    covered = tf.where(input_mask[:, tf.newaxis], covered, 0.0)
    rank = found.rank + coverage_penalty * tf.reduce_sum(covered, axis=-1)
    order = tf.argsort(rank, direction="DESCENDING", stable=True)
    present = found.log_probability > _NEVER
    tokens = tf.where(present[..., tf.newaxis], found.tokens, PADDING)
    lengths = tf.where(present, found.lengths, 0)
    found = (tokens, lengths, found.log_probability)
    return Decoding(*(tf.gather(values, order, batch_dims=1) for values in found))
