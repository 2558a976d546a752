"""Searches for the labels of CTC beside all paths of tiny examples, and beside a dict."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_models.decoding.ctc import beam_ctc_search, greedy_ctc_search

B, T, V = 5, 6, 4
LENGTHS = np.array([6, 1, 4, 0, 5])


def _log_probabilities(seed=0, shape=(B, T, V), scale=1.5):
    scores = scale * np.random.default_rng(seed).normal(size=shape)
    return (scores - np.logaddexp.reduce(scores, axis=-1, keepdims=True)).astype(np.float32)


def _labels(path, blank=0):
    """Returns the labels that a path stands for, and where each begins."""
    runs = [(symbol, t) for t, symbol in enumerate(path) if t == 0 or symbol != path[t - 1]]
    labels = [(symbol, t) for symbol, t in runs if symbol != blank]
    return tuple(s for s, _ in labels), tuple(t for _, t in labels)


def _all(scores, frames, blank=0):
    """Returns (labels, log-probability of all paths, frames of the best), the likeliest first."""
    paths: dict = {}
    for path in itertools.product(range(scores.shape[1]), repeat=frames):
        labels, at = _labels(path, blank)
        paths.setdefault(labels, []).append((float(sum(scores[range(frames), path])), at))
    found = [
        (labels, np.logaddexp.reduce([p for p, _ in each]), max(each)[1])
        for labels, each in paths.items()
    ]
    return sorted(found, key=lambda each: -each[1])


def _assert_found(hypotheses, example, expected):
    """Compares the hypotheses of an example with (labels, log-probability, frames)."""
    tokens, lengths, log_probability, frames = (x[example].numpy() for x in hypotheses)
    present = log_probability > -np.inf
    assert present.sum() == len(expected)
    np.testing.assert_allclose(
        log_probability[present], [p for _, p, _ in expected], rtol=1e-5, atol=1e-5
    )
    by_labels = {labels: (p, at) for labels, p, at in expected}
    assert len(by_labels) == len(expected)
    for k, length in enumerate(lengths[present]):
        assert not tokens[k, length:].any()
        assert not frames[k, length:].any()
        p, at = by_labels.pop(tuple(tokens[k, :length]))
        assert tuple(frames[k, :length]) == at
        assert log_probability[k] == pytest.approx(p, rel=1e-5, abs=1e-5)


def _assert_same(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("blank", [0, 2])
def test_a_beam_as_wide_as_the_space_finds_all_paths(blank):
    scores, lengths = _log_probabilities(1, (3, 5, 3)), np.array([5, 2, 3])
    found = beam_ctc_search(scores, lengths, beam=64, blank=blank)
    for example, frames in enumerate(lengths):
        _assert_found(found, example, _all(scores[example], frames, blank))


def _by_hand(scores, frames, beam):
    """Returns what `_all` does of a beam that is a dict of labels."""
    nothing = (-np.inf, ())
    found = {(): ((0.0, 0.0, ()), (-np.inf, *nothing))}  # (total, best path, frames) by end
    for t in range(frames):
        ways: dict = {}
        for labels, ends in found.items():
            ways.setdefault((labels, 0), []).extend(
                (total + scores[t, 0], path + scores[t, 0], at) for total, path, at in ends
            )
            for symbol in range(1, scores.shape[1]):
                for end, (total, path, at) in enumerate(ends):
                    total, path = total + scores[t, symbol], path + scores[t, symbol]
                    if end == 1 and labels[-1:] == (symbol,):
                        ways.setdefault((labels, 1), []).append((total, path, at))
                    else:
                        longer = (*labels, symbol)
                        ways.setdefault((longer, 1), []).append((total, path, (*at, t)))
        merged = {}
        for place, each in ways.items():
            best = max((path, at) for _, path, at in each)
            merged[place] = (np.logaddexp.reduce([total for total, *_ in each]), *best)
        prefixes = {labels for labels, _ in merged}
        everything = {
            labels: tuple(merged.get((labels, end), (-np.inf, *nothing)) for end in (0, 1))
            for labels in prefixes
        }

        def total(item):
            return np.logaddexp(item[1][0][0], item[1][1][0])

        found = dict(sorted(everything.items(), key=total, reverse=True)[:beam])
    return [
        (labels, np.logaddexp(one[0], other[0]), max(one[1:], other[1:])[1])
        for labels, (one, other) in found.items()
        if np.logaddexp(one[0], other[0]) > -np.inf
    ]


@pytest.mark.parametrize("beam", [1, 2, 5])
def test_a_beam_finds_what_a_dict_finds(beam):
    scores = _log_probabilities(beam)
    found = tf.function(beam_ctc_search, autograph=False)(scores, LENGTHS, beam=beam)
    assert found.tokens.shape == (B, beam, T)
    for example, frames in enumerate(LENGTHS):
        _assert_found(found, example, _by_hand(scores[example], frames, beam))


def test_a_forbidden_symbol_is_in_no_hypothesis():
    scores = _log_probabilities(2, (1, 4, 3))
    scores[0, 1:, 1] = scores[0, 2, 0] = -np.inf
    expected = [each for each in _all(scores[0], 4) if each[1] > -np.inf]
    _assert_found(beam_ctc_search(scores, [4], beam=50), 0, expected)


def test_the_greedy_search_takes_the_likeliest_path():
    scores = _log_probabilities(3)
    found, last = greedy_ctc_search(scores, LENGTHS)
    for example, frames in enumerate(LENGTHS):
        path = scores[example, :frames].argmax(-1)
        labels, at = _labels(path)
        assert tuple(found.tokens[example].numpy()) == labels + (0,) * (T - len(labels))
        assert tuple(found.frames[example].numpy()) == at + (0,) * (T - len(labels))
        assert found.lengths[example] == len(labels)
        best = scores[example, :frames].max(-1).sum()
        assert found.log_probability[example].numpy() == pytest.approx(best, abs=1e-5)
        assert last[example] == (path[-1] if frames else 0)


def test_a_beam_of_one_weighs_sums_and_the_greedy_search_paths():
    """Of `a` there are three paths, none as likely as the one of all blanks."""
    scores = np.log(np.array([[[0.6, 0.4], [0.6, 0.4]]], np.float32))
    greedy, _ = greedy_ctc_search(scores, [2])
    wide, one = (beam_ctc_search(scores, [2], beam=beam) for beam in (2, 1))
    assert greedy.lengths.numpy().tolist() == [0]
    assert wide.tokens[0, 0].numpy().tolist() == [1, 0]
    assert wide.log_probability[0, 0].numpy() == pytest.approx(np.log(0.64), abs=1e-6)
    assert one.lengths.numpy().tolist() == [[0]]  # at the first frame it was the likelier
    scores = np.log(np.array([[[0.1, 0.9, 0.0], [0.35, 0.25, 0.4]]], np.float32) + 1e-30)
    greedy, _ = greedy_ctc_search(scores, [2])
    one = beam_ctc_search(scores, [2], beam=1)
    assert greedy.tokens.numpy().tolist() == [[1, 2]]
    assert one.tokens.numpy().tolist() == [[[1, 0]]]


@pytest.mark.parametrize("cut", [0, 1, 3, 6])
def test_greedy_labels_of_parts_are_those_of_the_whole(cut):
    scores = _log_probabilities(4, (40, T, 3))
    lengths = np.random.default_rng(5).integers(0, T + 1, 40)
    whole, last = greedy_ctc_search(scores, lengths)
    first, between = greedy_ctc_search(scores[:, :cut], np.minimum(lengths, cut))
    second, end = greedy_ctc_search(scores[:, cut:], np.maximum(lengths - cut, 0), between)
    np.testing.assert_array_equal(end, last)
    np.testing.assert_allclose(
        first.log_probability + second.log_probability, whole.log_probability, rtol=1e-5
    )
    for row in range(40):
        parts = [part.tokens[row, : part.lengths[row]] for part in (first, second)]
        expected = whole.tokens[row, : whole.lengths[row]]
        np.testing.assert_array_equal(np.concatenate(parts), expected)


def _greedy(scores, lengths):
    return greedy_ctc_search(scores, lengths)[0]


def _beam(scores, lengths):
    return beam_ctc_search(scores, lengths, beam=3)


@pytest.mark.parametrize("search", [_greedy, _beam])
def test_eager_graph_and_xla_agree(search):
    arguments = [tf.constant(_log_probabilities(6)), tf.constant(LENGTHS)]
    for jit_compile in (False, True):
        compiled = tf.function(search, autograph=False, jit_compile=jit_compile)
        _assert_same(compiled(*arguments), search(*arguments))


@pytest.mark.parametrize("search", [_greedy, _beam])
def test_a_batch_is_its_examples_in_any_order(search):
    scores = _log_probabilities(7)
    found = search(scores, LENGTHS)
    for example in reversed(range(B)):
        one = slice(example, example + 1)
        _assert_same(search(scores[one], LENGTHS[one]), [x[one] for x in found])


@pytest.mark.parametrize("search", [_greedy, _beam])
@pytest.mark.parametrize("padding", [1e30, np.nan])
def test_padding_changes_nothing(search, padding):
    scores = _log_probabilities(8)
    wide = np.full((B, T + 3, V), padding, np.float32)
    for example, frames in enumerate(LENGTHS):
        wide[example, :frames] = scores[example, :frames]
    found, expected = search(wide, LENGTHS), search(scores, LENGTHS)
    narrow = found._replace(tokens=found.tokens[..., :T], frames=found.frames[..., :T])
    _assert_same(narrow, expected)
    assert not found.tokens[..., T:].numpy().any()


@pytest.mark.parametrize("search", [_greedy, _beam])
def test_no_frames_have_no_labels_and_no_examples_no_hypotheses(search):
    found = search(_log_probabilities()[:, :0], np.zeros(B, int))
    assert found.tokens.shape[-1] == 0
    assert not found.lengths.numpy().any()
    np.testing.assert_array_equal(np.exp(found.log_probability).reshape(B, -1)[:, 0], 1.0)
    assert len(search(_log_probabilities()[:0], LENGTHS[:0]).lengths) == 0


def test_a_beam_has_one_hypothesis_or_more():
    with pytest.raises(ValueError, match="`beam` must be at least 1"):
        beam_ctc_search(_log_probabilities(), LENGTHS, beam=0)
