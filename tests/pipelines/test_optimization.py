import keras
import numpy as np
import pytest
import tensorflow as tf

from pipelines import optimization
from pipelines.job import Train

GRADIENTS = [np.array([[3.0, -4.0]], np.float32), np.array([12.0], np.float32)]


def clipped(kind, limit):
    gradients, norm = optimization.clipped([tf.constant(g) for g in GRADIENTS], kind, limit)
    return [gradient.numpy() for gradient in gradients], float(norm)


@pytest.mark.parametrize(
    ("kind", "limit", "expected"),
    [
        ("global_norm", 6.5, [[[1.5, -2.0]], [6.0]]),
        ("global_norm", 14.0, [[[3.0, -4.0]], [12.0]]),
        ("norm", 4.0, [[[2.4, -3.2]], [4.0]]),
        ("value", 3.5, [[[3.0, -3.5]], [3.5]]),
        ("none", 0.1, [[[3.0, -4.0]], [12.0]]),
    ],
)
def test_gradients_are_clipped_by_what_was_chosen(kind, limit, expected):
    gradients, norm = clipped(kind, limit)
    assert norm == pytest.approx(13.0)
    for gradient, right in zip(gradients, expected, strict=True):
        np.testing.assert_allclose(gradient, right, rtol=1e-6)


def test_noise_has_the_variance_of_its_step_and_is_a_function_of_its_seed():
    zeros = [tf.zeros([400, 50]), tf.zeros([20_000])]
    first, again, later = (
        optimization.noise(zeros, 0.09, tf.constant([1, seed]), tf.constant(step, tf.int64))
        for seed, step in [(5, 0), (5, 0), (6, 99)]
    )
    for a, b in zip(first, again, strict=True):
        np.testing.assert_array_equal(a, b)
    assert np.std(first[0]) == pytest.approx(0.3, rel=0.03)
    assert np.std(later[1]) == pytest.approx(0.3 * 100 ** (-0.55 / 2), rel=0.03)
    assert abs(np.corrcoef(np.ravel(first[0]), first[1])[0, 1]) < 0.03


def test_the_moving_average_follows_the_weights_and_gives_them_back():
    strategy = tf.distribute.get_strategy()
    variable = tf.Variable([1.0, -2.0])
    average = optimization.MovingAverage([variable], 0.9)
    expected = weights = np.array([1.0, -2.0])
    for step in range(1, 120):
        weights = weights + np.array([0.5, 0.25])
        variable.assign(weights)
        average.update(strategy, tf.constant(step))
        decay = min(0.9, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * weights
    with average.applied():
        np.testing.assert_allclose(variable, expected, rtol=1e-5)
    np.testing.assert_array_equal(variable, weights.astype(np.float32))


def test_the_loss_scale_halves_at_once_and_doubles_after_long():
    scale = optimization.LossScale()
    scale.update(tf.constant(False))
    assert float(scale.scale) == 2.0**14
    for _ in range(1999):
        scale.update(tf.constant(True))
    assert float(scale.scale) == 2.0**14
    scale.update(tf.constant(True))
    assert float(scale.scale) == 2.0**15
    for _ in range(40):
        scale.update(tf.constant(False))
    assert float(scale.scale) == 1.0


def test_biases_are_not_decayed():
    assert optimization.is_decayed(tf.Variable(tf.zeros([3, 2])))
    assert not optimization.is_decayed(tf.Variable(tf.zeros([3])))


@pytest.mark.parametrize(("name", "kind"), [("adamw", "Adam"), ("adam", "Adam"), ("sgd", "SGD")])
def test_the_optimizer_is_the_one_asked_for(name, kind):
    """Its weight decay is ours, so that AdamW is Keras's Adam."""
    made = optimization.optimizer(Train(optimizer=name, beta_1=0.8))
    assert type(made) is getattr(keras.optimizers, kind)


def test_weight_decay_is_for_adamw():
    with pytest.raises(ValueError, match="`l2` is for every optimizer"):
        Train(optimizer="sgd", weight_decay=0.1)
