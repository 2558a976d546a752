from typing import NamedTuple

import numpy as np
import pytest
import tensorflow as tf

from keras_models.decoding.transducer import greedy_transducer_search
from keras_models.losses.transducer import transducer_loss

B, T, V, D, LIMIT = 5, 7, 6, 4, 3
LENGTHS = np.array([7, 1, 4, 0, 6])


class _State(NamedTuple):
    hidden: tf.Tensor  # [B, D]
    last: dict  # {"label": [B]}


class _Transducer(tf.Module):
    """A joint and a recurrent prediction network of random weights."""

    def __init__(self, seed=0, blank=0, scale=2.0, blank_bias=0.5):
        super().__init__()
        random = np.random.default_rng(seed)
        self.recurrence = random.normal(size=(D, D)).astype(np.float32)
        self.embedding = random.normal(size=(V, D)).astype(np.float32)
        self.output = (scale * random.normal(size=(D, V))).astype(np.float32)
        self.bias = (blank_bias * (np.arange(V) == blank)).astype(np.float32)

    def joint(self, frame, hidden):
        return tf.tanh(frame + hidden) @ self.output + self.bias

    def predict(self, label, hidden):
        return tf.tanh(hidden @ self.recurrence + tf.gather(self.embedding, label))

    def search(self, encoded, lengths, advance=None, **options):
        found, _ = self.resumed(encoded, lengths, None, advance, **options)
        return found

    def resumed(self, encoded, lengths, state=None, advance=None, **options):
        """Returns what a search from a state on finds, and the state after it."""

        def score(frames, state):
            frame = tf.gather(encoded, frames, batch_dims=1)
            return tf.nn.log_softmax(self.joint(frame, state.hidden))

        def step(labels, state):
            return _State(self.predict(labels, state.hidden), {"label": labels})

        batch = tf.shape(encoded)[0]
        start = _State(tf.zeros([batch, D]), {"label": tf.zeros([batch], tf.int32)})
        options.setdefault("max_symbols_per_frame", LIMIT)
        return greedy_transducer_search(score, advance or step, state or start, lengths, **options)


def _one_by_one(model, encoded, lengths, blank=0, limit=LIMIT, max_length=10**6):
    """Returns tokens, log-probability and the tokens' frames of each example, by two loops."""
    results = []
    for example, frames in enumerate(lengths):
        hidden, tokens, total, at = np.zeros([1, D], np.float32), [], 0.0, []
        for t in range(frames):
            for emitted in range(limit + 1):
                logits = model.joint(encoded[example, t][None], hidden).numpy()[0]
                stops = emitted == limit or len(tokens) == max_length
                symbol = blank if stops else int(np.argmax(logits))
                total += logits[symbol] - np.logaddexp.reduce(logits.astype(np.float64))
                if symbol == blank:
                    break
                tokens.append(symbol)
                at.append(t)
                hidden = model.predict([symbol], hidden).numpy()
        results.append((tokens, total, at))
    return results


def _encoded(seed=1):
    return np.random.default_rng(seed).normal(size=(B, T, D)).astype(np.float32)


def _assert_found(hypotheses, expected):
    tokens, lengths, log_probability, frames = (x.numpy() for x in hypotheses)
    for found, column in ((tokens, 0), (frames, 2)):
        rows = [list(row[:n]) for row, n in zip(found, lengths, strict=True)]
        assert rows == [each[column] for each in expected]
        for row, length in zip(found, lengths, strict=True):
            assert not row[length:].any()
    np.testing.assert_allclose(log_probability, [x for _, x, _ in expected], rtol=1e-5, atol=1e-6)


def _assert_same(hypotheses, others):
    np.testing.assert_array_equal(hypotheses.tokens, others.tokens)
    np.testing.assert_array_equal(hypotheses.lengths, others.lengths)
    np.testing.assert_array_equal(hypotheses.frames, others.frames)
    np.testing.assert_allclose(hypotheses.log_probability, others.log_probability, rtol=1e-5)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("limit", [1, LIMIT])
def test_search_finds_what_two_loops_find(seed, limit):
    model, encoded = _Transducer(seed), _encoded(seed)
    search = tf.function(model.search, autograph=False)
    found = search(encoded, LENGTHS, max_symbols_per_frame=limit)
    expected = _one_by_one(model, encoded, LENGTHS, limit=limit)
    assert any(tokens for tokens, _, _ in expected)
    _assert_found(found, expected)


