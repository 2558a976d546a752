"""Texts drawn at random from a model, each row by a seed of its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_models import PADDING

# Number 0 is what ends a text, and pads it.
_STOP = PADDING


class Scores(NamedTuple):
    """What may follow: either the text ends here, or one of the symbols does."""

    symbols: tf.Tensor  # [B, V] float32, log P of each, if the text does not stop here
    stop: tf.Tensor  # [B] float32, log-odds that it does; -inf where a symbol ends texts, if any


class Sampling(NamedTuple):
    """How symbols are drawn, for each row `[B]`."""

    temperature: tf.Tensor
    """float32: what log-probabilities and log-odds are divided by; 0 takes the likeliest."""
    top_k: tf.Tensor
    """int32: of how many of the likeliest symbols one is drawn; 0 or less: of all."""
    top_p: tf.Tensor
    """float32: one is drawn of as many of these as it takes to have this share of their
    probability; 1: of all, and 0: the likeliest."""


class Sample(NamedTuple):
    """What was drawn."""

    symbols: tf.Tensor  # [B, U] int32, padded with 0
    log_probability: tf.Tensor  # [B] float32: of the model, which knows of no temperature
    ended: tf.Tensor  # [B] bool: by itself, and not where as many symbols as allowed were drawn


class _Draws(NamedTuple):
    step: tf.Tensor
    running: tf.Tensor  # [B] bool
    state: object
    symbols: tf.TensorArray  # of [B]
    log_probability: tf.Tensor  # [B]


def sample(
    scores: Callable, advance: Callable, state, how: Sampling, uniforms, max_length
) -> Sample:
    """Returns a text for each row, drawn symbol by symbol until one stops it.

    A row's text depends on nothing of another row. Wholly in graph: one `tf.while_loop`.

    Args:
        scores: Function `state -> (Scores, memory)`.
        advance: Function `(symbols [B] int32, state, memory) -> state`: after one more symbol.
        state: Nest of `[B, …]`, before the first symbol that is drawn.
        how: See there.
        uniforms: `[B, U]` float64 in [0, 1), one for each symbol that may be drawn.
        max_length: `[B]` int32, at most `U`: how many symbols to draw at most.
    """
    most = tf.reduce_max(tf.concat([[0], max_length], 0))
    rows = tf.shape(max_length)[0]
    # Number 0 of the array makes that it is never empty.
    symbols = tf.TensorArray(tf.int32, 1, dynamic_size=True, element_shape=[None])
    symbols = symbols.write(0, tf.fill([rows], _STOP))

    def step(draws):
        found, memory = scores(draws.state)
        symbol = pick(distribution(found, how), tf.gather(uniforms, draws.step, axis=1))
        gained = tf.gather(_log_probabilities(found), symbol, batch_dims=1)
        symbol = tf.where(draws.running, symbol, _STOP)
        running = draws.running & (symbol != _STOP) & (draws.step + 1 < max_length)
        return _Draws(
            draws.step + 1,
            running,
            advance(symbol, draws.state, memory),
            draws.symbols.write(draws.step + 1, symbol),
            draws.log_probability + tf.where(draws.running, gained, 0.0),
        )

    draws = tf.while_loop(
        lambda draws: (draws.step < most) & tf.reduce_any(draws.running),
        lambda draws: (step(draws),),
        (_Draws(tf.constant(0), max_length > 0, state, symbols, tf.zeros([rows])),),
    )[0]
    drawn = tf.transpose(draws.symbols.stack())[:, 1:]
    lengths = tf.math.count_nonzero(drawn != _STOP, axis=1, dtype=tf.int32)
    return Sample(drawn, draws.log_probability, lengths < max_length)


def distribution(scores: Scores, how: Sampling) -> tf.Tensor:
    """Returns the probability that each symbol is drawn, `[B, V]` float64; of number 0, to stop.

    First comes the temperature, then `top_k`, then `top_p` of what is left, and then whether to
    stop. Of symbols that are equally likely the one of the lower number goes before.
    """
    cold = how.temperature <= 0
    temperature = tf.cast(tf.where(cold, 1.0, how.temperature), tf.float64)
    tempered = tf.nn.softmax(tf.cast(scores.symbols, tf.float64) / temperature[:, tf.newaxis])
    size = tf.shape(tempered)[1]
    order = tf.argsort(tempered, axis=1, direction="DESCENDING", stable=True)
    most = tf.where(how.top_k > 0, how.top_k, size)
    most = tf.where(cold, 1, most)[:, tf.newaxis]
    likely = tf.where(tf.range(size) < most, tf.gather(tempered, order, batch_dims=1), 0.0)
    likely /= tf.reduce_sum(likely, axis=1, keepdims=True)
    share = tf.cast(how.top_p, tf.float64)[:, tf.newaxis]
    before = tf.cumsum(likely, axis=1, exclusive=True)
    likely = tf.where((before < share) | (share >= 1) | (tf.range(size) == 0), likely, 0.0)
    likely /= tf.reduce_sum(likely, axis=1, keepdims=True)
    symbols = tf.gather(likely, tf.argsort(order, axis=1), batch_dims=1)
    odds = tf.cast(scores.stop, tf.float64)
    stop = tf.where(cold, tf.cast(odds > 0, tf.float64), tf.sigmoid(odds / temperature))
    stop = stop[:, tf.newaxis]
    return symbols * (1 - stop) + stop * tf.one_hot(_STOP, size, dtype=tf.float64)


def pick(probabilities: tf.Tensor, uniforms: tf.Tensor) -> tf.Tensor:
    """Returns the symbols `[B]` int32 that numbers `[B]` in [0, 1) fall on, by `[B, V]` float64."""
    ends = tf.cumsum(probabilities, axis=1)
    places = uniforms[:, tf.newaxis] * ends[:, -1:]
    return tf.math.count_nonzero(ends <= places, axis=1, dtype=tf.int32)


def uniform(seeds: tf.Tensor, count: int) -> tf.Tensor:
    """Returns numbers in [0, 1), `[B, count]` float64, a row being a function of its seed alone.

    Args:
        seeds: `[B]` int64.
        count: How many a row.
    """

    def row(seed):
        bits = tf.random.stateless_uniform(
            [count], tf.stack([seed, 0]), None, None, tf.uint32, alg="philox"
        )
        return tf.cast(bits, tf.float64) / 2**32

    return tf.map_fn(row, seeds, fn_output_signature=tf.TensorSpec([count], tf.float64))


def _log_probabilities(scores: Scores) -> tf.Tensor:
    """Returns the model's own log P of each symbol and, as number 0, to stop, `[B, V]`."""
    stop, on = tf.math.log_sigmoid(scores.stop), tf.math.log_sigmoid(-scores.stop)
    size = tf.shape(scores.symbols)[1]
    symbols = scores.symbols + on[:, tf.newaxis]
    either = tf.reduce_logsumexp(tf.stack([symbols[:, _STOP], stop]), axis=0)
    return tf.where(tf.range(size) == _STOP, either[:, tf.newaxis], symbols)
