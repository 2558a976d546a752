import itertools
import math
import re

import numpy as np
import pytest
import tensorflow as tf

from keras_models.losses.transducer import transducer_lattice, transducer_loss

B, T, U, V = 6, 4, 3, 5
# A full example, one frame, no label, no frame; more labels than frames, and fewer.
FRAMES = np.array([4, 1, 3, 0, 2, 4])
LABELS = np.array([3, 2, 0, 0, 3, 1])
ROUTES = ("eager", "graph", "xla")


def _loss_and_gradient(logits, labels, logit_lengths, label_lengths, blank=0):
    logits = tf.convert_to_tensor(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = transducer_loss(logits, labels, logit_lengths, label_lengths, blank)
    return losses, tape.gradient(losses, logits)


_COMPUTE = {
    "eager": _loss_and_gradient,
    "graph": tf.function(_loss_and_gradient, autograph=False),
    "xla": tf.function(_loss_and_gradient, autograph=False, jit_compile=True),
}


def _compute(route, logits, *arguments, **options):
    results = _COMPUTE[route](tf.constant(logits), *map(tf.constant, arguments), **options)
    return [x.numpy() for x in results]


def _batch(seed=0, scale=1.0):
    """Returns logits, labels and lengths of examples of every kind."""
    random = np.random.default_rng(seed)
    logits = random.normal(scale=scale, size=(B, T, U + 1, V)).astype(np.float32)
    return logits, random.integers(1, V, (B, U)), FRAMES, LABELS


def _log_softmax(logits):
    logits = logits.astype(np.float64)
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def _paths(frames, labels):
    """Yields every alignment, as the list of its arcs `(t, u, is_label)`."""
    if not frames:
        if not labels:
            yield []
        return
    for steps in itertools.combinations(range(frames + labels - 1), labels):
        arcs, t, u = [], 0, 0
        for step in range(frames + labels):
            is_label = step in steps
            arcs.append((t, u, is_label))
            t, u = (t, u + 1) if is_label else (t + 1, u)
        yield arcs


def _brute_force(logits, labels, frames, length, blank=0):
    """Returns the loss of one example in float64: minus the log of the sum over alignments."""
    scores = _log_softmax(logits)
    paths = [
        sum(scores[t, u, labels[u] if is_label else blank] for t, u, is_label in path)
        for path in _paths(frames, length)
    ]
    return -np.logaddexp.reduce(paths) if paths else np.inf


def _brute_forces(logits, labels, logit_lengths, label_lengths, blank=0):
    examples = zip(logits, labels, logit_lengths, label_lengths, strict=True)
    return [_brute_force(*example, blank) for example in examples]


def _forward_backward(logits, labels):
    """Returns loss and gradient of one full example in float64, by α and β, node by node."""
    scores = _log_softmax(logits)
    frames, width, _ = scores.shape
    blanks, ahead = scores[:, :, 0], np.full((frames, width), -np.inf)
    ahead[:, :-1] = np.take_along_axis(scores[:, :-1], labels[None, :, None], 2)[..., 0]
    blanks = blanks.copy()
    blanks[-1, :-1] = -np.inf
    alpha = np.full((frames + 1, width), -np.inf)
    beta = np.full((frames + 1, width), -np.inf)
    alpha[0, 0] = beta[-1, -1] = 0.0
    for t in range(frames + 1):
        if t:
            alpha[t] = alpha[t - 1] + blanks[t - 1]
        for u in range(1, width if t < frames else 0):
            alpha[t, u] = np.logaddexp(alpha[t, u], alpha[t, u - 1] + ahead[t, u - 1])
    for t in reversed(range(frames)):
        beta[t] = beta[t + 1] + blanks[t]
        for u in reversed(range(width - 1)):
            beta[t, u] = np.logaddexp(beta[t, u], beta[t, u + 1] + ahead[t, u])
    by_blank = np.exp(alpha[:-1] + blanks + beta[1:] - beta[0, 0])
    by_label = np.zeros_like(by_blank)
    by_label[:, :-1] = np.exp(alpha[:-1, :-1] + ahead[:, :-1] + beta[:-1, 1:] - beta[0, 0])
    gradient = np.exp(scores) * (by_blank + by_label)[..., None]
    gradient[:, :, 0] -= by_blank
    gradient[:, np.arange(width - 1), labels] -= by_label[:, :-1]
    return -beta[0, 0], gradient


@pytest.mark.parametrize("route", ROUTES)
def test_loss_is_minus_the_log_of_the_sum_over_all_alignments(route):
    batch = _batch()
    losses, _ = _compute(route, *batch)
    assert losses.dtype == np.float32
    np.testing.assert_allclose(losses, _brute_forces(*batch), rtol=1e-6)


@pytest.mark.parametrize("route", ["graph", "xla"])
@pytest.mark.parametrize(("scale", "rounding"), [(30.0, 4e-6), (1e4, 1e-3)])
def test_extreme_logits_are_exact(scale, rounding, route):
    logits, labels, logit_lengths, label_lengths = _batch(seed=1)
    logits = np.sign(logits) * np.float32(scale) + logits
    losses, gradient = _compute(route, logits, labels, logit_lengths, label_lengths)
    expected = _brute_forces(logits, labels, logit_lengths, label_lengths)
    np.testing.assert_allclose(losses, expected, rtol=1e-6)
    for b, (frames, length) in enumerate(zip(logit_lengths, label_lengths, strict=True)):
        if frames:
            _, right = _forward_backward(logits[b, :frames, : length + 1], labels[b, :length])
            found = gradient[b, :frames, : length + 1]
            np.testing.assert_allclose(found, right, rtol=0, atol=rounding)
    assert np.isfinite(gradient).all()


def test_nothing_of_the_size_of_the_scores_is_held_beside_the_gradient():
    rest = [tf.ones([2, 9], tf.int32), tf.constant([12, 12]), tf.constant([9, 9])]

    @tf.function(autograph=False, jit_compile=True)
    def compute(logits):
        return _loss_and_gradient(logits, *rest)

    compiled = compute.experimental_get_compiler_ir(tf.ones([2, 12, 10, 64]))(stage="optimized_hlo")
    _, entry = compiled.split("ENTRY ")
    whole = re.findall(r"(%\S+) = f32\[2,12,10,64\]\S* (\w+)\((.*?)\)", entry)
    [(_, first, _), (exponentials, second, _), (_, third, operands)] = whole
    assert (first, second, third) == ("parameter", "fusion", "fusion")
    assert exponentials in operands.split(", ")  # The gradient is written in their place.


@pytest.mark.parametrize("route", ROUTES)
def test_gradient_is_that_of_finite_differences(route):
    logits, *rest = _batch(seed=2)
    _, gradient = _compute(route, logits, *rest)
    step = 1e-5
    for example, (t, u, v) in itertools.product(range(B), np.ndindex(T, U + 1, V)):
        ends = []
        for sign in (1, -1):
            moved = logits[example].astype(np.float64)
            moved[t, u, v] += sign * step
            ends.append(_brute_force(moved, *(x[example] for x in rest)))
        expected = (ends[0] - ends[1]) / (2 * step)
        np.testing.assert_allclose(gradient[example, t, u, v], expected, atol=2e-6)


@pytest.mark.parametrize(("frames", "length", "symbols"), [(1, 1, 2), (7, 4, 9), (40, 30, 3)])
def test_uniform_logits_count_the_alignments(frames, length, symbols):
    logits = np.full((1, frames, length + 1, symbols), 3.5, np.float32)
    losses, gradient = _compute("graph", logits, np.ones((1, length), int), [frames], [length])
    steps, alignments = frames + length, math.comb(frames + length - 1, length)
    np.testing.assert_allclose(
        losses, [steps * math.log(symbols) - math.log(alignments)], rtol=1e-6
    )
    # A path visits as many nodes as it has arcs.
    others = gradient[..., 2:].sum(-1) * symbols / max(symbols - 2, 1)
    np.testing.assert_allclose(others.sum(), steps if symbols > 2 else 0, rtol=1e-5)


@pytest.mark.parametrize("route", ["graph", "xla"])
def test_long_examples_are_exact(route):
    frames, length, symbols = 1200, 200, 8
    random = np.random.default_rng(3)
    logits = random.normal(size=(1, frames, length + 1, symbols)).astype(np.float32)
    labels = random.integers(1, symbols, (1, length))
    expected_loss, expected_gradient = _forward_backward(logits[0], labels[0])
    losses, gradient = _compute(route, logits, labels, [frames], [length])
    np.testing.assert_allclose(losses[0], expected_loss, rtol=1e-6)
    np.testing.assert_allclose(gradient[0], expected_gradient, rtol=0, atol=2e-5)


def test_eager_graph_and_xla_agree():
    batch = _batch(seed=4)
    eager, graph, xla = (_compute(route, *batch) for route in ROUTES)
    for other in (graph, xla):
        np.testing.assert_allclose(other[0], eager[0], rtol=1e-6)
        np.testing.assert_allclose(other[1], eager[1], atol=1e-6)


def test_shapes_may_be_unknown_when_a_graph_is_made():
    batch = _batch(seed=5)
    signature = [
        tf.TensorSpec([None, None, None, None]),
        tf.TensorSpec([None, None], tf.int64),
        tf.TensorSpec([None], tf.int64),
        tf.TensorSpec([None], tf.int64),
    ]
    compute = tf.function(_loss_and_gradient, input_signature=signature, autograph=False)
    losses, gradient = compute(*batch)
    expected_losses, expected_gradient = _compute("graph", *batch)
    np.testing.assert_array_equal(losses, expected_losses)
    np.testing.assert_array_equal(gradient, expected_gradient)
    empty = [np.zeros((2, 0, 1, V), np.float32), np.zeros((2, 0), int), [0, 0], [0, 0]]
    np.testing.assert_array_equal(compute(*empty)[0], [0.0, 0.0])


@pytest.mark.parametrize("padding", [-7.0, 1e30, -np.inf, np.nan])
@pytest.mark.parametrize("route", ROUTES)
def test_padding_changes_nothing(route, padding):
    logits, labels, logit_lengths, label_lengths = _batch(seed=6)
    rest = (logit_lengths, label_lengths)
    losses, gradient = _compute(route, logits, labels, *rest)
    wide_logits = np.full((B, T + 3, U + 3, V), padding, np.float32)
    wide_labels = np.full((B, U + 2), 10**6)
    for example, (frames, length) in enumerate(zip(*rest, strict=True)):
        inside = (example, slice(frames), slice(length + 1))
        wide_logits[inside] = logits[inside]
        wide_labels[example, :length] = labels[example, :length]
    wide_losses, wide_gradient = _compute(route, wide_logits, wide_labels, *rest)
    np.testing.assert_allclose(wide_losses, losses, rtol=1e-6)
    np.testing.assert_allclose(wide_gradient[:, :T, : U + 1], gradient, atol=1e-6)
    for example, (frames, length) in enumerate(zip(*rest, strict=True)):
        assert not wide_gradient[example, frames:].any()
        assert not wide_gradient[example, :, length + 1 :].any()


def test_a_batch_is_its_examples_in_any_order():
    batch = _batch(seed=7)
    losses, gradient = _compute("graph", *batch)
    order = np.random.default_rng(8).permutation(B)
    shuffled_losses, shuffled_gradient = _compute("graph", *(x[order] for x in batch))
    np.testing.assert_allclose(shuffled_losses, losses[order], rtol=1e-6)
    np.testing.assert_allclose(shuffled_gradient, gradient[order], atol=1e-6)
    for example in range(B):
        alone = _compute("graph", *(x[example : example + 1] for x in batch))
        np.testing.assert_allclose(alone[0][0], losses[example], rtol=1e-6)
        np.testing.assert_allclose(alone[1][0], gradient[example], atol=1e-6)


@pytest.mark.parametrize("blank", [1, V - 1])
def test_blank_may_be_any_symbol(blank):
    logits, labels, *lengths = _batch(seed=9)
    losses, gradient = _compute("graph", logits, labels, *lengths)
    order = np.random.default_rng(10).permutation(V)
    order[[0, np.flatnonzero(order == blank)[0]]] = blank, order[0]  # symbol 0 becomes `blank`
    moved = np.empty_like(logits)
    moved[..., order] = logits
    moved_losses, moved_gradient = _compute("graph", moved, order[labels], *lengths, blank=blank)
    np.testing.assert_allclose(moved_losses, losses, rtol=1e-6)
    np.testing.assert_allclose(moved_gradient[..., order], gradient, atol=1e-6)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
@pytest.mark.parametrize("route", ["graph", "xla"])
def test_half_precision_logits_are_computed_in_float32(route, dtype):
    logits, *rest = _batch(seed=11)
    half = tf.cast(logits, dtype)
    losses, gradient = _COMPUTE[route](half, *map(tf.constant, rest))
    expected_losses, expected_gradient = _compute(route, tf.cast(half, tf.float32), *rest)
    assert losses.dtype == tf.float32
    assert gradient.dtype == dtype
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-6)
    np.testing.assert_allclose(
        tf.cast(gradient, tf.float32), expected_gradient, rtol=1e-2, atol=1e-7
    )