@pytest.mark.parametrize("blank", [2, V - 1])
def test_blank_may_be_any_symbol(blank):
    model, encoded = _Transducer(seed=13, blank=blank), _encoded(13)
    found = model.search(encoded, LENGTHS, blank=blank)
    expected = _one_by_one(model, encoded, LENGTHS, blank=blank)
    assert any(0 in tokens for tokens, _, _ in expected)
    _assert_found(found, expected)


def test_eager_graph_and_xla_agree():
    model, encoded = _Transducer(seed=4), _encoded(4)
    eager = model.search(encoded, LENGTHS)
    _assert_same(tf.function(model.search, autograph=False)(encoded, LENGTHS), eager)

    @tf.function(jit_compile=True, autograph=False)
    def compiled(encoded, lengths):
        return model.search(encoded, lengths, max_length=tf.shape(encoded)[1] * LIMIT)

    found = compiled(tf.constant(encoded), tf.constant(LENGTHS))
    assert found.tokens.shape == (B, T * LIMIT)
    width = eager.tokens.shape[1]
    assert not found.tokens.numpy()[:, width:].any()
    tokens, frames = found.tokens[:, :width], found.frames[:, :width]
    _assert_same(found._replace(tokens=tokens, frames=frames), eager)


def test_tokens_are_as_wide_as_the_longest_hypothesis():
    found = _Transducer().search(_encoded(), LENGTHS)
    assert found.tokens.shape[1] == found.lengths.numpy().max() > 0
    assert found.tokens.dtype == found.lengths.dtype == tf.int32
    assert found.log_probability.dtype == tf.float32


def test_a_batch_is_its_examples_in_any_order():
    model, encoded = _Transducer(seed=5), _encoded(5)
    found = model.search(encoded, LENGTHS)
    order = np.random.default_rng(6).permutation(B)
    shuffled = model.search(encoded[order], LENGTHS[order])
    _assert_same(shuffled, type(found)(*(tf.gather(x, order) for x in found)))
    for example in range(B):
        one = slice(example, example + 1)
        alone = model.search(encoded[one], LENGTHS[one])
        length = int(found.lengths[example])
        tokens, frames = found.tokens[one, :length], found.frames[one, :length]
        expected = type(found)(*(x[one] for x in found))
        _assert_same(alone, expected._replace(tokens=tokens, frames=frames))


@pytest.mark.parametrize("padding", [1e30, np.nan])
def test_padding_changes_nothing(padding):
    model, encoded = _Transducer(seed=7), _encoded(7)
    wide = np.full((B, T + 4, D), padding, np.float32)
    for example, frames in enumerate(LENGTHS):
        wide[example, :frames] = encoded[example, :frames]
    _assert_same(model.search(wide, LENGTHS), model.search(encoded, LENGTHS))


def test_the_blank_is_forced_at_the_limit_of_symbols_per_frame():
    model, encoded = _Transducer(seed=8, blank_bias=-50.0), _encoded(8)
    found = model.search(encoded, LENGTHS)
    np.testing.assert_array_equal(found.lengths, LENGTHS * LIMIT)
    # Of each blank the probability is about e^-50, and it is counted.
    assert (found.log_probability.numpy() <= -40.0 * LENGTHS).all()
    _assert_found(found, _one_by_one(model, encoded, LENGTHS))


@pytest.mark.parametrize("max_length", [0, 2, 5])
def test_no_hypothesis_is_longer_than_the_maximum(max_length):
    model, encoded = _Transducer(seed=9, blank_bias=-1.0), _encoded(9)
    found = model.search(encoded, LENGTHS, max_length=max_length)
    assert found.tokens.shape == (B, max_length)
    assert found.lengths.numpy().max() == max_length
    _assert_found(found, _one_by_one(model, encoded, LENGTHS, max_length=max_length))


@pytest.mark.parametrize("frames", [T, 0])
def test_no_frames_have_an_empty_hypothesis(frames):
    found = _Transducer().search(_encoded()[:, :frames], np.zeros(B, int))
    assert found.tokens.shape == (B, 0)
    np.testing.assert_array_equal(found.lengths, np.zeros(B))
    np.testing.assert_array_equal(found.log_probability, np.zeros(B))


