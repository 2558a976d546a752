"""The CTC loss beside all paths of tiny examples, and beside TensorFlow's own."""

import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from keras_models.losses.ctc import ctc_loss, ctc_occupancies

B, T, U, V = 8, 5, 3, 4
# Full; a label that repeats; all the same; one frame; no label; no frame; too few frames, once by
# one and once for a repetition.
FRAMES = np.array([5, 4, 5, 1, 3, 0, 2, 4])
LABELS = np.array([3, 2, 3, 1, 0, 0, 3, 3])
SYMBOLS = np.array(
    [[1, 2, 3], [2, 2, 0], [3, 3, 3], [1, 0, 0], [0, 0, 0], [0, 0, 0], [1, 2, 3], [1, 1, 1]]
)
LATTICE = (SYMBOLS, FRAMES, LABELS)
ROUTES = ("eager", "graph", "xla")


def _loss_and_gradient(logits, labels, logit_lengths, label_lengths, blank=0):
    logits = tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = ctc_loss(logits, labels, logit_lengths, label_lengths, blank)
    return losses, tape.gradient(losses, logits)


_COMPUTE = {
    "eager": _loss_and_gradient,
    "graph": tf.function(_loss_and_gradient, autograph=False),
    "xla": tf.function(_loss_and_gradient, autograph=False, jit_compile=True),
}


def _compute(route, logits, *arguments, **options):
    results = _COMPUTE[route](tf.constant(logits), *map(tf.constant, arguments), **options)
    return [x.numpy() for x in results]


def _logits(seed=0, scale=1.0):
    random = np.random.default_rng(seed)
    return random.normal(scale=scale, size=(B, T, V)).astype(np.float32)


def _paths(labels, frames):
    """Yields every path that stands for the labels, and where each label begins."""
    for path in itertools.product(range(V), repeat=frames):
        at = [t for t in range(frames) if path[t] and (t == 0 or path[t] != path[t - 1])]
        if [path[t] for t in at] == list(labels):
            yield path, at


def _weighed(logits, labels, frames):
    """Returns every path as (log-probability in float64, path, where each label begins)."""
    scores = logits[:frames].astype(np.float64)
    scores -= np.logaddexp.reduce(scores, axis=-1, keepdims=True)
    at = range(frames)
    return [(sum(scores[at, path]), path, begins) for path, begins in _paths(labels, frames)]


def _brute_force(logits, labels, frames, length):
    paths = _weighed(logits, labels[:length], frames)
    return -np.logaddexp.reduce([p for p, *_ in paths]) if paths else np.inf


def _brute_forces(logits, *lattice):
    return [_brute_force(*example) for example in zip(logits, *lattice, strict=True)]


@pytest.mark.parametrize("route", ROUTES)
def test_loss_is_minus_the_log_of_the_sum_over_all_paths(route):
    losses, _ = _compute(route, _logits(), *LATTICE)
    assert losses.dtype == np.float32
    assert np.isfinite(losses).tolist() == [True] * 6 + [False] * 2
    np.testing.assert_allclose(losses, _brute_forces(_logits(), *LATTICE), rtol=1e-6)


@pytest.mark.parametrize("scale", [30.0, 1e4])
def test_extreme_logits_are_exact(scale):
    logits = _logits(seed=1)
    logits += np.sign(logits) * np.float32(scale)
    losses, gradient = _compute("graph", logits, *LATTICE)
    np.testing.assert_allclose(losses, _brute_forces(logits, *LATTICE), rtol=1e-6)
    assert np.isfinite(gradient).all()
    np.testing.assert_allclose(gradient.sum(-1), 0.0, atol=1e-6)


