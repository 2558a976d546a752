"""What holds of every entry to the transducer loss, with every variant."""

import itertools
import math
import re

import numpy as np
import pytest
import tensorflow as tf

from keras_models.losses import fused
from keras_models.losses.arcs import score_arcs
from keras_models.losses.transducer import (
    additive_transducer_loss,
    fused_transducer_loss,
    transducer_loss,
    transducer_occupancies,
)

B, T, U, V, D = 6, 4, 3, 5, 7
# A full example, one frame, no label, no frame; more labels than frames, and fewer.
FRAMES = np.array([4, 1, 3, 0, 2, 4])
LABELS = np.array([3, 2, 0, 0, 3, 1])

ROUTES = {
    "eager": {},
    "graph": {"autograph": False},
    "xla": {"autograph": False, "jit_compile": True},
}
VARIANTS = (
    {},
    {"fastemit": 0.7},
    {"monotonic": True},
    {"factored_blank": True},
    {"monotonic": True, "factored_blank": True, "fastemit": 0.3, "blank": 2},
)


def _fused(*arguments, **options):
    """Five nodes at a time, of which there are no multiple of five."""
    return fused_transducer_loss(*arguments, nodes=5, **options)


# By name: the loss, the shapes of its scores, and the logits that it stands for.
ENTRIES = {
    "logits": (transducer_loss, ["BTWV"], lambda logits: logits),
    "additive": (
        additive_transducer_loss,
        ["BTV", "BWV"],
        lambda f, g: f[:, :, None] + g[:, None],
    ),
    "fused": (
        _fused,
        ["BTD", "BWD", "DV", "V"],
        lambda e, p, w, b: tf.einsum("btud,dv->btuv", tf.tanh(e[:, :, None] + p[:, None]), w) + b,
    ),
}


def _batch(entry, seed=0, scale=1.0, blank=0):
    """Returns the scores that an entry takes, as a list, and labels none of which is blank."""
    random = np.random.default_rng(seed)
    sizes = {"B": B, "T": T, "W": U + 1, "V": V, "D": D}
    shapes = [[sizes[letter] for letter in letters] for letters in ENTRIES[entry][1]]
    scores = [random.normal(scale=scale, size=shape).astype(np.float32) for shape in shapes]
    return scores, (blank + random.integers(1, V, (B, U))) % V


def _gradients(loss, scores, *arguments, **options):
    scores = [tf.convert_to_tensor(x) for x in scores]
    with tf.GradientTape() as tape:
        tape.watch(scores)
        losses = loss(*scores, *arguments, **options)
        reached = tf.where(tf.math.is_inf(losses), 0.0, losses)
    return losses, tape.gradient(reached, scores)


def _compute(entry, route, scores, labels, frames=FRAMES, lengths=LABELS, **options):
    """Returns losses and a list of gradients."""

    def compute(scores, *arguments):
        return _gradients(ENTRIES[entry][0], scores, *arguments, **options)

    if route != "eager":
        compute = tf.function(compute, **ROUTES[route])
    losses, gradients = compute(
        [*map(tf.constant, scores)], *map(tf.constant, (labels, frames, lengths))
    )
    return losses.numpy(), [x.numpy() for x in gradients]


def _paths(frames, labels, monotonic):
    """Yields every alignment, as the list of its arcs `(t, u, is_label)`."""
    steps = frames if monotonic else frames + labels - 1
    if not frames:
        yield from [] if labels else [[]]
        return
    for chosen in itertools.combinations(range(steps), labels):
        arcs, t, u = [], 0, 0
        for step in range(frames if monotonic else frames + labels):
            is_label = step in chosen
            arcs.append((t, u, is_label))
            t, u = t + (monotonic or not is_label), u + is_label
        yield arcs