def test_an_empty_batch_has_no_hypotheses():
    found = _Transducer().search(_encoded()[:0], LENGTHS[:0])
    assert found.tokens.shape == (0, 0)


def test_the_state_of_those_that_do_not_emit_is_kept():
    model, encoded = _Transducer(seed=10), _encoded(10)

    def advance(labels, state):
        hidden = model.predict(labels, state.hidden)
        emits = labels != 0
        return _State(tf.where(emits[:, None], hidden, np.nan), {"label": labels})

    _assert_same(model.search(encoded, LENGTHS, advance), model.search(encoded, LENGTHS))


def test_log_probability_is_of_one_alignment_of_the_labels():
    model, encoded = _Transducer(seed=11), _encoded(11)
    found = model.search(encoded, LENGTHS)
    labels = found.tokens
    hidden = [tf.zeros([B, D])]
    for u in range(labels.shape[1]):
        hidden.append(model.predict(labels[:, u], hidden[-1]))
    hidden = tf.stack(hidden, axis=1)
    logits = model.joint(encoded[:, :, None], hidden[:, None])  # [B, T, U + 1, V]
    losses = transducer_loss(logits, labels, LENGTHS, found.lengths).numpy()
    assert (found.log_probability.numpy() <= -losses + 1e-5).all()
    # One label per frame at most, and one frame: there is one alignment only.
    one = model.search(encoded[:, :1], np.minimum(LENGTHS, 1))
    labels, logits = one.tokens, logits[:, :1, : one.tokens.shape[1] + 1]
    losses = transducer_loss(logits, labels, np.minimum(LENGTHS, 1), one.lengths)
    np.testing.assert_allclose(one.log_probability, -losses, rtol=1e-5, atol=1e-6)


def test_equal_scores_of_any_type_of_float_add_up_and_the_first_symbol_is_taken():
    found, _ = greedy_transducer_search(
        lambda frames, state: tf.fill([B, V], tf.constant(-1.5, tf.bfloat16)),
        lambda labels, state: state,
        tf.zeros([B]),
        LENGTHS,
    )
    np.testing.assert_array_equal(found.lengths, np.zeros(B))  # the first is the blank
    np.testing.assert_array_equal(found.log_probability, -1.5 * LENGTHS)


def test_an_exported_search_finds_the_same(tmp_path):
    model, encoded = _Transducer(seed=12), _encoded(12)
    signature = [tf.TensorSpec([None, None, D]), tf.TensorSpec([None], tf.int64)]
    module = tf.Module()
    module.search = tf.function(
        lambda encoded, lengths: model.search(encoded, lengths)._asdict(),
        input_signature=signature,
        autograph=False,
    )
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path)).search
    found = model.search(encoded, LENGTHS)
    _assert_same(type(found)(**loaded(encoded, LENGTHS)), found)
    few = loaded(encoded[:2, :5], np.array([5, 1]))
    _assert_same(type(found)(**few), model.search(encoded[:2, :5], np.array([5, 1])))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"lengths": LENGTHS[:, None]}, "`frame_lengths` must have rank 1"),
        ({"max_symbols_per_frame": 0}, "`max_symbols_per_frame` must be at least 1"),
        ({"max_length": -1}, "`max_length` must be at least 0"),
        ({"blank": -1}, "`blank` must be at least 0"),
        ({"blank": V}, r"`blank` must be in \[0, 6\)"),
    ],
)
def test_arguments_are_checked(change, message):
    with pytest.raises(ValueError, match=message):
        _Transducer().search(**{"encoded": _encoded(), "lengths": LENGTHS, **change})


def test_a_search_goes_on_from_where_another_ended():
    model, encoded = _Transducer(seed=13), _encoded(13)
    whole, _ = model.resumed(encoded, LENGTHS)
    for cut in range(T + 1):
        first, state = model.resumed(encoded[:, :cut], np.minimum(LENGTHS, cut))
        rest, _ = model.resumed(encoded[:, cut:], np.maximum(LENGTHS - cut, 0), state)
        for b, length in enumerate(whole.lengths):
            parts = [found.tokens[b, : found.lengths[b]] for found in (first, rest)]
            np.testing.assert_array_equal(tf.concat(parts, 0), whole.tokens[b, :length])
        total = first.log_probability + rest.log_probability
        np.testing.assert_allclose(total, whole.log_probability, rtol=1e-5)