@pytest.mark.parametrize("route", ROUTES)
def test_gradient_is_that_of_finite_differences(route):
    logits = _logits(seed=2)
    _, gradient = _compute(route, logits, *LATTICE)
    step = 1e-5
    for example, (t, v) in itertools.product(range(6), np.ndindex(T, V)):
        ends = []
        for sign in (1, -1):
            moved = logits[example].astype(np.float64)
            moved[t, v] += sign * step
            ends.append(_brute_force(moved, *(x[example] for x in LATTICE)))
        expected = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(gradient[example, t, v], expected, atol=2e-6)


@pytest.mark.parametrize(("frames", "length", "repeats"), [(1, 1, 0), (9, 4, 3), (40, 15, 0)])
def test_uniform_logits_count_the_paths(frames, length, repeats):
    """A label or a blank is where each run ends: C(T + U − repeats, 2U) paths have U labels."""
    labels = [1] * (repeats + 1) + [2, 1] * length
    paths = math.comb(frames + length - repeats, 2 * length)
    logits = np.full((1, frames, 3), 3.5, np.float32)
    losses, _ = _compute("graph", logits, [labels[:length]], [frames], [length])
    np.testing.assert_allclose(losses, [frames * math.log(3) - math.log(paths)], rtol=1e-6)


def _forward_backward(logits, labels):
    """Returns loss and gradient of one full example in float64, by α and β, state by state."""
    scores = logits.astype(np.float64)
    scores -= np.logaddexp.reduce(scores, axis=-1, keepdims=True)
    states = np.zeros(2 * len(labels) + 1, int)
    states[1::2] = labels
    skips = np.zeros(len(states), bool)
    skips[3::2] = labels[1:] != labels[:-1]

    def add(alpha, skips):
        one, two = (np.concatenate([[-np.inf] * n, alpha[:-n]]) for n in (1, 2))
        return np.logaddexp.reduce([alpha, one, np.where(skips, two, -np.inf)])

    frames = len(scores)
    alpha, beta = np.full([2, frames, len(states)], -np.inf)
    alpha[0, :2], beta[-1, -2:] = scores[0, states[:2]], 0.0
    for t in range(1, frames):
        alpha[t] = add(alpha[t - 1], skips) + scores[t, states]
    reached = np.concatenate([skips[2:], [False, False]])[::-1]
    for t in reversed(range(frames - 1)):
        beta[t] = add((beta[t + 1] + scores[t + 1, states])[::-1], reached)[::-1]
    total = np.logaddexp.reduce(alpha[-1, -2:])
    gradient = np.exp(scores)
    np.subtract.at(gradient, (slice(None), states), np.exp(alpha + beta - total))
    return -total, gradient


@pytest.mark.parametrize("route", ["graph", "xla"])
def test_long_examples_are_exact(route):
    frames, length, symbols = 1200, 300, 8
    random = np.random.default_rng(4)
    logits = random.normal(size=(1, frames, symbols)).astype(np.float32)
    labels = random.integers(1, symbols, (1, length))
    losses, gradient = _compute(route, logits, labels, [frames], [length])
    expected = _forward_backward(logits[0], labels[0])
    np.testing.assert_allclose(losses[0], expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient[0], expected[1], rtol=0, atol=2e-5)


@pytest.mark.parametrize("route", ["graph", "xla"])
def test_longer_examples_have_the_loss_that_tensorflow_finds(route):
    frames, length, symbols = 60, 20, 8
    random = np.random.default_rng(3)
    logits = random.normal(size=(2, frames, symbols)).astype(np.float32)
    labels = random.integers(1, symbols, (2, length))
    lattice = labels, np.array([frames, 40]), np.array([length, 11])
    losses, gradient = _compute(route, logits, *lattice)
    variable = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(variable)
        expected = tf.nn.ctc_loss(
            labels, variable, lattice[2], lattice[1], logits_time_major=False, blank_index=0
        )
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_allclose(gradient, tape.gradient(expected, variable), atol=1e-3)
    np.testing.assert_allclose(gradient.sum(-1), 0.0, atol=1e-5)