@pytest.mark.parametrize("route", ROUTES)
def test_labels_without_frames_cost_infinity_and_have_no_gradient(route):
    logits, labels, *_ = _batch(seed=12)
    losses, gradient = _compute(route, logits, labels, np.zeros(B, int), LABELS)
    np.testing.assert_array_equal(losses, np.where(LABELS, np.inf, 0.0))
    assert not gradient.any()


@pytest.mark.parametrize("reduce", [tf.reduce_mean, tf.square, tf.math.exp])
def test_an_infinite_loss_puts_no_nan_in_the_gradient(reduce):
    logits, labels, *_ = _batch(seed=12)
    logits = tf.constant(logits[:2])
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = transducer_loss(logits, labels[:2], [0, T], [1, U])
        reduced = reduce(losses)
    gradient = tape.gradient(reduced, logits).numpy()
    assert losses[0] == np.inf
    assert not gradient[0].any()
    assert np.isfinite(gradient[1]).all()
    assert gradient[1].any()


@pytest.mark.parametrize("route", ROUTES)
def test_neither_frames_nor_labels_cost_nothing(route):
    for frames, length in [(T, U), (0, U), (T, 0), (0, 0)]:
        logits = np.ones((2, frames, length + 1, V), np.float32)
        losses, gradient = _compute(route, logits, np.ones((2, length), int), [0, 0], [0, 0])
        np.testing.assert_array_equal(losses, [0.0, 0.0])
        assert gradient.shape == logits.shape
        assert not gradient.any()


