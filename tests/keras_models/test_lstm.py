"""Recurrent networks beside Keras's own layers, one example at a time and without padding."""

import dataclasses

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.lstm import LSTMConfig

B, T, F, V = 3, 6, 2, 5
SYMBOLS, UNITS = 7, 4
LENGTHS = np.array([6, 1, 4], np.int32)
CONFIG = LSTMConfig(units=UNITS, layers=2, embedding_units=3, dropout=0.5)
CELLS = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU, "rnn": keras.layers.SimpleRNN}
SEED = np.array([5, 11], np.int32)


def _built(model):
    """Returns the model, its weights all random."""
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.normal(scale=0.7, size=variable.shape))
    return model


def _read_by_keras(config, steps, weights):
    """Returns the last layer's outputs `[T, D]` and last states `[D]`, for steps `[T, F]`."""
    outputs = steps[np.newaxis]
    for _ in range(config.layers):
        parts, states = [], []
        for backwards in (False, True)[: 1 + config.bidirectional]:
            layer = CELLS[config.cell](
                config.units, return_sequences=True, return_state=True, go_backwards=backwards
            )
            layer.build((1, None, outputs.shape[-1]))
            layer.set_weights([weights.pop(0) for _ in layer.weights])
            steps, state, *_ = layer(outputs)
            parts.append(steps[:, ::-1] if backwards else steps)
            states.append(state)
        outputs = tf.concat(parts, axis=-1).numpy()
    return outputs[0], tf.concat(states, axis=-1)[0].numpy()


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
@pytest.mark.parametrize("summary", ["last", "mean", "max"])
def test_a_series_becomes_what_keras_makes_of_it_alone(cell, bidirectional, summary):
    config = dataclasses.replace(CONFIG, cell=cell, bidirectional=bidirectional, summary=summary)
    model = _built(config.build((None, F), V))
    series = np.random.default_rng(1).normal(size=(B, T, F)).astype(np.float32)
    found = model(series, LENGTHS)
    assert found.shape == (B, V)
    for row, length in enumerate(LENGTHS):
        weights = [variable.numpy() for variable in model.variables]
        steps, last = _read_by_keras(config, series[row, :length], weights)
        kernel, bias = weights
        whole = {"last": last, "mean": steps.mean(axis=0), "max": steps.max(axis=0)}[summary]
        np.testing.assert_allclose(found[row], whole @ kernel + bias, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("cell", CELLS)
@pytest.mark.parametrize("bidirectional", [False, True])
def test_the_symbols_of_a_text_become_what_keras_makes_of_them_alone(cell, bidirectional):
    config = dataclasses.replace(CONFIG, cell=cell, bidirectional=bidirectional)
    model = _built(config.build_aligned(SYMBOLS, V))
    symbols = np.random.default_rng(1).integers(1, SYMBOLS, (B, T), np.int32)
    found = model(symbols, LENGTHS)
    assert found.shape == (B, T, V)
    for row, length in enumerate(LENGTHS):
        embedding, *weights = [variable.numpy() for variable in model.variables]
        steps, _ = _read_by_keras(config, embedding[symbols[row, :length]], weights)
        kernel, bias = weights
        expected = steps @ kernel + bias
        np.testing.assert_allclose(found[row, :length], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("summary", ["last", "mean", "max"])
def test_a_series_of_no_steps_has_finite_scores(summary):
    model = _built(dataclasses.replace(CONFIG, summary=summary).build((None, F), V))
    assert np.isfinite(model(np.ones((1, T, F), np.float32), np.zeros(1, np.int32))).all()


def test_residual_layers_add_what_they_read():
    config = dataclasses.replace(CONFIG, residual=True, bidirectional=False, layers=3)
    plain = dataclasses.replace(config, residual=False)
    inputs = np.random.default_rng(1).integers(1, SYMBOLS, (B, T), np.int32)
    models = [_built(each.build_aligned(SYMBOLS, V)) for each in (config, plain)]
    for model in models:
        model.variables[-2].assign(tf.eye(UNITS, V))  # scores are outputs of the last layer
        for variable in model.variables[-8:-2]:
            variable.assign(tf.zeros_like(variable))  # and the last two layers say nothing
    residual, without = (model(inputs, LENGTHS).numpy() for model in models)
    bias = models[0].variables[-1].numpy()
    np.testing.assert_allclose(without[0], np.broadcast_to(bias, (T, V)), atol=1e-6)
    assert np.abs(residual[0] - bias)[:, :UNITS].min() > 0