def test_shapes_may_be_unknown_when_a_graph_is_made():
    floats, integers = tf.TensorSpec([None, None, None]), tf.TensorSpec([None, None], tf.int64)
    lengths = tf.TensorSpec([None], tf.int64)
    compute = tf.function(
        _loss_and_gradient, input_signature=[floats, integers, lengths, lengths], autograph=False
    )
    found, expected = compute(_logits(), *LATTICE), _compute("graph", _logits(), *LATTICE)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("route", ROUTES)
def test_neither_frames_nor_labels_cost_nothing(route):
    for frames, length in [(T, U), (0, U), (T, 0), (0, 0)]:
        logits = np.ones((2, frames, V), np.float32)
        losses, gradient = _compute(route, logits, np.ones((2, length), int), [0, 0], [0, 0])
        np.testing.assert_array_equal(losses, [0.0, 0.0])
        assert gradient.shape == logits.shape
        assert not gradient.any()


@pytest.mark.parametrize("padding", [-7.0, 1e30, -np.inf, np.nan])
@pytest.mark.parametrize("route", ROUTES)
def test_padding_changes_nothing(route, padding):
    logits = _logits(seed=6)
    losses, gradient = _compute(route, logits, *LATTICE)
    wide_logits, wide_labels = np.full((B, T + 3, V), padding, np.float32), np.full((B, U + 2), 99)
    for example, (frames, length) in enumerate(zip(FRAMES, LABELS, strict=True)):
        wide_logits[example, :frames] = logits[example, :frames]
        wide_labels[example, :length] = SYMBOLS[example, :length]
    wide_losses, wide_gradient = _compute(route, wide_logits, wide_labels, FRAMES, LABELS)
    np.testing.assert_allclose(wide_losses, losses, rtol=1e-6)
    np.testing.assert_allclose(wide_gradient[:, :T], gradient, atol=1e-6)
    for example, frames in enumerate(FRAMES):
        assert not wide_gradient[example, frames:].any()


def test_a_batch_is_its_examples_in_any_order():
    batch = (_logits(seed=7), *LATTICE)
    losses, gradient = _compute("graph", *batch)
    for example in reversed(range(B)):
        alone = _compute("graph", *(x[example : example + 1] for x in batch))
        np.testing.assert_allclose(alone[0][0], losses[example], rtol=1e-6)
        np.testing.assert_allclose(alone[1][0], gradient[example], atol=1e-6)