def test_gradient_sums_to_zero_over_symbols():
    _, gradient = _compute("graph", *_batch(seed=13, scale=200.0))
    np.testing.assert_allclose(gradient.sum(-1), 0.0, atol=1e-6)


def test_gradient_is_weighted_by_example():
    logits, *rest = _batch(seed=14)
    _, gradient = _compute("eager", logits, *rest)
    weights = np.array([2.0, -1.0, 0.0, 3.0, 1e3, 0.5], np.float32)
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        total = tf.reduce_sum(weights * transducer_loss(logits, *rest))
    weighted = tape.gradient(total, logits)
    np.testing.assert_allclose(weighted, gradient * weights[:, None, None, None], rtol=1e-6)


def test_a_forbidden_symbol_is_on_no_path():
    logits, labels, logit_lengths, label_lengths = _batch(seed=15)
    labels[0], labels[4] = [1, 2, 3], [4, 2, 3]
    logits[0, 1:3, 0, 1] = -np.inf  # the first label is at frame 0 or 3
    logits[0, 0, 1, 0] = -np.inf  # so that no arc leads to (1, 1)
    logits[4, :, 0, 4] = -np.inf  # and here at none
    batch = (logits, labels, logit_lengths, label_lengths)
    losses, gradient = _compute("graph", *batch)
    with np.errstate(invalid="ignore"):
        np.testing.assert_allclose(losses, _brute_forces(*batch), rtol=1e-6)
    assert np.isfinite(gradient).all()
    assert gradient[0].any()
    assert losses[4] == np.inf
    assert not gradient[4].any()


