"""Beam searches beside the greedy one, and beside all paths of tiny lattices."""

from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from keras_models.decoding.beam import beam_transducer_search, start_beam, stream_beam
from keras_models.decoding.transducer import Steps, greedy_transducer_search

B, T, V, D, LIMIT = 5, 6, 5, 4, 3
LENGTHS = np.array([6, 1, 4, 0, 5])
ORDERS = ["frame", "alignment", "adaptive"]


class _Row(NamedTuple):
    example: tf.Tensor  # [N]
    hidden: dict  # {"hidden": [N, D]}


class _Transducer(tf.Module):
    """A joint and a recurrent prediction network of random weights."""

    def __init__(self, seed=0, blank=0, scale=2.0, blank_bias=0.5, symbols=V):
        super().__init__()
        random = np.random.default_rng(seed)
        self.recurrence = random.normal(size=(D, D)).astype(np.float32)
        self.embedding = random.normal(size=(symbols, D)).astype(np.float32)
        self.output = (scale * random.normal(size=(D, symbols))).astype(np.float32)
        self.bias = (blank_bias * (np.arange(symbols) == blank)).astype(np.float32)

    def log_probabilities(self, frame, hidden):
        return tf.nn.log_softmax(tf.tanh(frame + hidden) @ self.output + self.bias)

    def predict(self, label, hidden):
        return tf.tanh(hidden @ self.recurrence + tf.gather(self.embedding, label))

    def steps(self, encoded):
        def score(frames, row):
            frame = tf.gather_nd(encoded, tf.stack([row.example, frames], axis=1))
            return self.log_probabilities(frame, row.hidden["hidden"])

        def advance(labels, row):
            return row._replace(hidden={"hidden": self.predict(labels, row.hidden["hidden"])})

        batch = tf.shape(encoded)[0]
        return Steps(score, advance, _Row(tf.range(batch), {"hidden": tf.zeros([batch, D])}))

    def greedy(self, encoded, lengths, **options):
        options.setdefault("max_symbols_per_frame", LIMIT)
        return greedy_transducer_search(*self.steps(encoded), lengths, **options)[0]

    def search(self, encoded, lengths, **options):
        options.setdefault("max_symbols_per_frame", LIMIT)
        options.setdefault("order", "frame")
        return beam_transducer_search(*self.steps(encoded), lengths, **options)


def _encoded(seed=1):
    return np.random.default_rng(seed).normal(size=(B, T, D)).astype(np.float32)


def _assert_same(hypotheses, others):
    np.testing.assert_array_equal(hypotheses.tokens, others.tokens)
    np.testing.assert_array_equal(hypotheses.lengths, others.lengths)
    np.testing.assert_array_equal(hypotheses.frames, others.frames)
    np.testing.assert_allclose(hypotheses.log_probability, others.log_probability, rtol=1e-5)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("limit", [1, LIMIT])
@pytest.mark.parametrize("seed", range(3))
def test_a_beam_of_one_is_the_greedy_search(order, limit, seed):
    model, encoded = _Transducer(seed), _encoded(seed)
    options = {"max_symbols_per_frame": limit}
    greedy = model.greedy(encoded, LENGTHS, **options)
    assert greedy.lengths.numpy().max() > 2
    found = model.search(encoded, LENGTHS, beam=1, order=order, **options)
    _assert_same(type(found)(*(x[:, 0] for x in found)), greedy)


def _all_paths(model, encoded, frames, limit, max_length, blank=0):
    """Returns by labels their paths, each a log-probability and the frames of its labels."""
    symbols = model.bias.shape[0]
    hidden = {(): np.zeros([1, D], np.float32)}
    paths = {(): [(0.0, ())]}
    for t in range(frames):
        after, at_frame = {}, paths
        for emitted in range(limit + 1):
            longer = {}
            for labels, ways in at_frame.items():
                scores = model.log_probabilities(encoded[t][None], hidden[labels]).numpy()[0]
                after.setdefault(labels, []).extend((p + scores[blank], f) for p, f in ways)
                if emitted == limit or len(labels) == max_length:
                    continue
                for label in set(range(symbols)) - {blank}:
                    new = (*labels, label)
                    hidden[new] = model.predict([label], hidden[labels]).numpy()
                    longer[new] = [(p + scores[label], (*f, t)) for p, f in ways]
            at_frame = longer
        paths = after
    return paths


