"""Searches with language models and within tries, beside all paths of a tiny lattice."""

import numpy as np
import pytest
import tensorflow as tf

from keras_models.decoding.beam import beam_transducer_search
from keras_models.decoding.language_model import with_language_model
from keras_models.decoding.transducer import Steps, greedy_transducer_search
from keras_models.decoding.trie import build_trie, within_trie

B, T, V, LIMIT = 3, 4, 4, 3  # blank, 1, 2, 3
LENGTHS = np.array([4, 1, 3])
LEXICON = [(1, 2), (1, 2, 3), (2,), (3, 3, 1), (2, 1)]
OPTIONS = {"max_symbols_per_frame": 2, "max_length": LIMIT}
WIDE = {"beam": 160, "expansion_gamma": float("inf"), **OPTIONS}
ORDERS = ["frame", "alignment", "adaptive"]


def _table(seed, *shape):
    """Returns log-probabilities of the last axis."""
    random = np.random.default_rng(seed).normal(size=(*shape, V)).astype(np.float32)
    return random - np.logaddexp.reduce(random, axis=-1, keepdims=True)


SCORES, TARGET, SOURCE = _table(1, B, T, V), _table(2, V), _table(3, V)


def _transducer(table=SCORES):
    """Returns steps that look up a symbol by example, frame and last label."""

    def score(frames, state):
        example, last = tf.unstack(state, axis=1)
        return tf.gather_nd(table, tf.stack([example, frames, last], axis=1))

    start = tf.stack([tf.range(B), tf.zeros(B, tf.int32)], axis=1)
    return Steps(score, lambda labels, state: tf.stack([state[:, 0], labels], axis=1), start)


def _bigrams(table):
    """Returns steps of a language model that looks up a label by the last one."""
    none = tf.zeros([B], tf.int32)
    return Steps(lambda _, last: tf.gather(table, last), lambda labels, _: labels, none)


def _totals(example, extra=lambda labels: 0.0):
    """Returns the log-probability of every sequence of labels, all its paths summed."""
    totals = {}

    def walk(t, labels, emitted, score):
        if t == LENGTHS[example]:
            totals[labels] = np.logaddexp(totals.get(labels, -np.inf), score)
            return
        scores = SCORES[example, t, labels[-1] if labels else 0]
        walk(t + 1, labels, 0, score + scores[0])
        if emitted < OPTIONS["max_symbols_per_frame"] and len(labels) < LIMIT:
            for k in range(1, V):
                walk(t, (*labels, k), emitted + 1, score + scores[k])

    walk(0, (), 0, 0.0)
    return {labels: total + extra(labels) for labels, total in totals.items()}


def _found(hypotheses, example):
    """Returns the log-probability of the hypotheses that there are, by their labels."""
    rows = zip(*(x[example].numpy() for x in hypotheses[:3]), strict=True)
    return {tuple(tokens[:n].tolist()): total for tokens, n, total in rows if total > -np.inf}


def _assert_found(hypotheses, expected):
    for example in range(B):
        found, right = _found(hypotheses, example), expected(example)
        assert found.keys() == right.keys()
        assert len(found) > 1
        for labels, total in right.items():
            assert found[labels] == pytest.approx(total, rel=1e-5, abs=1e-5)


def _within_lexicon(kind="lexicon", sequences=LEXICON):
    return within_trie(_transducer(), build_trie(sequences), LENGTHS, kind)


@pytest.mark.parametrize("order", ORDERS)
def test_language_models_add_their_weighted_scores_of_every_label(order):
    steps = with_language_model(_transducer(), _bigrams(TARGET), 0.7)
    steps = with_language_model(steps, _bigrams(SOURCE), -0.4)

    def extra(labels):
        pairs = [*zip((0, *labels), labels, strict=False)]
        return sum(0.7 * TARGET[pair] - 0.4 * SOURCE[pair] for pair in pairs)

    hypotheses = beam_transducer_search(*steps, LENGTHS, order=order, **WIDE)
    _assert_found(hypotheses, lambda example: _totals(example, extra))