@pytest.mark.parametrize("route", ROUTES)
def test_nan_within_the_lengths_is_seen_in_its_example_only(route):
    logits, *rest = _batch(seed=16)
    losses, gradient = _compute(route, logits, *rest)
    logits[0, 2, 1, 3] = np.nan
    with_nan = _compute(route, logits, *rest)
    assert np.isnan(with_nan[0][0])
    np.testing.assert_array_equal(with_nan[0][1:], losses[1:])
    np.testing.assert_array_equal(with_nan[1][1:], gradient[1:])


def test_occupancies_are_the_probabilities_of_arcs():
    random = np.random.default_rng(17)
    # Scores of any kind: they need not be normalised.
    blank_scores, label_scores = random.normal(size=(2, B, T, U + 1)).astype(np.float32) * 3
    losses, *occupancies = transducer_lattice(blank_scores, label_scores, FRAMES, LABELS)
    for example in range(B):
        scores = (blank_scores[example], label_scores[example])
        paths = list(_paths(FRAMES[example], LABELS[example]))
        weights = [math.exp(sum(scores[arc[2]][arc[:2]] for arc in path)) for path in paths]
        expected = np.zeros((2, T, U + 1))
        for path, weight in zip(paths, weights, strict=True):
            for t, u, is_label in path:
                expected[int(is_label), t, u] += weight / sum(weights)
        np.testing.assert_allclose(losses[example], -math.log(sum(weights)), rtol=1e-5, atol=1e-6)
        np.testing.assert_allclose([x[example] for x in occupancies], expected, atol=1e-6)