def _ranked(paths):
    """Returns (labels, log-probability, frames of the best path) by falling probability."""
    totals = [
        (labels, np.logaddexp.reduce([p for p, _ in ways]), max(ways)[1])
        for labels, ways in paths.items()
    ]
    return sorted(totals, key=lambda each: -each[1])


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize(("limit", "blank"), [(1, 0), (2, 0), (2, 2), (3, 0)])
def test_a_beam_as_wide_as_the_space_finds_all_paths(order, limit, blank):
    model, max_length = _Transducer(seed=blank + 1, blank=blank, symbols=3, scale=1.0), 4
    encoded, lengths = _encoded(3)[:3, :4], np.array([4, 2, 3])
    found = model.search(
        encoded,
        lengths,
        beam=160,
        order=order,
        blank=blank,
        max_symbols_per_frame=limit,
        max_length=max_length,
        expansion_beta=0,
        expansion_gamma=float("inf"),
    )
    for example, frames in enumerate(lengths):
        expected = _ranked(_all_paths(model, encoded[example], frames, limit, max_length, blank))
        log_probability = found.log_probability[example].numpy()
        assert (log_probability > -np.inf).sum() == len(expected) > 6
        np.testing.assert_allclose(
            log_probability[: len(expected)], [p for _, p, _ in expected], rtol=1e-5, atol=1e-5
        )
        by_labels = {labels: (p, at) for labels, p, at in expected}
        for k in range(len(expected)):
            length = found.lengths[example, k].numpy()
            tokens, at = (x[example, k].numpy() for x in (found.tokens, found.frames))
            assert not tokens[length:].any()
            assert not at[length:].any()
            p, expected_at = by_labels[tuple(tokens[:length])]
            assert tuple(at[:length]) == expected_at
            assert log_probability[k] == pytest.approx(p, rel=1e-5, abs=1e-5)


def _by_hand(model, encoded, frames, beam, order, beta=2, gamma=2.3, limit=LIMIT):
    """Returns what `_ranked` does, by a dict of (labels, frame, how many of them at that frame)."""
    hidden = {(): np.zeros([1, D], np.float32)}
    found = {((), 0, 0): (0.0, 0.0, ())}  # of all paths, and of the best: itself, frames
    while taken := [place for place in found if place[1] < frames]:
        if order != "alignment":
            taken = [place for place in taken if place[1] == min(t for _, t, _ in taken)]
        candidates = {place: each for place, each in found.items() if place not in taken}

        def add(place, total, path, at, candidates=candidates):
            if place in candidates:
                other, *best = candidates[place]
                total = np.logaddexp(total, other)
                path, at = max((path, at), tuple(best))
            candidates[place] = (total, path, at)

        for labels, t, symbols in taken:
            total, path, at = found[labels, t, symbols]
            scores = model.log_probabilities(encoded[t][None], hidden[labels]).numpy()[0]
            ranking = np.argsort(-scores)
            if order == "adaptive":
                near = scores[ranking] >= scores.max() - gamma
                ranking = ranking[near][: beam + beta]
            for symbol in [0] if symbols == limit else ranking:
                score = scores[symbol]
                if symbol == 0:
                    add((labels, t + 1, 0), total + score, path + score, at)
                else:
                    longer = (*labels, int(symbol))
                    hidden[longer] = model.predict([symbol], hidden[labels]).numpy()
                    add((longer, t, symbols + 1), total + score, path + score, (*at, t))
        best = sorted(candidates.items(), key=lambda each: -each[1][0])[:beam]
        found = dict(best)
    return [(labels, total, at) for (labels, _, _), (total, _, at) in found.items()]


def _assert_found(hypotheses, example, expected):
    tokens, lengths, log_probability, frames = (x[example].numpy() for x in hypotheses)
    for k, (labels, total, at) in enumerate(expected):
        assert tuple(tokens[k, : lengths[k]]) == labels
        assert tuple(frames[k, : lengths[k]]) == at
        assert log_probability[k] == pytest.approx(total, rel=1e-5, abs=1e-5)


@pytest.mark.parametrize("beam", [2, 5])
@pytest.mark.parametrize("order", ORDERS)
def test_a_beam_finds_what_a_dict_finds(order, beam):
    model, encoded = _Transducer(seed=beam, scale=1.0), _encoded(2)
    search = tf.function(model.search, autograph=False)
    found = search(encoded, LENGTHS, beam=beam, order=order)
    greedy = model.greedy(encoded, LENGTHS)
    assert (found.log_probability[:, 0] > greedy.log_probability).numpy().any()
    for example, frames in enumerate(LENGTHS):
        expected = _by_hand(model, encoded[example], frames, beam, order)
        _assert_found(found, example, expected)


@pytest.mark.parametrize("order", ORDERS)
def test_eager_graph_and_xla_agree(order):
    model, encoded = _Transducer(seed=4), _encoded(4)
    options = {"beam": 3, "order": order, "max_length": 9}
    eager = model.search(encoded, LENGTHS, **options)
    assert eager.tokens.shape == (B, 3, 9)
    for jit_compile in (False, True):
        search = tf.function(
            lambda *arguments: model.search(*arguments, **options),
            autograph=False,
            jit_compile=jit_compile,
        )
        _assert_same(search(tf.constant(encoded), tf.constant(LENGTHS)), eager)


