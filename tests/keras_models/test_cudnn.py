"""cuDNN's kernel itself needs a GPU. Here: what it is given, and what becomes of its answers."""

import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_models.layers import recurrent
from keras_models.layers.cudnn import cudnn, eligible, on_gpu
from keras_models.layers.recurrent import GRU, LSTM, RNN

B, T, F, D = 4, 6, 3, 5
LENGTHS = [6, 2, 0, 5]


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def reference(*, input, input_h, input_c, params, sequence_lengths, rnn_mode, **flags):
    """The op by NVIDIA's documentation, in NumPy: one layer, one direction, batch first."""
    assert flags == {"time_major": False, "is_training": True}
    assert np.all(sequence_lengths > 0)
    inputs, hidden = np.array(input), np.array(input_h)[:, 0]
    cell = np.array(input_c)[:, 0] if rnn_mode == "lstm" else np.zeros_like(hidden)
    gates = {"lstm": 4, "gru": 3}.get(rnn_mode, 1)
    sizes = [D * F] * gates + [D * D] * gates + [D] * 2 * gates
    parts = np.split(np.array(params), np.cumsum(sizes)[:-1])
    of_inputs = [w.reshape(D, F) for w in parts[:gates]]
    of_hidden = [w.reshape(D, D) for w in parts[gates : 2 * gates]]
    bias, recurrent_bias = parts[2 * gates : 3 * gates], parts[3 * gates :]
    outputs = np.zeros([*inputs.shape[:2], D], inputs.dtype)
    for b, length in enumerate(np.array(sequence_lengths)):
        for t in range(length):
            x = [w @ inputs[b, t] + v for w, v in zip(of_inputs, bias, strict=True)]
            y = [w @ hidden[b] + v for w, v in zip(of_hidden, recurrent_bias, strict=True)]
            if rnn_mode == "lstm":
                i, f, g, o = (m + n for m, n in zip(x, y, strict=True))
                cell[b] = sigmoid(f) * cell[b] + sigmoid(i) * np.tanh(g)
                hidden[b] = sigmoid(o) * np.tanh(cell[b])
            elif rnn_mode == "gru":
                r, z = sigmoid(x[0] + y[0]), sigmoid(x[1] + y[1])
                hidden[b] = (1 - z) * np.tanh(x[2] + r * y[2]) + z * hidden[b]
            else:
                curve = {"rnn_tanh": np.tanh, "rnn_relu": lambda v: np.maximum(v, 0)}[rnn_mode]
                hidden[b] = curve(x[0] + y[0])
            outputs[b, t] = hidden[b]
    results = (outputs, hidden[:, None], cell[:, None], np.zeros(0), np.zeros(0))
    return [tf.constant(x) for x in results]


LAYERS = {
    "lstm": (lambda **o: LSTM(D, **o), "lstm"),
    "gru": (lambda **o: GRU(D, bias_initializer="glorot_uniform", **o), "gru"),
    "tanh": (lambda **o: RNN(D, **o), "rnn_tanh"),
    "relu": (lambda **o: RNN(D, activation="relu", **o), "rnn_relu"),
}
every_layer = pytest.mark.parametrize(("make", "mode"), LAYERS.values(), ids=LAYERS)


def arguments(layer, steps=T):
    random = np.random.default_rng(0)
    inputs = tf.constant(random.normal(size=(B, steps, F)), tf.float32)
    state = [tf.constant(random.normal(size=(B, D)), tf.float32) for _ in layer.state._fields]
    lengths = tf.minimum(tf.constant(LENGTHS), steps)
    layer.build(inputs.shape)
    return inputs, lengths, layer.state(*state)