def test_a_second_order_gradient_is_refused():
    logits, *rest = _batch(seed=18)
    logits = tf.constant(logits)
    with tf.GradientTape() as outer:
        outer.watch(logits)
        _, gradient = _loss_and_gradient(logits, *rest)
    with pytest.raises(LookupError, match="no second-order gradient"):
        outer.gradient(gradient, logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"logits": np.zeros((2, 3, 5), np.float32)}, "`logits` must have rank 4"),
        ({"logits": np.zeros((2, 3, 5, 6), int)}, "`logits` must be floating"),
        ({"labels": np.zeros((2, 4, 1), int)}, "`labels` must have rank 2"),
        ({"labels": np.zeros((2, 4), np.float32)}, "`labels` must be integers"),
        ({"labels": np.zeros((2, 5), int)}, "`logits` must be one longer"),
        ({"logit_lengths": np.zeros(3, int)}, "`logit_lengths` must have size 2 in axis 0"),
        ({"label_lengths": 4}, "`label_lengths` must have rank 1"),
        ({"blank": 6}, r"`blank` must be in \[0, 6\). Received: blank=6"),
        ({"blank": -1}, "`blank` must be in"),
    ],
)
def test_arguments_are_checked(change, message):
    arguments = {
        "logits": np.zeros((2, 3, 5, 6), np.float32),
        "labels": np.ones((2, 4), int),
        "logit_lengths": np.array([3, 3]),
        "label_lengths": np.array([4, 4]),
    }
    transducer_loss(**arguments)
    with pytest.raises(ValueError, match=message):
        transducer_loss(**{**arguments, **change})