@pytest.mark.parametrize("order", ORDERS)
def test_a_batch_is_its_examples_in_any_order(order):
    model, encoded = _Transducer(seed=5), _encoded(5)
    options = {"beam": 3, "order": order, "max_length": 8}
    found = model.search(encoded, LENGTHS, **options)
    turned = model.search(encoded[::-1], LENGTHS[::-1], **options)
    _assert_same(turned, type(found)(*(x[::-1] for x in found)))
    for example in range(B):
        one = slice(example, example + 1)
        alone = model.search(encoded[one], LENGTHS[one], **options)
        _assert_same(alone, type(found)(*(x[one] for x in found)))


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("padding", [1e30, np.nan])
def test_padding_changes_nothing(order, padding):
    model, encoded = _Transducer(seed=7), _encoded(7)
    wide = np.full((B, T + 4, D), padding, np.float32)
    for example, frames in enumerate(LENGTHS):
        wide[example, :frames] = encoded[example, :frames]
    options = {"beam": 4, "order": order}
    _assert_same(model.search(wide, LENGTHS, **options), model.search(encoded, LENGTHS, **options))


@pytest.mark.parametrize("order", ORDERS)
def test_labels_are_bounded_a_frame_and_in_all(order):
    model, encoded = _Transducer(seed=8, blank_bias=-50.0), _encoded(8)
    found = model.search(encoded, LENGTHS, beam=3, order=order)
    np.testing.assert_array_equal(found.lengths[:, 0], LENGTHS * LIMIT)
    found = model.search(encoded, LENGTHS, beam=3, order=order, max_length=2)
    assert found.tokens.shape == (B, 3, 2)
    np.testing.assert_array_equal(found.lengths[:, 0], np.minimum(LENGTHS * LIMIT, 2))


def test_hypotheses_are_ranked_by_the_mean_over_their_labels_where_asked_to():
    model, encoded = _Transducer(seed=9), _encoded(9)
    options = {"beam": 6, "max_length": 8}
    found = model.search(encoded, LENGTHS, **options)
    ranked = model.search(encoded, LENGTHS, length_normalization=1.0, **options)
    mean = ranked.log_probability / tf.cast(tf.maximum(ranked.lengths, 1), tf.float32)
    assert (mean[:, 1:] <= mean[:, :-1]).numpy().all()
    assert (ranked.tokens != found.tokens).numpy().any()
    np.testing.assert_allclose(
        np.sort(ranked.log_probability), np.sort(found.log_probability), rtol=1e-6
    )


@pytest.mark.parametrize("order", ORDERS)
def test_what_is_not_there_has_no_probability(order):
    found = _Transducer().search(_encoded(), np.zeros(B, int), beam=3, order=order)
    assert found.tokens.shape == (B, 3, 0)
    np.testing.assert_array_equal(found.log_probability, [[0.0, -np.inf, -np.inf]] * B)
    found = _Transducer().search(_encoded()[:0], LENGTHS[:0], beam=3, order=order)
    assert found.tokens.shape == (0, 3, 0)


def test_an_exported_search_finds_the_same(tmp_path):
    model, encoded = _Transducer(seed=12), _encoded(12)
    module = tf.Module()
    module.search = tf.function(
        lambda encoded, lengths: model.search(encoded, lengths, beam=3)._asdict(),
        input_signature=[tf.TensorSpec([None, None, D]), tf.TensorSpec([None], tf.int64)],
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path)).search
    found = model.search(encoded, LENGTHS, beam=3)
    _assert_same(type(found)(**loaded(encoded, LENGTHS)), found)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"beam": 0}, "`beam` must be at least 1"),
        ({"order": "time"}, "`order` must be one of"),
        ({"expansion_beta": -1}, "must be at least 0"),
        ({"expansion_gamma": -0.5}, "must be at least 0"),
        ({"max_symbols_per_frame": 0}, "`max_symbols_per_frame` must be at least 1"),
        ({"blank": V}, r"`blank` must be in \[0, 5\)"),
    ],
)
def test_arguments_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        _Transducer().search(_encoded(), LENGTHS, **{"beam": 2, **change})


def test_alignments_are_not_searched_in_parts():
    score, advance, state = _Transducer().steps(_encoded())
    with pytest.raises(ValueError, match="`order` must be 'frame' or 'adaptive'"):
        stream_beam(score, advance, start_beam(state, B, 2), LENGTHS, order="alignment")
