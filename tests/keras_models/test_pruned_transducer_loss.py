import numpy as np
import pytest
import tensorflow as tf

from keras_models.losses.transducer import (
    additive_transducer_occupancies,
    band_of_occupancies,
    pruned_transducer_loss,
    transducer_loss,
    transducer_occupancies,
)

B, T, U, V, S = 5, 6, 4, 7, 3
FRAMES = np.array([6, 4, 5, 0, 6])
LABELS = np.array([4, 2, 0, 0, 3])
# The first ends past the last column; the second leaves out where its path would end.
STARTS = np.array([[0, 0, 1, 1, 2, 3], [0, 0, 0, 1, 4, 4], [0] * 6, [0] * 6, [0, 1, 1, 1, 3, 3]])


def _batch(seed=0):
    random = np.random.default_rng(seed)
    logits = random.normal(size=(B, T, U + 1, V)).astype(np.float32)
    return logits, random.integers(1, V, (B, U))


def _in_band(logits, starts, size):
    """Returns `[B, T, S, V]`, NaN past the last column."""
    columns = starts[:, :, None] + np.arange(size)
    padded = np.pad(logits, [(0, 0), (0, 0), (0, size), (0, 0)], constant_values=np.nan)
    return np.take_along_axis(padded, columns[..., None], axis=2), columns


def _gradient(loss, logits, *arguments, **options):
    logits = tf.constant(logits)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        losses = loss(logits, *arguments, **options)
    return losses.numpy(), tape.gradient(losses, logits).numpy()


@pytest.mark.parametrize(
    "variant", [{}, {"monotonic": True}, {"factored_blank": True, "fastemit": 0.5}], ids=str
)
@pytest.mark.parametrize("jit_compile", [None, True])
def test_loss_is_that_of_the_paths_within_the_band(variant, jit_compile):
    logits, labels = _batch()
    banded, columns = _in_band(logits, STARTS, S)
    loss = pruned_transducer_loss
    if jit_compile:
        loss = tf.function(loss, autograph=False, jit_compile=True)
    losses, gradient = _gradient(loss, banded, STARTS, labels, FRAMES, LABELS, **variant)
    # A symbol of its own that takes all probability makes a node a dead end.
    outside = np.ones((B, T, U + 2), bool)
    for b, t in np.ndindex(B, T):
        outside[b, t, STARTS[b, t] : STARTS[b, t] + S] = False
    dead = np.where(outside[:, :, : U + 1, None], 200.0, -np.inf).astype(np.float32)
    whole = np.concatenate([logits, dead], axis=3)
    if variant.get("factored_blank"):
        whole[outside[:, :, : U + 1], 0] = -200.0
    expected, by_whole = _gradient(transducer_loss, whole, labels, FRAMES, LABELS, **variant)
    within = expected < 150
    np.testing.assert_allclose(losses[within], expected[within], rtol=1e-6, atol=1e-6)
    assert within[[0, 2, 3, 4]].all()
    assert np.isinf(losses[~within]).all()
    assert not gradient[~within].any()
    padded = np.pad(by_whole[..., :V], [(0, 0), (0, 0), (0, S), (0, 0)])
    chosen = np.take_along_axis(padded, columns[..., None], axis=2)
    np.testing.assert_allclose(gradient[within], chosen[within], atol=2e-6)


def test_a_band_as_wide_as_the_lattice_leaves_nothing_out():
    logits, labels = _batch(seed=1)
    losses, gradient = _gradient(
        pruned_transducer_loss, logits, np.zeros((B, T), int), labels, FRAMES, LABELS
    )
    expected = _gradient(transducer_loss, logits, labels, FRAMES, LABELS)
    np.testing.assert_allclose(losses, expected[0], rtol=1e-6)
    np.testing.assert_allclose(gradient, expected[1], atol=1e-6)


def test_a_band_begins_and_ends_with_the_path_and_moves_less_than_its_size():
    random = np.random.default_rng(2)
    frames, labels = np.array([9, 7, 1, 0, 9]), np.array([7, 3, 2, 0, 0])
    for size in (2, 3, 5, 12):
        occupancies = random.random((B, 9, 8)).astype(np.float32)
        starts = band_of_occupancies(occupancies, frames, labels, size).numpy()
        for b in range(B):
            if (size - 1) * frames[b] < labels[b] or not frames[b]:
                continue
            of_frames = starts[b, : frames[b]]
            assert of_frames[0] == 0
            assert of_frames[-1] == max(labels[b] + 1 - size, 0)
            assert set(np.diff(of_frames)) <= set(range(size))


def test_a_band_follows_the_occupancies():
    random = np.random.default_rng(3)
    f = random.normal(size=(B, 40, V)).astype(np.float32)
    g = random.normal(size=(B, 13, V)).astype(np.float32)
    labels, frames, lengths = random.integers(1, V, (B, 12)), [40] * B, [12] * B
    # Each label has its frame.
    f[:, :, 0] += 6.0
    for b in range(B):
        f[b, np.sort(random.choice(40, 12, replace=False)), labels[b]] += 12.0
    logits = f[:, :, None] + g[:, None]
    occupancies = additive_transducer_occupancies(f, g, labels, frames, lengths)
    for x, y in zip(
        occupancies, transducer_occupancies(logits, labels, frames, lengths), strict=True
    ):
        np.testing.assert_allclose(x, y, atol=1e-5)
    losses = transducer_loss(logits, labels, frames, lengths).numpy()
    above = []
    for size in (3, 6, 13):
        starts = band_of_occupancies(occupancies.nodes, frames, lengths, size).numpy()
        banded, _ = _in_band(logits, starts, size)
        pruned = pruned_transducer_loss(banded, starts, labels, frames, lengths).numpy()
        above.append(np.mean(pruned - losses))
    assert above[0] > above[1] > above[2] - 1e-4
    assert above[1] < 0.1
    np.testing.assert_allclose(above[2], 0.0, atol=1e-4)


def test_arguments_are_checked():
    logits, labels = _batch()
    banded, _ = _in_band(logits, STARTS, S)
    with pytest.raises(ValueError, match="`starts` must have size 6 in axis 1"):
        pruned_transducer_loss(banded, STARTS[:, 1:], labels, FRAMES, LABELS)
    with pytest.raises(ValueError, match="`starts` must be integers"):
        pruned_transducer_loss(banded, STARTS / 1.0, labels, FRAMES, LABELS)
    with pytest.raises(ValueError, match="`size` must be positive"):
        band_of_occupancies(logits[..., 0], FRAMES, LABELS, 0)