def test_blank_may_be_any_symbol():
    losses, gradient = _compute("graph", _logits(seed=9), *LATTICE)
    moved = np.array([2, 0, 1, 3])  # what each symbol becomes
    logits = np.empty_like(_logits())
    logits[..., moved] = _logits(seed=9)
    found = _compute("graph", logits, moved[SYMBOLS], FRAMES, LABELS, blank=2)
    np.testing.assert_allclose(found[0], losses, rtol=1e-6)
    np.testing.assert_allclose(found[1][..., moved], gradient, atol=1e-6)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_half_precision_logits_are_computed_in_float32(dtype):
    half = tf.cast(_logits(seed=11), dtype)
    losses, gradient = _COMPUTE["graph"](half, *map(tf.constant, LATTICE))
    expected = _compute("graph", tf.cast(half, tf.float32), *LATTICE)
    assert losses.dtype == tf.float32
    assert gradient.dtype == dtype
    np.testing.assert_allclose(losses, expected[0], rtol=1e-6)
    np.testing.assert_allclose(tf.cast(gradient, tf.float32), expected[1], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("reduce", [tf.reduce_mean, tf.square, tf.math.exp])
def test_an_infinite_loss_has_no_gradient_and_puts_no_nan_into_it(reduce):
    logits = tf.constant(_logits(seed=12))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = ctc_loss(logits, *LATTICE)
        reduced = reduce(losses)
    gradient = tape.gradient(reduced, logits).numpy()
    assert np.isinf(losses[6:]).all()
    assert not gradient[6:].any()
    assert np.isfinite(gradient).all()
    assert gradient[0].any()


def test_gradient_is_weighted_by_example():
    weights = np.array([2.0, -1.0, 0.0, 3.0, 1e3, 0.5, 1.0, 1.0], np.float32)
    _, gradient = _compute("graph", _logits(seed=14), *LATTICE)
    logits = tf.constant(_logits(seed=14))
    with tf.GradientTape() as tape:
        tape.watch(logits)
        weighted = tf.math.multiply_no_nan(ctc_loss(logits, *LATTICE), weights)
        total = tf.reduce_sum(weighted[:6])
    found = tape.gradient(total, logits)[:6]
    np.testing.assert_allclose(found, (gradient * weights[:, None, None])[:6], rtol=1e-5, atol=1e-9)


def test_a_forbidden_symbol_is_on_no_path():
    logits = _logits(seed=15)
    logits[0, 1:3, 1] = -np.inf
    logits[3, :, 1] = -np.inf
    losses, gradient = _compute("graph", logits, *LATTICE)
    np.testing.assert_allclose(losses, _brute_forces(logits, *LATTICE), rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert losses[3] == np.inf
    assert not gradient[3].any()


@pytest.mark.parametrize("route", ROUTES)
def test_nan_within_the_lengths_is_seen_in_its_example_only(route):
    logits = _logits(seed=16)
    losses, gradient = _compute(route, logits, *LATTICE)
    logits[0, 2, 3] = np.nan
    with_nan = _compute(route, logits, *LATTICE)
    assert np.isnan(with_nan[0][0])
    np.testing.assert_array_equal(with_nan[0][1:], losses[1:])
    np.testing.assert_array_equal(with_nan[1][1:], gradient[1:])


def test_occupancies_are_the_probabilities_of_where_labels_begin():
    logits = _logits(seed=17, scale=2.0)
    found = ctc_occupancies(logits, *LATTICE)
    for example, (labels, frames, length) in enumerate(zip(*LATTICE, strict=True)):
        paths = _weighed(logits[example], labels[:length], frames)
        total = np.logaddexp.reduce([p for p, *_ in paths]) if paths else 0.0
        expected = np.zeros((2, T, U + 1))
        for log_probability, _, at in paths:
            for t in range(frames):
                said = sum(begins < t for begins in at)
                expected[int(t in at), t, said] += math.exp(log_probability - total)
        np.testing.assert_allclose(found.blanks[example], expected[0], atol=1e-6)
        np.testing.assert_allclose(found.labels[example], expected[1], atol=1e-6)
        np.testing.assert_allclose(found.nodes[example], expected.sum(axis=0), atol=1e-6)


def test_a_second_order_gradient_is_refused():
    logits = tf.constant(_logits())
    with tf.GradientTape() as outer:
        outer.watch(logits)
        _, gradient = _loss_and_gradient(logits, *LATTICE)
    with pytest.raises(LookupError, match="no second-order gradient"):
        outer.gradient(gradient, logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.zeros((2, 3), np.float32)}, "`logits` must have rank 3"),
        ({"logits": np.zeros((2, 3, 6), int)}, "`logits` must be floating"),
        ({"labels": np.zeros((2, 4), np.float32)}, "`labels` must be integers"),
        ({"labels": np.zeros((3, 4), int)}, "`labels` must have size 2 in axis 0"),
        ({"logit_lengths": 3}, "`logit_lengths` must have rank 1"),
        ({"blank": 6}, r"`blank` must be in \[0, 6\). Received: blank=6"),
    ],
)
def test_arguments_are_checked(change, message):
    arguments = {
        "logits": np.zeros((2, 3, 6), np.float32),
        "labels": np.ones((2, 4), int),
        "logit_lengths": np.array([3, 3]),
        "label_lengths": np.array([2, 1]),
    }
    ctc_loss(**arguments)
    with pytest.raises(ValueError, match=message):
        ctc_loss(**{**arguments, **change})
