"""Optimizer steps against NumPy: of a dense layer, whose gradient is known."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import strategies
from pipelines.job import Train
from pipelines.step import TrainStep

RATE = 0.1
PLAIN = {
    "optimizer": "sgd",
    "beta_1": 0.0,
    "learning_rate": RATE,
    "schedule": "constant",
    "warmup_steps": 0,
    "clip": "none",
    "jit_compile": False,
}
RANDOM = np.random.default_rng(5)
X, Y = RANDOM.normal(size=[6, 3]).astype(np.float32), RANDOM.normal(size=[6]).astype(np.float32)
WEIGHTS = [np.array([[0.7], [-1.2], [0.4]], np.float32), np.array([0.3], np.float32)]


@pytest.fixture
def stepped(speller):
    """Returns the weights after each of some steps, on the same batch."""

    class Line(speller):
        def __init__(self, inputs, outputs):
            super().__init__()
            self.model = keras.layers.Dense(outputs)
            self.model.build((None, inputs))

        def losses(self, batch, dropout_seed=None):
            errors = self.model(batch["x"]) - batch["y"][:, tf.newaxis]
            return 0.5 * tf.reduce_sum(errors**2, axis=1)

    def run(weights, x, y, steps=1, **changed):
        strategy = strategies.choose("auto")
        with strategy.scope():
            task = Line(*weights[0].shape)
        for variable, value in zip(task.model.variables, weights, strict=True):
            variable.assign(value)
        step = TrainStep(task, Train(**{**PLAIN, **changed}), strategy)
        batch, seen = {"x": tf.constant(x), "y": tf.constant(y)}, []
        for _ in range(steps):
            step(((batch,),), stop=False)
            seen.append([variable.numpy() for variable in task.model.variables])
        return seen

    return run


def gradients(kernel, bias):
    """Returns those of the mean loss."""
    errors = X @ kernel + bias - Y[:, np.newaxis]
    return [X.T @ errors / len(X), errors.mean(axis=0)]


def assert_close(found, expected):
    for each, right in zip(found, expected, strict=True):
        np.testing.assert_allclose(each, right, rtol=1e-5, atol=1e-6)


def test_sgd_has_momentum_and_l2_pulls_kernels_alone(stepped):
    kernel, bias = WEIGHTS
    moved = [np.zeros_like(each) for each in WEIGHTS]
    for seen in stepped(WEIGHTS, X, Y, steps=2, beta_1=0.9, l2=0.05):
        of_kernel, of_bias = gradients(kernel, bias)
        of_kernel = of_kernel + 2 * 0.05 * kernel
        moved = [0.9 * m - RATE * g for m, g in zip(moved, (of_kernel, of_bias), strict=True)]
        kernel, bias = kernel + moved[0], bias + moved[1]
        assert_close(seen, [kernel, bias])


@pytest.mark.parametrize(("optimizer", "decay"), [("adam", 0.0), ("adamw", 0.2)])
def test_adam_corrects_its_moments_and_decay_is_of_kernels_alone(stepped, optimizer, decay):
    weights = [each.astype(np.float64) for each in WEIGHTS]
    first, second = [0.0, 0.0], [0.0, 0.0]
    changed = {"optimizer": optimizer, "weight_decay": decay, "beta_1": 0.8, "beta_2": 0.95}
    for n, seen in enumerate(stepped(WEIGHTS, X, Y, steps=3, **changed), start=1):
        for i, gradient in enumerate(gradients(*weights)):
            first[i] = 0.8 * first[i] + 0.2 * gradient
            second[i] = 0.95 * second[i] + 0.05 * gradient**2
            scaled = first[i] / (1 - 0.8**n) / np.sqrt(second[i] / (1 - 0.95**n))
            decayed = weights[i] * (1 - RATE * decay) if i == 0 else weights[i]
            weights[i] = decayed - RATE * scaled
        assert_close(seen, weights)


@pytest.mark.parametrize("clip", ["global_norm", "norm", "value"])
def test_a_step_is_along_the_clipped_gradient(stepped, clip):
    limit = 0.15  # which some elements, and one of the norms, are below
    plain = gradients(*WEIGHTS)
    norms = [np.linalg.norm(each) for each in plain]
    assert min(norms) < limit < max(norms)
    expected = {
        "global_norm": [each * limit / np.hypot(*norms) for each in plain],
        "norm": [each * min(1, limit / norm) for each, norm in zip(plain, norms, strict=True)],
        "value": [np.clip(each, -limit, limit) for each in plain],
    }[clip]
    (seen,) = stepped(WEIGHTS, X, Y, clip=clip, clip_limit=limit)
    assert_close(seen, [w - RATE * g for w, g in zip(WEIGHTS, expected, strict=True)])


def test_noise_has_the_variance_asked_for_falls_and_is_a_function_of_seed_and_step(stepped):
    """Where inputs are zeros a kernel has no gradient: what moves it is the noise alone."""
    weights = [np.zeros([200, 50], np.float32), np.zeros([50], np.float32)]
    x, y = np.zeros([2, 200], np.float32), np.zeros([2], np.float32)
    one, again, other, none = (
        np.diff([weights[0], *(seen[0] for seen in stepped(weights, x, y, 2, **changed))], axis=0)
        for changed in (
            {"gradient_noise": 0.09, "seed": 1},
            {"gradient_noise": 0.09, "seed": 1},
            {"gradient_noise": 0.09, "seed": 2},
            {},
        )
    )
    np.testing.assert_array_equal(one, again)
    np.testing.assert_array_equal(none, np.zeros_like(none))
    assert one[0].std() == pytest.approx(RATE * 0.3, rel=0.05)
    assert one[1].std() == pytest.approx(RATE * 0.3 * 2 ** (-0.55 / 2), rel=0.05)
    for others in (one[1], other[0]):
        assert abs(np.corrcoef(one[0].ravel(), others.ravel())[0, 1]) < 0.05
