"""Recurrent layers with explicit lengths and states."""

import keras
import tensorflow as tf

from keras_models.layers.cells import LSTMCell, LSTMState
from keras_models.layers.dropout import dropout, fold_in
from keras_models.layers.scan import scan

__all__ = ["LSTM", "BidirectionalLSTM", "LSTMState", "StackedLSTM", "lstm"]


def lstm(inputs, lengths, kernel, recurrent_kernel, bias, initial_state, reverse=False):
    """Returns the outputs `[B, T, D]` of an LSTM and its state after the last real step.

    Past an example's length its state is carried unchanged and its outputs are 0. What lies there
    changes nothing, neither values nor gradients.

    Args:
        inputs: Float tensor `[B, T, F]`.
        lengths: Integer tensor `[B]`, in `[0, T]`.
        kernel: Float tensor `[F, 4D]`, the gates in the order i, f, g, o.
        recurrent_kernel: Float tensor `[D, 4D]`.
        bias: Float tensor `[4D]`.
        initial_state: `LSTMState`.
        reverse: Whether to go from the last real step to the first.
    """
    return scan(LSTMCell, inputs, lengths, kernel, recurrent_kernel, bias, initial_state, reverse)


class LSTM(keras.layers.Layer):
    """A layer of `units` LSTM cells. Weights have Keras's shapes and order.

    Args:
        units: Width `D` of hidden state and outputs.
        reverse: Whether to go from the last real step to the first.
    """

    def __init__(
        self,
        units,
        reverse=False,
        kernel_initializer="glorot_uniform",
        recurrent_initializer="orthogonal",
        bias_initializer="zeros",
        unit_forget_bias=True,
        **kwargs,
    ):
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"Argument `units` must be positive. Received: units={units}")
        self.units = units
        self.reverse = reverse
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.recurrent_initializer = keras.initializers.get(recurrent_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.unit_forget_bias = unit_forget_bias

    def build(self, inputs_shape):
        width = 4 * self.units
        self.kernel = self.add_weight(
            (inputs_shape[-1], width), initializer=self.kernel_initializer, name="kernel"
        )
        self.recurrent_kernel = self.add_weight(
            (self.units, width), initializer=self.recurrent_initializer, name="recurrent_kernel"
        )
        self.bias = self.add_weight((width,), initializer=self._initial_bias, name="bias")

    def _initial_bias(self, shape, dtype=None):
        bias = self.bias_initializer(shape, dtype=dtype)
        if not self.unit_forget_bias:
            return bias
        i, _, g_and_o = tf.split(bias, [self.units, self.units, 2 * self.units])
        return tf.concat([i, tf.ones_like(i), g_and_o], axis=0)

    def call(self, inputs, lengths, initial_state=None):
        """Returns outputs `[B, T, D]` and the state after each example's last real step."""
        if initial_state is None:
            initial_state = self.zero_state(tf.shape(inputs)[0])
        return lstm(inputs, lengths, *self._cast(initial_state), reverse=self.reverse)

    def step(self, inputs, state):
        """Returns the outputs `[B, D]` and the state after one step on inputs `[B, F]`."""
        if not self.built:
            self.build(inputs.shape)
        kernel, recurrent_kernel, bias, state = self._cast(state)
        projected = tf.matmul(tf.cast(inputs, self.compute_dtype), kernel) + bias
        state, _ = LSTMCell.forward(projected, tf.matmul(state.hidden, recurrent_kernel), state)
        return state.hidden, state

    def zero_state(self, batch):
        """Returns the state of `batch` examples before their first step."""
        zeros = tf.zeros([batch, self.units], self.compute_dtype)
        return LSTMState(zeros, zeros)

    def _cast(self, state):
        """Returns weights and state as tensors to compute with."""
        weights = self.kernel, self.recurrent_kernel, self.bias
        return tf.nest.map_structure(
            lambda x: tf.cast(x, self.compute_dtype), (*weights, LSTMState(*state))
        )


class BidirectionalLSTM(keras.layers.Layer):
    """An LSTM from each end, their outputs side by side."""

    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.forward = LSTM(units, dtype=self.dtype_policy, name="forward")
        self.backward = LSTM(units, reverse=True, dtype=self.dtype_policy, name="backward")

    def build(self, inputs_shape):
        self.forward.build(inputs_shape)
        self.backward.build(inputs_shape)

    def call(self, inputs, lengths, initial_state=None):
        """Returns outputs `[B, T, 2D]` and the last state of each direction."""
        forward_state, backward_state = initial_state or (None, None)
        forward, forward_state = self.forward(inputs, lengths, forward_state)
        backward, backward_state = self.backward(inputs, lengths, backward_state)
        return tf.concat([forward, backward], axis=-1), (forward_state, backward_state)

    def zero_state(self, batch):
        """Returns the states of `batch` examples before their first steps."""
        return self.forward.zero_state(batch), self.backward.zero_state(batch)


class StackedLSTM(keras.layers.Layer):
    """LSTMs one on another, with dropout between them.

    Args:
        units: Width `D` of each direction of each layer.
        layers: Number of layers.
        bidirectional: Whether each layer reads from both ends.
        dropout: Share of the outputs dropped between one layer and the next.
    """

    def __init__(self, units, layers, bidirectional=False, dropout=0.0, **kwargs):
        super().__init__(**kwargs)
        if layers < 1:
            raise ValueError(f"Argument `layers` must be positive. Received: layers={layers}")
        if not 0 <= dropout < 1:
            raise ValueError(f"Argument `dropout` must be in [0, 1). Received: dropout={dropout}")
        kind = BidirectionalLSTM if bidirectional else LSTM
        self.layers = [kind(units, dtype=self.dtype_policy, name=f"{n}") for n in range(layers)]
        self.bidirectional = bidirectional
        self.dropout = dropout
        self.output_width = units * (1 + bidirectional)

    def build(self, inputs_shape):
        for layer in self.layers:
            layer.build(inputs_shape)
            inputs_shape = (*inputs_shape[:-1], self.output_width)

    def call(self, inputs, lengths, initial_state=None, dropout_seed=None):
        """Returns outputs `[B, T, D or 2D]` of the last layer and a tuple of all layers' states."""
        states = []
        for n, layer in enumerate(self.layers):
            if n > 0:
                inputs = dropout(inputs, self.dropout, fold_in(dropout_seed, n))
            inputs, state = layer(inputs, lengths, initial_state and initial_state[n])
            states.append(state)
        return inputs, tuple(states)

    def step(self, inputs, state, dropout_seed=None):
        """Returns outputs `[B, D]` and the states after one step on inputs `[B, F]`."""
        if self.bidirectional:
            raise ValueError("A bidirectional layer reads whole sequences and has no `step`.")
        states = []
        for n, layer in enumerate(self.layers):
            if n > 0:
                inputs = dropout(inputs, self.dropout, fold_in(dropout_seed, n))
            inputs, layer_state = layer.step(inputs, state[n])
            states.append(layer_state)
        return inputs, tuple(states)

    def zero_state(self, batch):
        """Returns the states of `batch` examples before their first steps."""
        return tuple(layer.zero_state(batch) for layer in self.layers)
