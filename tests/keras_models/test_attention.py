"""Attention, beside the same in NumPy."""

import numpy as np
import pytest
import tensorflow as tf

from keras_models.layers.attention import Attention, masked_softmax

B, U, T, D, F, UNITS = 3, 2, 5, 4, 6, 7
LENGTHS = np.array([5, 2, 0], np.int32)
KINDS = ("additive", "multiplicative")


@pytest.fixture
def arrays():
    random = np.random.default_rng(0)
    return random.normal(size=(B, U, D)), random.normal(size=(B, T, F))


@pytest.fixture(params=KINDS)
def layer(request):
    layer = Attention(request.param, UNITS, D, F)
    random = np.random.default_rng(1)
    for weight in layer.weights:
        weight.assign(random.normal(size=weight.shape))
    return layer


def attended(layer, queries, memory, lengths=LENGTHS):
    queries, memory = (tf.constant(each, tf.float32) for each in (queries, memory))
    contexts, weights = layer(queries, layer.project(memory), memory, tf.constant(lengths))
    return contexts.numpy(), weights.numpy()


def score(layer, query, memory):
    """Returns the score of one query and one memory by the formula of the docstring."""
    weights = [weight.numpy() for weight in layer.weights]
    if len(weights) == 1:
        return query @ (memory @ weights[0])
    keys, bias, queries, v = weights
    return (np.tanh(query @ queries + memory @ keys + bias) @ v)[0]


def test_contexts_are_means_of_the_real_memories_weighted_by_the_softmax_of_their_scores(
    layer, arrays
):
    contexts, weights = attended(layer, *arrays)
    queries, memory = arrays
    for b, length in enumerate(LENGTHS[:2]):
        for u in range(U):
            scores = np.array([score(layer, queries[b, u], memory[b, t]) for t in range(length)])
            expected = np.exp(scores) / np.exp(scores).sum()
            np.testing.assert_allclose(weights[b, u, :length], expected, rtol=1e-5)
            np.testing.assert_allclose(contexts[b, u], expected @ memory[b, :length], rtol=1e-4)
            assert not weights[b, u, length:].any()


def test_without_memories_weights_and_context_are_zeros(layer, arrays):
    contexts, weights = attended(layer, *arrays)
    assert not contexts[2].any()
    assert not weights[2].any()


def test_what_lies_past_a_length_changes_neither_values_nor_gradients(layer, arrays):
    queries, memory = (tf.constant(each, tf.float32) for each in arrays)
    mask = tf.sequence_mask(LENGTHS, T)[..., tf.newaxis]
    found = []
    for padding in (0.0, 1e6):
        padded = tf.where(mask, memory, padding)
        with tf.GradientTape() as tape:
            tape.watch(padded)
            contexts, _ = layer(queries, layer.project(padded), padded, LENGTHS)
            loss = tf.reduce_sum(contexts**2)
        gradient = tape.gradient(loss, padded)
        assert not tf.boolean_mask(gradient, ~tf.squeeze(mask, -1)).numpy().any()
        found.append((contexts.numpy(), tf.where(mask, gradient, 0.0).numpy()))
    for one, other in zip(*found, strict=True):
        np.testing.assert_array_equal(one, other)


def test_scores_of_any_size_have_finite_weights():
    scores = tf.constant([[[1e30, -1e30, 0.0]]])
    np.testing.assert_array_equal(masked_softmax(scores, [3]), [[[1.0, 0.0, 0.0]]])
    np.testing.assert_array_equal(masked_softmax(-scores, [1]), [[[1.0, 0.0, 0.0]]])


def test_an_unknown_kind_is_refused_with_those_there_are():
    with pytest.raises(ValueError, match=r"'additive' or 'multiplicative'\. Received: kind='dot'"):
        Attention("dot", UNITS, D, F)
