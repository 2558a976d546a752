import numpy as np
import pytest
import tensorflow as tf

from keras_models.losses.cross_entropy import cross_entropy

GENERATOR = np.random.default_rng(0)
LOGITS = GENERATOR.normal(scale=3.0, size=(2, 3, 5)).astype(np.float32)
LABELS = GENERATOR.integers(5, size=(2, 3))


def _log_softmax(logits):
    logits = logits.astype(np.float64)
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))


def _targets(smoothing):
    return (1 - smoothing) * np.eye(5)[LABELS] + smoothing / 5


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 1.0])
def test_it_is_what_its_definition_says(smoothing):
    expected = -np.sum(_targets(smoothing) * _log_softmax(LOGITS), axis=-1)
    found = cross_entropy(tf.constant(LOGITS), tf.constant(LABELS), smoothing)
    np.testing.assert_allclose(found, expected, rtol=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_its_gradient_is_the_softmax_less_the_target(smoothing):
    logits = tf.constant(LOGITS)
    with tf.GradientTape() as tape:
        tape.watch(logits)
        loss = tf.reduce_sum(cross_entropy(logits, tf.constant(LABELS), smoothing))
    expected = np.exp(_log_softmax(LOGITS)) - _targets(smoothing)
    np.testing.assert_allclose(tape.gradient(loss, logits), expected, atol=1e-6)


def test_huge_scores_are_no_trouble():
    logits = tf.constant([[1e4, -1e4, 0.0]])
    assert cross_entropy(logits, tf.constant([0])).numpy() == [0.0]
    assert cross_entropy(logits, tf.constant([1])).numpy() == [2e4]


def test_half_precision_is_summed_in_single():
    logits = tf.cast(LOGITS, tf.bfloat16)
    found = cross_entropy(logits, tf.constant(LABELS), 0.1)
    assert found.dtype == tf.float32
    expected = cross_entropy(tf.cast(logits, tf.float32), tf.constant(LABELS), 0.1)
    np.testing.assert_array_equal(found, expected)
