"""Symbols are drawn from the distribution that temperature, top-k and top-p make, and no other."""

import numpy as np
import pytest
import tensorflow as tf

from keras_models.decoding.sampling import Sampling, Scores, distribution, pick, sample, uniform

RANDOM = np.random.default_rng(5)
ROWS, SIZE = 6, 9
SYMBOLS = np.log(RANDOM.dirichlet(np.ones(SIZE), ROWS)).astype(np.float32)
NEVER = np.full(ROWS, -np.inf, np.float32)
CASES = [
    (1.0, 0, 1.0),
    (0.5, 0, 1.0),
    (3.0, 4, 1.0),
    (1.0, 1, 1.0),
    (1.0, 99, 1.0),
    (1.0, 0, 0.6),
    (0.7, 5, 0.8),
    (1.0, 0, 0.0),
    (0.0, 0, 1.0),
]


def how(temperature=1.0, top_k=0, top_p=1.0, rows=ROWS):
    return Sampling(tf.fill([rows], temperature), tf.fill([rows], top_k), tf.fill([rows], top_p))


def by_hand(scores, temperature, top_k, top_p):
    """Returns the distribution of one row, by its definition."""
    order = sorted(range(len(scores)), key=lambda n: -scores[n])
    if temperature == 0:
        return np.eye(len(scores))[order[0]]
    weights = np.exp(scores.astype(float) / temperature)
    order = order[:top_k] if top_k else order
    share, kept = 0.0, []
    for n in order:
        if kept and share >= top_p:
            break
        kept.append(n)
        share += weights[n] / weights[order].sum()
    found = np.zeros(len(scores))
    found[kept] = weights[kept] / weights[kept].sum()
    return found


@pytest.mark.parametrize("case", CASES)
def test_the_distribution_is_the_one_defined(case):
    found = distribution(Scores(SYMBOLS, NEVER), how(*case)).numpy()
    expected = np.array([by_hand(row, *case) for row in SYMBOLS])
    assert ((found > 0) == (expected > 0)).all()
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_each_row_has_its_own_way_of_drawing():
    temperatures, ks, ps = zip(*CASES[:ROWS], strict=True)
    mixed = Sampling(tf.constant(temperatures), tf.constant(ks), tf.constant(ps))
    found = distribution(Scores(SYMBOLS, NEVER), mixed).numpy()
    for n, case in enumerate(CASES[:ROWS]):
        np.testing.assert_allclose(found[n], by_hand(SYMBOLS[n], *case), atol=1e-6)


def test_of_the_equally_likely_the_first_are_kept():
    level = Scores(tf.zeros([1, 5]), tf.constant([-np.inf]))
    np.testing.assert_allclose(
        distribution(level, how(top_k=2, rows=1)), [[0.5, 0.5, 0, 0, 0]], atol=1e-12
    )


def test_top_p_of_one_keeps_the_least_likely():
    scores = Scores(tf.math.log([[0.0, 1 - 1e-12, 1e-12, 1e-30]]), tf.constant([-np.inf]))
    assert (distribution(scores, how(rows=1)).numpy()[0, 1:] > 0).all()


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_a_stop_apart_is_drawn_apart(temperature):
    stop = np.array([-np.inf, -2, -0.1, 0.1, 2, np.inf], np.float32)
    symbols = SYMBOLS.copy()
    symbols[:, 0] = -np.inf
    found = distribution(Scores(symbols, stop), how(temperature, top_k=3)).numpy()
    odds = stop.astype(float)
    expected = 1 / (1 + np.exp(-odds / temperature)) if temperature else odds > 0
    np.testing.assert_allclose(found[:, 0], expected, atol=1e-7)
    np.testing.assert_allclose(found.sum(axis=1), 1)
    assert ((found[1:-1, 1:] > 0).sum(axis=1) <= 3).all()


def test_a_number_falls_on_the_symbol_whose_share_it_is_in():
    shares = np.array([0.0, 0.25, 0.0, 0.5, 0.25, 0.0])
    numbers = np.array([0.0, 0.2499, 0.25, 0.7499, 0.75, 1 - 2**-32])
    found = pick(np.tile(shares, [6, 1]), numbers)
    np.testing.assert_array_equal(found, [1, 1, 3, 3, 4, 4])


def test_numbers_are_uniform_and_those_of_a_seed():
    numbers = uniform(tf.range(50, dtype=tf.int64), 200).numpy()
    np.testing.assert_array_equal(uniform(tf.constant([7, 3], tf.int64), 200), numbers[[7, 3]])
    assert numbers.min() >= 0
    assert numbers.max() < 1
    assert len(np.unique(numbers)) > 9_990
    counts = np.histogram(numbers, 20, (0, 1))[0]
    assert ((counts - 500) ** 2 / 500).sum() < 43.8  # chi-square, 19 degrees, 0.1 %


def test_symbols_are_drawn_as_often_as_they_are_likely():
    """Of a chain in which each symbol depends on the one before it."""
    chain = np.log(RANDOM.dirichlet(np.ones(4), 4)).astype(np.float32)
    rows, length = 4000, 3
    drawn = sample(
        lambda last: (Scores(tf.gather(chain, last), tf.fill([rows], -np.inf)), ()),
        lambda symbols, last, _: symbols,
        tf.zeros([rows], tf.int32),
        how(rows=rows),
        tf.function(uniform)(tf.range(rows, dtype=tf.int64), length),
        tf.fill([rows], length),
    )
    texts = [tuple(row) for row in drawn.symbols.numpy().tolist()]
    expected = {}
    for a, b, c in np.ndindex(4, 4, 4):
        path = (a, b if a else 0, c if a and b else 0)
        if path == (a, b, c) or (a, b, c)[-1] == 0:
            steps = [(0, path[0]), *([(path[0], path[1])] if path[0] else [])]
            steps += [(path[1], path[2])] if path[0] and path[1] else []
            expected[path] = float(np.exp(sum(chain[x] for x in steps)))
    assert abs(sum(expected.values()) - 1) < 1e-5
    chi_square = sum(
        (texts.count(text) - rows * p) ** 2 / (rows * p) for text, p in expected.items()
    )
    assert set(texts) <= expected.keys()
    assert chi_square < 78  # 39 degrees of freedom, 0.02 %
    for text, log_probability, ended in zip(
        texts, drawn.log_probability.numpy(), drawn.ended.numpy(), strict=True
    ):
        np.testing.assert_allclose(log_probability, np.log(expected[text]), atol=1e-4)
        assert ended == (0 in text)