def _definition(
    logits, labels, frames, lengths, monotonic=False, factored_blank=False, fastemit=0.0, blank=0
):
    """Returns the losses `[B]` as the papers define them, path by path, in float64."""
    if factored_blank:
        others = tf.one_hot(blank, V, -np.inf, 0.0, dtype=tf.float64)
        labels_part = tf.nn.log_softmax(logits + others) + tf.math.log_sigmoid(
            -logits[..., blank, None]
        )
        blank_part = tf.math.log_sigmoid(logits[..., blank])
    else:
        labels_part = tf.nn.log_softmax(logits)
        blank_part = labels_part[..., blank]
    # The value of the arc's score, with a derivative of 1 + λ.
    labels_part = (1 + fastemit) * labels_part - tf.stop_gradient(fastemit * labels_part)
    losses = []
    for b in range(len(frames)):
        paths = [
            tf.add_n(
                [
                    labels_part[b, t, u, labels[b, u]] if is_label else blank_part[b, t, u]
                    for t, u, is_label in path
                ]
                or [tf.zeros([], tf.float64)]
            )
            for path in _paths(frames[b], lengths[b], monotonic)
        ]
        total = tf.reduce_logsumexp(tf.stack(paths)) if paths else -np.inf
        losses.append(-tf.cast(total, tf.float64))
    return tf.stack(losses)


def _expected(entry, scores, labels, frames=FRAMES, lengths=LABELS, **options):
    """Returns losses and gradients by definition, in float64."""
    joint = ENTRIES[entry][2]

    def loss(*scores):
        return _definition(joint(*scores), labels, frames, lengths, **options)

    losses, gradients = _gradients(loss, [x.astype(np.float64) for x in scores])
    return losses.numpy(), [x.numpy() for x in gradients]


def _assert_same(actual, expected, atol=2e-6):
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-6, atol=1e-7)
    for x, y in zip(actual[1], expected[1], strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-5, atol=atol)


@pytest.mark.parametrize("variant", VARIANTS, ids=str)
@pytest.mark.parametrize("entry", ENTRIES)
def test_loss_and_gradient_are_those_of_the_definition(entry, variant):
    scores, labels = _batch(entry, blank=variant.get("blank", 0))
    actual = _compute(entry, "eager", scores, labels, **variant)
    _assert_same(actual, _expected(entry, scores, labels, **variant))


@pytest.mark.parametrize("variant", [VARIANTS[0], VARIANTS[-1]], ids=str)
@pytest.mark.parametrize("entry", ENTRIES)
def test_eager_graph_and_xla_agree(entry, variant):
    scores, labels = _batch(entry, seed=1, blank=variant.get("blank", 0))
    eager, *others = (_compute(entry, route, scores, labels, **variant) for route in ROUTES)
    for other in others:
        _assert_same(other, eager)


@pytest.mark.parametrize("padding", [1e30, -np.inf, np.nan])
@pytest.mark.parametrize("entry", ENTRIES)
def test_padding_changes_nothing(entry, padding):
    scores, labels = _batch(entry, seed=2)
    expected = _compute(entry, "graph", scores, labels)
    wide = []
    for x, letters in zip(scores, ENTRIES[entry][1], strict=True):
        y = np.pad(x, [(0, 3 if letter in "TW" else 0) for letter in letters])
        for b, (frames, length) in enumerate(zip(FRAMES, LABELS, strict=True)):
            for axis, letter in enumerate(letters[1:] if letters[0] == "B" else ""):
                past = {"T": frames, "W": length + 1}.get(letter)
                if past is not None:
                    y[b][(slice(None),) * axis + (slice(past, None),)] = padding
        wide.append(y)
    wide_labels = np.full((B, U + 3), 10**6)
    for b, length in enumerate(LABELS):
        wide_labels[b, :length] = labels[b, :length]
    losses, gradients = _compute(entry, "graph", wide, wide_labels)
    inside = []
    for x, y in zip(scores, gradients, strict=True):
        inside.append(y[tuple(map(slice, x.shape))])
        assert np.count_nonzero(y) == np.count_nonzero(inside[-1])
    _assert_same((losses, inside), expected)


