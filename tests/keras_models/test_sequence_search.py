"""Beam search symbol by symbol, beside every hypothesis there is."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from keras_models.decoding.sequence import END, beam_search

V, T, LIMIT = 4, 3, 3
INPUTS = [3, 2]
NEVER = -math.inf


class Model:
    """A decoder whose scores depend on all symbols before, by a state of its own."""

    def __init__(self, batch: int, seed: int = 0):
        random = np.random.default_rng(seed)
        self._table = random.normal(scale=2.0, size=(batch, 97, V))
        self._attention = random.dirichlet(np.ones(T), size=(batch, 97))
        self.initial_state = tf.fill([batch], 1)

    def step(self, labels, state):
        state = (state * V + labels) % 97
        scores = tf.gather(self._table, state, batch_dims=1)
        attention = tf.gather(tf.constant(self._attention, tf.float32), state, batch_dims=1)
        return tf.cast(tf.nn.log_softmax(scores), tf.float32), attention, state

    def follow(self, example: int, tokens):
        """Returns the log-probability of tokens and their end, and the coverage of the input."""
        state, total, coverage = 1, 0.0, np.zeros(T)
        for before, token in zip((END, *tokens), (*tokens, END), strict=True):
            state = (state * V + before) % 97
            scores = self._table[example, state]
            total += scores[token] - np.log(np.exp(scores).sum())
            coverage += self._attention[example, state]
        return total, coverage


def search(model, beam, limits=(LIMIT, LIMIT), **options):
    return beam_search(
        model.step,
        model.initial_state,
        tf.constant(limits),
        tf.sequence_mask(INPUTS, T),
        beam=beam,
        width=LIMIT + 1,
        **options,
    )


def hypotheses(found, example):
    """Returns (tokens, log-probability) of an example, best first."""
    tokens, lengths, scores = (value[example].numpy() for value in found)
    return [
        (tuple(row[:length].tolist()), float(score))
        for row, length, score in zip(tokens, lengths, scores, strict=True)
        if score > NEVER
    ]


def every(limit=LIMIT):
    return [y for n in range(limit + 1) for y in itertools.product(range(1, V), repeat=n)]


def rank(model, example, tokens, alpha, beta):
    """Returns the score of Wu et al. 2016, equations 14 and 15."""
    total, coverage = model.follow(example, tokens)
    covered = np.log(np.minimum(coverage[: INPUTS[example]], 1.0)).sum()
    return total * 6**alpha / (5 + len(tokens)) ** alpha + beta * covered


@pytest.mark.parametrize(("alpha", "beta"), [(0.0, 0.0), (0.7, 0.0), (0.0, 0.4), (1.3, 0.9)])
def test_a_beam_with_room_for_all_finds_every_hypothesis_in_the_order_of_its_rank(alpha, beta):
    model = Model(2)
    found = search(model, 60, length_penalty=alpha, coverage_penalty=beta)
    for example in range(2):
        expected = sorted(every(), key=lambda y: -rank(model, example, y, alpha, beta))
        listed = hypotheses(found, example)
        assert [tokens for tokens, _ in listed] == expected
        scores = [model.follow(example, tokens)[0] for tokens in expected]
        np.testing.assert_allclose([score for _, score in listed], scores, rtol=1e-4)


def test_places_without_a_hypothesis_are_padding_of_no_probability():
    tokens, lengths, scores = (value.numpy() for value in search(Model(2), 60))
    absent = scores == NEVER
    assert absent.sum(1).tolist() == [60 - len(every())] * 2
    assert not tokens[absent].any()
    assert not lengths[absent].any()


@pytest.mark.parametrize("seed", range(5))
def test_a_beam_of_one_takes_the_likeliest_symbol_at_every_step(seed):
    model = Model(2, seed)
    found = search(model, 1)
    for example in range(2):
        tokens, state, last = [], 1, END
        while len(tokens) < LIMIT:
            state = (state * V + last) % 97
            last = int(np.argmax(model._table[example, state]))
            if last == END:
                break
            tokens.append(last)
        [(found_tokens, score)] = hypotheses(found, example)
        assert found_tokens == tuple(tokens)
        assert score == pytest.approx(model.follow(example, tokens)[0], rel=1e-5)


def test_an_output_is_as_long_as_its_limit_at_most():
    found = search(Model(2), 60, limits=(0, 2))
    assert [tokens for tokens, _ in hypotheses(found, 0)] == [()]
    assert {tokens for tokens, _ in hypotheses(found, 1)} == set(every(2))


@pytest.mark.parametrize("beam", [1, 3])
def test_a_compiled_search_is_that_of_a_graph(beam):
    model = Model(2)
    penalties = {"length_penalty": 0.6, "coverage_penalty": 0.2}
    compiled = tf.function(lambda: search(model, beam, **penalties), jit_compile=True)()
    for found, expected in zip(compiled, search(model, beam, **penalties), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_a_beam_of_none_is_refused():
    with pytest.raises(ValueError, match=r"`beam` must be at least 1\. Received: beam=0"):
        search(Model(2), 0)