@every_layer
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("steps", [T, 0])
def test_it_gives_what_the_scan_gives(make, mode, reverse, steps, monkeypatch):
    layer = make(reverse=reverse)
    inputs, lengths, state = arguments(layer, steps)
    expected = layer(inputs, lengths, state)
    monkeypatch.setattr(tf.raw_ops, "CudnnRNNV3", reference)
    monkeypatch.setattr(recurrent, "eligible", lambda *_: True)
    monkeypatch.setattr(recurrent, "on_gpu", lambda there, _: there())
    padding = np.arange(steps) >= lengths.numpy()[:, None]
    filled = tf.where(padding[:, :, None], np.nan, inputs)
    actual = layer(filled, lengths, state)
    for a, e in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["lstm", "gru"])
def test_weights_lie_as_keras_lays_them(mode, monkeypatch):
    ours = {"lstm": LSTM, "gru": GRU}[mode](D, bias_initializer="glorot_uniform")
    theirs = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}[mode](D)
    inputs, lengths, state = arguments(ours)
    theirs.build(inputs.shape)
    theirs.set_weights(ours.get_weights())
    given = []

    def record(**arguments):
        given.append(arguments)
        return reference(**arguments)

    monkeypatch.setattr(tf.raw_ops, "CudnnRNNV3", record)
    monkeypatch.setattr(tf.sysconfig, "get_build_info", lambda: _CUDA_BUILD)
    backend = sys.modules["keras.src.backend.tensorflow.rnn"]
    monkeypatch.setattr(backend, "cudnn_ok", lambda *_, **__: True)
    theirs(inputs)
    kernel, bias, *weights = ours._weights()
    cudnn(mode, inputs, lengths, kernel, bias, weights, state)
    assert given[0]["rnn_mode"] == given[1]["rnn_mode"] == mode
    np.testing.assert_array_equal(given[0]["params"], given[1]["params"])


_CUDA_BUILD = {"is_cuda_build": True, "is_rocm_build": False}


def test_it_is_for_gpus_and_for_what_it_can_compute(monkeypatch):
    assert not eligible("lstm", tf.float32, None)  # This process sees no GPU.
    monkeypatch.setattr(tf.config, "list_logical_devices", lambda kind: [kind])
    assert eligible("lstm", tf.float32, None)
    assert eligible("gru", tf.float16, None)
    assert not eligible(GRU(D, reset_after=False).cell.cudnn_mode, tf.float32, None)
    assert not eligible(LSTM(D, peepholes=True).cell.cudnn_mode, tf.float32, None)
    assert not eligible(RNN(D, activation="sigmoid").cell.cudnn_mode, tf.float32, None)
    assert not eligible("lstm", tf.bfloat16, None)
    assert not eligible("lstm", tf.float32, tf.ones([B, D]))


@pytest.mark.parametrize("how", ["eager", "graph", "xla", "exported"])
def test_a_graph_made_where_a_gpu_was_runs_without_one(how, monkeypatch, tmp_path):
    layer = LSTM(D)
    inputs, lengths, _ = arguments(layer)
    expected, _ = layer(inputs, lengths)
    monkeypatch.setattr(recurrent, "eligible", lambda *_: True)
    if how == "exported":
        module = tf.Module()
        module.layer = layer
        signature = [tf.TensorSpec([None, None, F]), tf.TensorSpec([None], tf.int32)]
        module.outputs = tf.function(lambda *x: layer(*x)[0], input_signature=signature)
        tf.saved_model.save(module, str(tmp_path))
        loaded = tf.saved_model.load(str(tmp_path))
        actual = loaded.outputs(inputs, lengths)
    elif how == "eager":
        actual, _ = layer(inputs, lengths)
    else:
        actual, _ = tf.function(layer, jit_compile=how == "xla")(inputs, lengths)
    np.testing.assert_allclose(actual, expected, rtol=1e-6, atol=1e-6)


def test_the_choice_is_made_when_the_graph_runs():
    @tf.function
    def place():
        return on_gpu(lambda: tf.constant("GPU"), lambda: tf.constant("elsewhere"))

    graph = place.get_concrete_function().graph.as_graph_def()
    assert "DeviceIndex" in {node.op for node in graph.node}
    assert place() == b"elsewhere"