def test_a_language_model_of_no_weight_changes_nothing():
    steps = with_language_model(_transducer(), _bigrams(TARGET), 0.0)
    for found, expected in zip(
        beam_transducer_search(*steps, LENGTHS, beam=3, order="frame"),
        beam_transducer_search(*_transducer(), LENGTHS, beam=3, order="frame"),
        strict=True,
    ):
        np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("order", ORDERS)
def test_within_a_lexicon_its_sequences_are_found_and_no_others(order):
    hypotheses = beam_transducer_search(*_within_lexicon(), LENGTHS, order=order, **WIDE)

    def allowed(example):
        totals = _totals(example)
        return {labels: totals[labels] for labels in LEXICON if labels in totals}

    _assert_found(hypotheses, allowed)
    assert len(_found(hypotheses, 1)) == 3  # of one frame, where there is room for two labels


@pytest.mark.parametrize("beginnings", [[(1, 2), (3,)], [(2, 2)], [()]])
def test_after_a_given_beginning_anything_is_found(beginnings):
    steps = _within_lexicon("beginnings", beginnings)
    hypotheses = beam_transducer_search(*steps, LENGTHS, order="frame", **WIDE)
    for example in (0, 2):
        expected = {
            labels: total
            for labels, total in _totals(example).items()
            if any(labels[: len(each)] == each for each in beginnings)
        }
        found = _found(hypotheses, example)
        assert found.keys() == expected.keys()
        for labels, total in expected.items():
            assert found[labels] == pytest.approx(total, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_a_beam_of_one_is_greedy_within_a_lexicon_too(order):
    steps = with_language_model(_within_lexicon(), _bigrams(TARGET), 0.5)
    options = {**OPTIONS, "max_length": 5}
    greedy, _ = greedy_transducer_search(*steps, LENGTHS, **options)
    assert {
        tuple(row[:n]) for row, n in zip(greedy.tokens.numpy(), greedy.lengths, strict=True)
    } <= {*LEXICON}
    found = beam_transducer_search(*steps, LENGTHS, beam=1, order=order, **options)
    for values, expected in zip(found, greedy, strict=True):
        np.testing.assert_allclose(values[:, 0], expected, rtol=1e-6)


def test_where_the_bounds_leave_no_sequence_there_is_no_hypothesis():
    steps = _within_lexicon(sequences=[(3, 3, 1)])
    found = beam_transducer_search(*steps, LENGTHS, beam=2, order="frame", max_length=2)
    np.testing.assert_array_equal(found.log_probability, np.full([B, 2], -np.inf))
    greedy, _ = greedy_transducer_search(*steps, LENGTHS, max_length=2)
    np.testing.assert_array_equal(greedy.log_probability, np.full(B, -np.inf))


def _adapted(lengths, order):
    """Returns what a beam finds within a lexicon and with a language model."""
    steps = within_trie(_transducer(), build_trie(LEXICON), lengths)
    steps = with_language_model(steps, _bigrams(TARGET), 0.5)
    return beam_transducer_search(*steps, lengths, beam=4, order=order, **OPTIONS)


def test_an_adapted_search_is_the_same_under_xla():
    search = tf.function(_adapted, jit_compile=True)
    expected = _adapted(LENGTHS, "alignment")
    for found, values in zip(search(LENGTHS, "alignment"), expected, strict=True):
        np.testing.assert_allclose(found, values, rtol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
def test_an_adapted_search_is_the_same_exported(order, tmp_path):
    module = tf.Module()
    module.search = tf.function(
        lambda lengths: _adapted(lengths, order)._asdict(),
        input_signature=[tf.TensorSpec([B], tf.int32)],
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path))
    search = tf.saved_model.load(str(tmp_path)).search
    for lengths in (LENGTHS, LENGTHS[::-1]):
        expected = _adapted(lengths, order)
        assert len(_found(expected, 0)) > 1
        for name, values in search(tf.constant(lengths, tf.int32)).items():
            np.testing.assert_allclose(values, getattr(expected, name), rtol=1e-5)


def test_a_trie_holds_something():
    with pytest.raises(ValueError, match="`sequences` must hold one sequence or more"):
        build_trie([])
