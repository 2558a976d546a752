import numpy as np
import pytest
import tensorflow as tf

from keras_models.layers.dropout import dropout, fold_in

SEED = tf.constant([3, 5])


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_the_share_of_dropped_elements_is_the_rate(rate):
    size = 200_000
    dropped = np.mean(dropout(tf.ones([size]), rate, SEED) == 0)
    assert dropped == pytest.approx(rate, abs=5 * np.sqrt(rate * (1 - rate) / size))


def test_kept_elements_are_scaled_so_that_the_mean_stays():
    x = tf.range(1.0, 50.0)
    result = dropout(x, 0.75, SEED).numpy()
    np.testing.assert_allclose(result[result != 0], 4 * x.numpy()[result != 0])


@pytest.mark.parametrize("jit_compile", [False, True])
def test_a_seed_drops_the_same_elements_in_every_mode(jit_compile):
    x = tf.ones([7, 11])
    function = tf.function(lambda seed: dropout(x, 0.3, seed), jit_compile=jit_compile)
    np.testing.assert_array_equal(function(SEED), dropout(x, 0.3, SEED))
    np.testing.assert_array_equal(function(fold_in(SEED, 2)), dropout(x, 0.3, fold_in(SEED, 2)))


@pytest.mark.parametrize("jit_compile", [False, True])
def test_derived_seeds_are_the_same_in_every_mode(jit_compile):
    function = tf.function(lambda seed: fold_in(seed, 4), jit_compile=jit_compile)
    np.testing.assert_array_equal(function(SEED), fold_in(SEED, 4))


def test_parts_of_a_model_and_seeds_drop_different_elements():
    x = tf.ones([100])
    seeds = [SEED, SEED + 1, SEED - 1, fold_in(SEED, 0), fold_in(SEED, 1)]
    masks = {tuple(dropout(x, 0.5, seed).numpy()) for seed in seeds}
    assert len(masks) == len(seeds)


def test_without_a_seed_nothing_is_dropped():
    x = tf.ones([6])
    assert fold_in(None, 1) is None
    assert dropout(x, 0.5, fold_in(None, 1)) is x
    assert dropout(x, 0, SEED) is x


def test_the_gradient_is_zero_where_elements_are_dropped():
    x = tf.ones([9, 8])
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = dropout(x, 0.25, SEED)
    np.testing.assert_array_equal(tape.gradient(y, x), y)


@pytest.mark.parametrize("dtype", [tf.float16, tf.bfloat16, tf.float64])
def test_the_dtype_stays(dtype):
    assert dropout(tf.ones([5], dtype), 0.5, SEED).dtype == dtype


@pytest.mark.parametrize("rate", [-0.1, 1, 1.5])
def test_rates_outside_0_to_1_are_refused(rate):
    with pytest.raises(ValueError, match=r"`rate` must be in \[0, 1\)\. Received: rate="):
        dropout(tf.ones([2]), rate, SEED)