@pytest.mark.parametrize("entry", ENTRIES)
def test_shapes_may_be_unknown_when_a_graph_is_made(entry):
    loss, letters, _ = ENTRIES[entry]
    scores, labels = _batch(entry, seed=3)
    signature = [
        [tf.TensorSpec([None] * len(x)) for x in letters],
        tf.TensorSpec([None, None], tf.int64),
        *[tf.TensorSpec([None], tf.int64)] * 2,
    ]
    compute = tf.function(
        lambda *arguments: _gradients(loss, *arguments), input_signature=signature, autograph=False
    )
    losses, gradients = compute(scores, labels, FRAMES, LABELS)
    _assert_same((losses, gradients), _compute(entry, "graph", scores, labels))


@pytest.mark.parametrize("route", ["eager", "xla"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_neither_frames_nor_labels_cost_nothing(entry, route):
    sizes = [(T, U), (0, U), (T, 0), (0, 0)]
    for frames, length in sizes[1::2] if route == "xla" else sizes:
        sizes = {"B": 2, "T": frames, "W": length + 1, "V": V, "D": D}
        scores = [np.ones([sizes[x] for x in s], np.float32) for s in ENTRIES[entry][1]]
        losses, gradients = _compute(
            entry, route, scores, np.ones((2, length), int), [0, 0], [0, 0]
        )
        np.testing.assert_array_equal(losses, [0.0, 0.0])
        assert [x.shape for x in gradients] == [x.shape for x in scores]
        assert not any(x.any() for x in gradients)


@pytest.mark.parametrize("route", ["eager", "xla"])
@pytest.mark.parametrize("entry", ENTRIES)
def test_bfloat16_is_computed_in_float32(entry, route):
    scores, labels = _batch(entry, seed=4)
    half = [tf.cast(x, tf.bfloat16) for x in scores]

    def compute(*scores):
        return _gradients(ENTRIES[entry][0], scores, labels, FRAMES, LABELS)

    if route != "eager":
        compute = tf.function(compute, **ROUTES[route])
    losses, gradients = compute(*half)
    expected = _compute(entry, "graph", [tf.cast(x, tf.float32) for x in half], labels)
    assert losses.dtype == tf.float32
    assert {x.dtype for x in gradients} == {tf.bfloat16}
    np.testing.assert_allclose(losses, expected[0], rtol=1e-6)
    for x, y in zip(gradients, expected[1], strict=True):
        np.testing.assert_allclose(tf.cast(x, tf.float32), y, rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("entry", ENTRIES)
def test_infinite_losses_with_infinite_weights_put_no_nan_in_the_gradient(entry):
    scores, labels = _batch(entry, seed=5)
    scores = [tf.constant(x) for x in scores]
    frames = np.where(np.arange(B) == 4, 0, FRAMES)
    with tf.GradientTape() as tape:
        tape.watch(scores)
        losses = ENTRIES[entry][0](*scores, labels, frames, LABELS)
        squares = losses**2
    gradients = tape.gradient(squares, scores)
    assert losses[4] == np.inf
    assert all(np.isfinite(x).all() and x.numpy().any() for x in gradients)


@pytest.mark.parametrize("entry", ENTRIES)
def test_nan_within_the_lengths_is_seen_in_its_example_only(entry):
    scores, labels = _batch(entry, seed=6)
    losses, _ = _compute(entry, "graph", scores, labels)
    scores[0][0, 2, ..., 3] = np.nan
    with_nan, _ = _compute(entry, "graph", scores, labels)
    assert np.isnan(with_nan[0])
    np.testing.assert_array_equal(with_nan[1:], losses[1:])


@pytest.mark.parametrize("entry", ENTRIES)
def test_a_second_order_gradient_is_refused(entry):
    scores, labels = _batch(entry, seed=7)
    scores = [tf.constant(x) for x in scores]
    with tf.GradientTape() as outer:
        outer.watch(scores)
        _, gradients = _gradients(ENTRIES[entry][0], scores, labels, FRAMES, LABELS)
    with pytest.raises(LookupError, match="no second-order gradient"):
        outer.gradient(gradients, scores)


@pytest.mark.parametrize("monotonic", [False, True])
def test_occupancies_are_the_shares_of_paths(monotonic):
    [logits], labels = _batch("logits", seed=8)
    actual = transducer_occupancies(logits, labels, FRAMES, LABELS, monotonic=monotonic)
    scores = tf.nn.log_softmax(logits.astype(np.float64)).numpy()
    expected = np.zeros((2, B, T, U + 1))
    for b in range(B):
        paths = list(_paths(FRAMES[b], LABELS[b], monotonic))
        logs = [
            sum(scores[b, t, u, labels[b, u] if is_label else 0] for t, u, is_label in path)
            for path in paths
        ]
        shares = np.exp(logs) / np.exp(logs).sum()
        for path, share in zip(paths, shares, strict=True):
            for t, u, is_label in path:
                expected[int(is_label), b, t, u] += share
    np.testing.assert_allclose(actual.blanks, expected[0], atol=1e-6)
    np.testing.assert_allclose(actual.labels, expected[1], atol=1e-6)
    np.testing.assert_allclose(actual.nodes, expected.sum(0), atol=1e-6)


def test_occupancies_are_distributions():
    [logits], labels = _batch("logits", seed=9)
    nodes, blanks, emitted = transducer_occupancies(
        logits, labels, FRAMES, LABELS, factored_blank=True
    )
    for b in np.flatnonzero(FRAMES):
        np.testing.assert_allclose(tf.reduce_sum(emitted[b], 0)[: LABELS[b]], 1.0, rtol=1e-5)
        np.testing.assert_allclose(tf.reduce_sum(blanks[b], 1)[: FRAMES[b]], 1.0, rtol=1e-5)
        np.testing.assert_allclose(nodes[b, 0, 0], 1.0, rtol=1e-5)
    assert not emitted[..., -1].numpy().any()


def test_occupancies_are_constants():
    [logits], labels = _batch("logits", seed=18)
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        occupancies = transducer_occupancies(logits, labels, FRAMES, LABELS)
    assert tape.gradient(occupancies.nodes, logits) is None


def test_labels_that_outnumber_frames_have_no_monotonic_path():
    [logits], labels = _batch("logits", seed=10)
    losses, [gradient] = _compute("logits", "graph", [logits], labels, monotonic=True)
    outnumbered = LABELS > FRAMES
    np.testing.assert_array_equal(np.isinf(losses), outnumbered)
    assert not gradient[outnumbered].any()


def test_a_factored_blank_is_softmax_where_its_logit_is_raised_by_the_normaliser_of_labels():
    [logits], labels = _batch("logits", seed=11)
    raised = logits.copy()
    raised[..., 0] += np.log(np.exp(logits[..., 1:]).sum(-1))
    factored = transducer_loss(logits, labels, FRAMES, LABELS, factored_blank=True)
    np.testing.assert_allclose(
        factored, transducer_loss(raised, labels, FRAMES, LABELS), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize(
    ("route", "scale", "factored_blank"),
    [("xla", 30.0, False), ("eager", 30.0, True), ("eager", 1e4, False), ("xla", 1e4, True)],
)
def test_contradicting_additive_scores_are_exact(route, scale, factored_blank):
    scores, labels = _batch("additive", seed=12)
    # Whole numbers, whose sums float32 holds exactly: what is tested is the loss, not the sum.
    f, g = (np.round(x) + np.float32(scale) * np.sign(x) for x in scores)
    # A frame and a column with nodes that are safe among those that are not.
    f[0, 1] = g[0, 2] = 0.0
    actual = _compute("additive", route, [f, g], labels, factored_blank=factored_blank)
    expected = _expected("additive", [f, g], labels, factored_blank=factored_blank)
    # Paths thousands of nats long differ by no less than float32 can tell of such numbers.
    _assert_same(actual, expected, atol=max(1e-5, 5e-8 * scale))


@pytest.mark.parametrize("apart", [50.0, 55.0, 57.0, 60.0, 90.0, 110.0])
def test_additive_scores_are_exact_on_both_sides_of_underflow(apart):
    """Each of f and g has a symbol that the other all but forbids; the rest lies between."""
    scores, labels = _batch("additive", seed=13)
    f, g = scores
    f[..., 1] += 2 * apart
    g[..., 2] += 2 * apart
    f[..., [0, 3, 4]] += apart / 2
    g[..., [0, 3, 4]] += apart / 2
    _assert_same(
        _compute("additive", "eager", [f, g], labels), _expected("additive", [f, g], labels), 1e-5
    )


def test_weights_may_be_variables():
    scores, labels = _batch("fused", seed=17)
    variables = [tf.Variable(x) for x in scores]

    @tf.function(autograph=False)
    def compute():
        with tf.GradientTape() as tape:
            losses = fused_transducer_loss(*variables, labels, FRAMES, LABELS)
        return losses, tape.gradient(losses, variables)

    _assert_same(compute(), _compute("fused", "graph", scores, labels))


@pytest.mark.parametrize("nodes", [None, 1, 6, B * T * (U + 1), 100])
def test_how_many_nodes_are_computed_at_a_time_changes_nothing(nodes):
    scores, labels = _batch("fused", seed=14)
    actual = _gradients(fused_transducer_loss, scores, labels, FRAMES, LABELS, nodes=nodes)
    _assert_same(actual, _compute("fused", "graph", scores, labels))


@pytest.mark.parametrize("factored_blank", [False, True])
@pytest.mark.parametrize("parts", [2, 8, 30])
def test_in_how_many_parts_symbols_are_reduced_changes_nothing(parts, factored_blank):
    logits = 30.0 * np.random.default_rng(25).normal(size=(1, 2, 3, 21)).astype(np.float32)
    symbols, blank = np.array([[[4, 20, 1]]]), 3
    arcs = score_arcs(logits, symbols, blank, factored_blank, parts)
    for actual, expected in zip(
        arcs, score_arcs(logits, symbols, blank, factored_blank), strict=True
    ):
        np.testing.assert_allclose(actual, expected, rtol=2e-6, atol=2e-6)


def test_nodes_that_no_path_goes_through_are_left_out(monkeypatch):
    scores, labels = _batch("fused", seed=15)
    encoding, _, kernel, _ = scores
    # Labels are all but impossible before the last frame, and blanks there.
    encoding[:, :, 0], kernel[0, 0] = 20.0, 60.0
    encoding[np.arange(B), FRAMES - 1, 0] = -20.0
    computed = {"score_arcs": 0, "gradient_by_logits": 0}

    def counted(name):
        function = getattr(fused, name)

        def count(*arguments):
            computed[name] += 1
            return function(*arguments)

        return count

    for name in computed:
        monkeypatch.setattr(fused, name, counted(name))
    actual = _gradients(fused_transducer_loss, scores, labels, FRAMES, LABELS, nodes=1)
    _assert_same(actual, _expected("fused", scores, labels), atol=1e-5)
    assert computed["score_arcs"] == sum(FRAMES * (LABELS + 1))
    assert computed["gradient_by_logits"] == sum((FRAMES + LABELS)[FRAMES > 0])


@pytest.mark.parametrize(
    ("route", "variant"), [*(("graph", x) for x in VARIANTS), ("xla", VARIANTS[-1])], ids=str
)
def test_few_nodes_make_the_gradient_of_all(route, variant):
    joint, blank = ENTRIES["fused"][2], variant.get("blank", 0)
    sizes = {"B": 3, "T": 40, "W": 13, "V": V, "D": D}
    random = np.random.default_rng(19)
    scores = [random.normal(size=[sizes[x] for x in s]) for s in ENTRIES["fused"][1]]
    scores[2] *= 6.0
    scores = [x.astype(np.float32) for x in scores]
    labels = (blank + random.integers(1, V, (3, 12))) % V
    rest = labels, np.array([40, 29, 0]), np.array([12, 7, 3])
    actual = _compute("fused", route, scores, *rest, **variant)

    options = {name: value for name, value in variant.items() if name != "fastemit"}
    nodes = transducer_occupancies(joint(*scores), *rest, **options).nodes
    assert np.mean(fused.needed_nodes(nodes)) < 0.5

    def unfused(*arguments, **options):
        return transducer_loss(joint(*arguments[:4]), *arguments[4:], **options)

    _assert_same(actual, _gradients(unfused, scores, *rest, **variant), atol=2e-5)


def test_no_more_is_left_out_of_a_frame_or_a_column_than_float32_rounds():
    logits = 4.0 * np.random.default_rng(24).normal(size=(3, 40, 13, V))
    labels, frames, lengths = np.ones((3, 12), np.int32), np.array([40, 29, 0]), [12, 7, 3]
    nodes = transducer_occupancies(logits.astype(np.float32), labels, frames, lengths).nodes.numpy()
    needed = fused.needed_nodes(nodes).numpy()
    for axis in (1, 2):
        left_out = np.where(needed, 0.0, nodes).astype(np.float64).sum(axis)
        assert 0 < left_out.max() <= 2.0**-24
    # Fewer are computed than if each had to be that small by itself.
    assert needed.sum() < np.sum(nodes > 2.0**-24 / 40)
    assert fused.needed_nodes(np.full([1, 2, 3], np.nan, np.float32)).numpy().all()


@pytest.mark.parametrize("route", ["graph", "xla"])
@pytest.mark.parametrize("factored_blank", [False, True])
def test_huge_fused_scores_are_exact(route, factored_blank):
    scores, labels = _batch("fused", seed=20)
    encoding, prediction, kernel, bias = scores
    # Hidden units of ±1 and weights of whole numbers: no rounding but that of the loss.
    encoding, prediction = np.sign(encoding) * 60.0, prediction * 20.0
    bias = np.sign(bias) * 1e4
    scores = [x.astype(np.float32) for x in (encoding, prediction, np.round(9 * kernel), bias)]
    actual = _compute("fused", route, scores, labels, factored_blank=factored_blank)
    expected = _expected("fused", scores, labels, factored_blank=factored_blank)
    # Paths thousands of nats long differ by no less than float32 can tell of such numbers.
    _assert_same(actual, expected, atol=5e-4)


def test_long_examples_are_exact():
    frames, length, symbols = 1200, 200, 8
    random = np.random.default_rng(16)
    f = random.normal(size=(1, frames, symbols)).astype(np.float32)
    g = random.normal(size=(1, length + 1, symbols)).astype(np.float32)
    labels = random.integers(1, symbols, (1, length))
    arguments = (labels, [frames], [length])
    joint = f[:, :, None].astype(np.float64) + g[:, None]
    loss, by_logits = _forward_backward(joint[0], labels[0])
    actual = _compute("additive", "xla", [f, g], *map(np.array, arguments))
    np.testing.assert_allclose(actual[0], [loss], rtol=1e-6)
    np.testing.assert_allclose(actual[1][0][0], by_logits.sum(1), rtol=0, atol=2e-5)
    # Hundreds of frames in one column: as many whole occupancies.
    np.testing.assert_allclose(actual[1][1][0], by_logits.sum(0), rtol=2e-6, atol=2e-5)
    # The scores themselves as the hidden layer, scaled so that tanh is the identity.
    small = 2.0**-20
    kernel = np.eye(symbols, dtype=np.float32) / small
    fused = _gradients(
        fused_transducer_loss,
        [f * small, g * small, kernel, np.zeros(symbols, np.float32)],
        *arguments,
    )
    np.testing.assert_allclose(fused[0], [loss], rtol=1e-6)
    np.testing.assert_allclose(fused[1][0][0] * small, by_logits.sum(1), rtol=0, atol=2e-5)


def test_the_gradients_of_a_long_example_s_joint_are_those_of_float64():
    frames, length, symbols, units = 1200, 200, 8, 8
    random = np.random.default_rng(21)
    sizes = {"B": 1, "T": frames, "W": length + 1, "V": symbols, "D": units}
    scores = [random.normal(size=[sizes[x] for x in s]) for s in ENTRIES["fused"][1]]
    scores = [x.astype(np.float32) for x in scores]
    labels = random.integers(1, symbols, (1, length))
    losses, gradients = _compute(
        "fused", "xla", scores, labels, np.array([frames]), np.array([length])
    )
    encoding, prediction, kernel, bias = (x.astype(np.float64) for x in scores)
    hidden = np.tanh(encoding[0][:, None] + prediction[0])
    loss, by_logits = _forward_backward(hidden @ kernel + bias, labels[0])
    by_sum = by_logits @ kernel.T * (1 - hidden**2)
    expected = [
        by_sum.sum(1)[None],
        by_sum.sum(0)[None],
        np.einsum("tud,tuv->dv", hidden, by_logits),
        by_logits.sum((0, 1)),
    ]
    np.testing.assert_allclose(losses, [loss], rtol=1e-6)
    # The scores, sums of products, are rounded to float32, and a path adds up a thousand of them.
    for actual, right in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(actual, right, rtol=0, atol=1e-4 * np.abs(right).max())


def _forward_backward(logits, labels):
    """Returns loss and gradient of one full example in float64, by α and β, node by node."""
    scores = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
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


@pytest.mark.parametrize("entry", ["additive", "fused"])
def test_nothing_of_the_size_of_the_joint_scores_is_held(entry):
    sizes = {"B": 2, "T": 12, "W": 10, "V": 64, "D": 8}
    scores = [tf.ones([sizes[x] for x in letters]) for letters in ENTRIES[entry][1]]
    rest = [tf.ones([2, 9], tf.int32), tf.constant([12, 12]), tf.constant([9, 9])]

    @tf.function(autograph=False, jit_compile=True)
    def compute(*scores):
        return _gradients(ENTRIES[entry][0], scores, *rest)

    compiled = compute.experimental_get_compiler_ir(*scores)(stage="optimized_hlo")
    shapes = set(re.findall(r"\b(?:f32|s32|pred)\[([\d,]+)\]", compiled))
    largest = max(math.prod(map(int, shape.split(","))) for shape in shapes)
    # The largest is f, or the gradient by it; the joint scores have ten times its size.
    assert 0 < largest <= 2 * 12 * 64


@pytest.mark.parametrize(
    ("entry", "change", "message"),
    [
        ("additive", (0, np.zeros((B, T), np.float32)), "`encoder_scores` must have rank 3"),
        ("additive", (1, np.zeros((B, U + 1, V), int)), "`predictor_scores` must be floating"),
        ("additive", (1, np.zeros((B, U, V), np.float32)), "`predictor_scores` must be one longer"),
        ("additive", (1, np.zeros((B, U + 1, 3), np.float32)), "must have size 5 in axis 2, as"),
        ("fused", (1, np.zeros((B, U, D), np.float32)), "`prediction` must be one longer"),
        ("fused", (2, np.zeros((D + 1, V), np.float32)), "`kernel` must have size 7 in axis 0"),
        ("fused", (3, np.zeros(V + 1, np.float32)), "`bias` must have size 5 in axis 0"),
        ("fused", (0, np.zeros((2, T, D), np.float32)), "`prediction` must have size 2 in axis 0"),
    ],
)
def test_arguments_are_checked(entry, change, message):
    scores, labels = _batch(entry)
    scores[change[0]] = change[1]
    with pytest.raises(ValueError, match=message):
        ENTRIES[entry][0](*scores, labels, FRAMES, LABELS)


def test_no_nodes_at_a_time_are_refused():
    scores, labels = _batch("fused")
    with pytest.raises(ValueError, match="`nodes` must be positive"):
        fused_transducer_loss(*scores, labels, FRAMES, LABELS, nodes=0)
