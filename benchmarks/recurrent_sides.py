"""The sides of `benchmarks.recurrent`: `python -m benchmarks.recurrent_sides NAME`.

Each function imports its own library and returns what `serve` takes. The kinds of cases are `lstm`
and `gru` (its reset after the product); `product` multiplies a matrix by itself.
"""

import os
import sys

import numpy as np

from benchmarks.side import serve

THREADS = int(os.environ.get("OMP_NUM_THREADS", "1"))
WEIGHTS = ["kernel", "recurrent_kernel", "bias"]


def ours(jit_compile=True):
    """Ours, compiled by XLA."""
    import tensorflow as tf

    from keras_models.layers.recurrent import GRU, LSTM

    def outputs_of(kind, units):
        layer = {"lstm": LSTM, "gru": GRU}[kind](units)
        return layer, lambda inputs, lengths: layer(inputs, lengths)[0]

    prepare = _tensorflow(tf, outputs_of, jit_compile)

    def prepare_or_product(kind, arrays):
        if kind != "product":
            return prepare(kind, arrays)
        x = tf.constant(arrays["x"])
        return lambda: (tf.matmul(x, x)[0, 0].numpy(), [])

    return prepare_or_product


def ours_graph():
    """Ours, as a plain graph."""
    return ours(jit_compile=False)


def keras_graph(jit_compile=False):
    """Keras's layer, as a plain graph."""
    import keras
    import tensorflow as tf

    def outputs_of(kind, units):
        kinds = {"lstm": keras.layers.LSTM, "gru": keras.layers.GRU}
        layer = kinds[kind](units, return_sequences=True)

        def outputs(inputs, lengths):
            return layer(inputs, mask=tf.sequence_mask(lengths, tf.shape(inputs)[1]))

        return layer, outputs

    return _tensorflow(tf, outputs_of, jit_compile)


def keras_xla():
    """Keras's layer, compiled by XLA."""
    return keras_graph(jit_compile=True)


def _tensorflow(tf, outputs_of, jit_compile):
    tf.config.threading.set_intra_op_parallelism_threads(THREADS)

    def prepare(kind, arrays):
        layer, outputs_of_layer = outputs_of(kind, arrays["recurrent_kernel"].shape[0])
        layer.build(arrays["inputs"].shape)
        layer.set_weights([arrays[name] for name in WEIGHTS])
        weights = [variable.value for variable in layer.trainable_variables]
        inputs, d_outputs = tf.constant(arrays["inputs"]), tf.constant(arrays["d_outputs"])
        batch, steps, _ = inputs.shape
        lengths = tf.fill([batch], steps)

        @tf.function(autograph=False, jit_compile=jit_compile)
        def compute(inputs, lengths, d_outputs):
            with tf.GradientTape() as tape:
                tape.watch(inputs)
                outputs = outputs_of_layer(inputs, lengths)
            return outputs, tape.gradient(outputs, [inputs, *weights], d_outputs)

        def computed():
            outputs, gradients = compute(inputs, lengths, d_outputs)
            outputs[0, 0, 0].numpy()
            return outputs, gradients

        return computed

    return prepare


def torch():
    """PyTorch's layer."""
    import torch

    torch.set_num_threads(THREADS)

    def prepare(kind, arrays):
        units = arrays["recurrent_kernel"].shape[0]
        kinds = {"lstm": torch.nn.LSTM, "gru": torch.nn.GRU}
        layer = kinds[kind](arrays["inputs"].shape[-1], units, batch_first=True)
        order = _torch_order(kind, units)
        bias, recurrent_bias = (
            arrays["bias"] if kind == "gru" else (arrays["bias"], np.zeros_like(arrays["bias"]))
        )
        kernel, recurrent_kernel = arrays["kernel"].T, arrays["recurrent_kernel"].T
        with torch.no_grad():
            given = (kernel, recurrent_kernel, bias, recurrent_bias)
            for parameter, array in zip(layer.parameters(), given, strict=True):
                parameter.copy_(torch.from_numpy(array[order]))
        inputs = torch.from_numpy(arrays["inputs"]).requires_grad_()
        d_outputs = torch.from_numpy(arrays["d_outputs"])

        def as_keras(gradients):
            d_inputs, *d_weights = gradients
            back = np.argsort(order)
            kernel, recurrent_kernel, *biases = (np.asarray(d)[back] for d in d_weights)
            bias = np.stack(biases) if kind == "gru" else biases[0]
            return [d_inputs, kernel.T, recurrent_kernel.T, bias]

        def compute():
            outputs, _ = layer(inputs)
            found = torch.autograd.grad(outputs, [inputs, *layer.parameters()], d_outputs)
            return outputs.detach(), _Later(as_keras, found)

        return compute

    return prepare


def _torch_order(kind, units):
    """Returns where PyTorch's gates stand in Keras's: its GRU has the reset gate first."""
    gates = {"lstm": [0, 1, 2, 3], "gru": [1, 0, 2]}[kind]
    return np.concatenate([np.arange(units) + gate * units for gate in gates])


class _Later:
    """A sequence that is converted when it is read, and not when it is timed."""

    def __init__(self, convert, values):
        self._convert, self._values = convert, values

    def __iter__(self):
        return iter(self._convert(self._values))


if __name__ == "__main__":
    serve(globals()[sys.argv[1]])
