"""Networks of convolutions: what is padded, how small and of what size an input may be."""

import numpy as np
import pytest
import tensorflow as tf

from keras_models.cnn import Block, Features
from keras_models.configs.cnn import CNNConfig, MLPConfig

CLASSES = 3
SIZES = {1: ((13,), (8,)), 2: ((13, 9), (6, 11)), 3: ((9, 7, 5), (6, 8, 6))}
FORMS = [
    {},
    {"pooling": "mean", "sharing": "tiled", "blocks": 1},
    {"pooling": "stride", "normalization": "none", "dilation": 2},
    {"padding": "full", "residual": False, "kernel": 2},
    {"padding": "valid", "residual": False, "kernel": 2, "stages": 1, "blocks": 1},
]


def _random(model):
    generator = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(generator.normal(scale=0.5, size=variable.shape))
    return model


def _batch(rank):
    """Returns two inputs of different sizes, padded with anything, and the sizes."""
    sizes = np.array(SIZES[rank], np.int32)
    inputs = np.random.default_rng(rank).normal(size=(2, *sizes.max(0), 2)).astype(np.float32)
    return inputs, sizes


def _alone(inputs, sizes, n):
    return inputs[(slice(n, n + 1), *map(slice, sizes[n]))]


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_an_input_in_a_batch_has_the_scores_that_it_has_alone(rank, form):
    shape = (*SIZES[rank][0], 2)
    model = _random(CNNConfig(channels=8, group=4, **form).build(shape, CLASSES))
    inputs, sizes = _batch(rank)
    scores = model(inputs, tf.constant(sizes))
    for n in (0, 1):
        np.testing.assert_allclose(
            scores[n : n + 1], model(_alone(inputs, sizes, n)), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("form", FORMS[:3], ids=str)
def test_a_place_in_a_batch_has_the_scores_that_it_has_alone(rank, form):
    shape = (*SIZES[rank][0], 2)
    model = _random(CNNConfig(channels=8, group=4, **form).build_dense(shape, CLASSES))
    inputs, sizes = _batch(rank)
    scores = model(inputs, tf.constant(sizes)).numpy()
    assert scores.shape == (*inputs.shape[:-1], CLASSES)
    for n in (0, 1):
        alone = model(_alone(inputs, sizes, n))
        np.testing.assert_allclose(_alone(scores, sizes, n), alone, rtol=1e-4, atol=1e-4)


def test_a_series_may_come_with_its_length():
    model = _random(CNNConfig(channels=8).build((None, 2), CLASSES))
    inputs, sizes = _batch(1)
    np.testing.assert_array_equal(model(inputs, sizes[:, 0]), model(inputs, sizes))


def test_a_residual_block_adds_its_input():
    features = Features(tf.random.stateless_normal([2, 5, 6, 8], [1, 2]))
    residual, plain = (
        _random(Block(CNNConfig(residual=residual), (None, 5, 6, 8), 8))
        for residual in (True, False)
    )
    np.testing.assert_allclose(
        residual(features).values - plain(features).values, features.values, rtol=1e-4, atol=1e-5
    )


def test_scores_are_of_what_is_there_wherever_it_is():
    """Far from any edge, and with a shift that pooling keeps."""
    model = _random(CNNConfig(channels=8, normalization="none").build((80, 80, 1), CLASSES))
    spot = np.random.default_rng(0).normal(size=(5, 5, 1)).astype(np.float32)
    images = np.zeros([2, 80, 80, 1], np.float32)
    images[0, 36:41, 36:41] = images[1, 40:45, 32:37] = spot
    scores = model(images)
    np.testing.assert_allclose(scores[0], scores[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "config", [CNNConfig(channels=8, sharing="local"), MLPConfig(units=4)], ids=["local", "mlp"]
)
def test_a_model_for_one_size_refuses_others(config):
    model = config.build((8, 6, 2), CLASSES)
    assert model(np.zeros([2, 8, 6, 2], np.float32), tf.constant([[8, 6]] * 2)).shape == (
        2,
        CLASSES,
    )
    for inputs, sizes in (
        (np.zeros([2, 8, 7, 2], np.float32), None),
        (np.zeros([2, 8, 6, 2], np.float32), tf.constant([[8, 6], [8, 5]])),
    ):
        with pytest.raises(tf.errors.InvalidArgumentError, match=r"size \[8, 6\]"):
            model(inputs, sizes)


def test_an_mlp_needs_one_size():
    with pytest.raises(ValueError, match="one size"):
        MLPConfig().build((None, 2), CLASSES)


def test_inputs_that_leave_nothing_are_refused():
    config = CNNConfig(channels=8, stages=1, blocks=1, padding="valid", residual=False)
    model = config.build((8, 8, 1), CLASSES)  # 8 - 2 = 6 halved is 3, less 2 is 1
    assert np.isfinite(model(np.ones([1, 7, 8, 1], np.float32))).all()
    serve = tf.function(model, input_signature=[tf.TensorSpec([None, None, None, 1])])
    with pytest.raises(tf.errors.InvalidArgumentError, match="at least 7 places"):
        serve(tf.ones([1, 6, 8, 1]))
    with pytest.raises(ValueError, match="at least 7 places"):
        config.build((6, 8, 1), CLASSES)


def test_what_does_not_fit_together_is_refused():
    with pytest.raises(ValueError, match="must be 'same' where blocks are residual"):
        CNNConfig(padding="full")
    with pytest.raises(ValueError, match="multiple of `group`"):
        CNNConfig(channels=12)
    with pytest.raises(ValueError, match="every place"):
        CNNConfig(padding="full", residual=False).build_dense((8, 8, 1), CLASSES)
