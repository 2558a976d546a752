import numpy as np
import pytest
import tensorflow as tf

from keras_models.layers.joint import Joint

B, T, U, V = 2, 4, 3, 5
UNITS, ENCODING, PREDICTION = 6, 7, 8


@pytest.fixture(scope="module")
def joint():
    """A joint whose weights, biases too, are random."""
    random = np.random.default_rng(0)
    joint = Joint(UNITS, V, ENCODING, PREDICTION)
    for variable in joint.variables:
        variable.assign(random.normal(size=variable.shape))
    return joint


def _arrays(seed):
    random = np.random.default_rng(seed)
    shapes = (B, T, 1, ENCODING), (B, 1, U + 1, PREDICTION)
    return [random.normal(size=shape).astype(np.float32) for shape in shapes]


def _scores(joint, encoding, prediction):
    return joint(joint.project_encoding(encoding), joint.project_prediction(prediction))


def test_scores_are_those_of_the_formula(joint):
    encoding, prediction = _arrays(1)
    A, a, B_, W, b = (variable.numpy().astype(np.float64) for variable in joint.variables)
    expected = np.tanh(encoding @ A + prediction @ B_ + a) @ W + b
    scores = _scores(joint, encoding, prediction)
    assert scores.shape == (B, T, U + 1, V)
    np.testing.assert_allclose(scores, expected, rtol=1e-5, atol=1e-5)


def test_a_node_of_the_lattice_is_scored_as_it_is_alone(joint):
    encoding, prediction = _arrays(2)
    scores = _scores(joint, encoding, prediction).numpy()
    for t, u in np.ndindex(T, U + 1):
        alone = _scores(joint, encoding[:, t, 0], prediction[:, 0, u])
        assert alone.shape == (B, V)
        np.testing.assert_allclose(scores[:, t, u], alone, rtol=1e-5, atol=1e-5)


def test_there_is_one_weight_for_each_term_of_the_formula(joint):
    shapes = [tuple(variable.shape) for variable in joint.variables]
    assert shapes == [(ENCODING, UNITS), (UNITS,), (PREDICTION, UNITS), (UNITS, V), (V,)]


def test_gradients_reach_every_weight_and_both_inputs(joint):
    inputs = [tf.constant(array) for array in _arrays(3)]
    with tf.GradientTape() as tape:
        tape.watch(inputs)
        loss = tf.reduce_sum(_scores(joint, *inputs) ** 2)
    for gradient in tape.gradient(loss, [*inputs, *(v.value for v in joint.variables)]):
        assert np.isfinite(gradient).all()
        assert np.any(gradient)
