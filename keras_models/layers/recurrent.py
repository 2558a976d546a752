"""Recurrent layers with explicit lengths and states.

Weights have Keras's shapes and order: `ours.set_weights(theirs.get_weights())` takes those of
`keras.layers.LSTM`, `GRU`, `SimpleRNN` and `Bidirectional`, and the other way round.

Dropout is a function of a seed, and none without one. `dropout` drops inputs, `recurrent_dropout`
the hidden state where it enters products: one mask an example, the same at all steps, in each
direction and layer another (Gal and Ghahramani, 2016). All gates share it, while Keras draws one a
gate for the recurrent dropout.
"""

import keras
import tensorflow as tf

from keras_models.layers.cells import (
    GRUCell,
    HiddenState,
    LSTMCell,
    LSTMState,
    PeepholeLSTMCell,
    ReLUCell,
    ResetBeforeGRUCell,
    SigmoidCell,
    TanhCell,
)
from keras_models.layers.cudnn import cudnn, eligible, on_gpu
from keras_models.layers.dropout import check_rate, dropout, fold_in
from keras_models.layers.scan import bind, project, scan

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "Bidirectional",
    "BidirectionalLSTM",
    "HiddenState",
    "LSTMState",
    "Stacked",
    "StackedLSTM",
]


class Recurrent(keras.layers.Layer):
    """A layer of `units` cells: what LSTM, GRU and RNN share.

    Args:
        units: Width `D` of hidden state and outputs.
        reverse: Whether to go from the last real step to the first.
        dropout: Share of the inputs dropped.
        recurrent_dropout: Share of the hidden state dropped.
    """

    # The cell, the type of its state, and the number of its gates in kernels and bias.
    cell, state, gates = None, HiddenState, 1

    def __init__(
        self,
        units,
        reverse=False,
        dropout=0.0,
        recurrent_dropout=0.0,
        kernel_initializer="glorot_uniform",
        recurrent_initializer="orthogonal",
        bias_initializer="zeros",
        **kwargs,
    ):
        super().__init__(**kwargs)
        if units < 1:
            raise ValueError(f"Argument `units` must be positive. Received: units={units}")
        check_rate("dropout", dropout)
        check_rate("recurrent_dropout", recurrent_dropout)
        self.units = units
        self.reverse = reverse
        self.dropout = dropout
        self.recurrent_dropout = recurrent_dropout
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.recurrent_initializer = keras.initializers.get(recurrent_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)

    def build(self, inputs_shape):
        width = self.gates * self.units
        self.kernel = self._weight("kernel", (inputs_shape[-1], width), self.kernel_initializer)
        self.recurrent_kernel = self._weight(
            "recurrent_kernel", (self.units, width), self.recurrent_initializer
        )
        self.bias = self._weight("bias", self._bias_shape(), self._initial_bias)

    def _weight(self, name, shape, initializer):
        # Products are taken in the dtype of the policy, and sums of gradients in the weight's own.
        return self.add_weight(shape, initializer=initializer, name=name, autocast=False)

    def _bias_shape(self):
        return (self.gates * self.units,)

    def _initial_bias(self, shape, dtype=None):
        return self.bias_initializer(shape, dtype=dtype)

    def _weights(self):
        """Returns the kernel, the bias of what it projects, and all that the cell is bound to."""
        return tuple(
            tf.convert_to_tensor(x) for x in (self.kernel, self.bias, self.recurrent_kernel)
        )

    def call(self, inputs, lengths, initial_state=None, dropout_seed=None):
        """Returns outputs `[B, T, D]` and the state after each example's last real step.

        Past an example's length its state is carried unchanged and its outputs are 0. What lies
        there changes nothing, neither values nor gradients.

        Args:
            inputs: Float tensor `[B, T, F]`.
            lengths: Integer tensor `[B]`, in `[0, T]`.
            initial_state: As `zero_state` gives it, which is the default.
            dropout_seed: `[2]` int32, a seed for this step; None leaves dropout out.
        """
        batch = tf.shape(inputs)[0]
        inputs = tf.cast(inputs, self.compute_dtype)
        state = self.zero_state(batch) if initial_state is None else self._cast(initial_state)
        ones = tf.ones([batch, 1, inputs.shape[-1]], inputs.dtype)
        if dropout_seed is not None and self.dropout:
            inputs *= dropout(ones, self.dropout, fold_in(dropout_seed, 0))
        kept = None
        if dropout_seed is not None and self.recurrent_dropout:
            ones = tf.ones([batch, self.units], inputs.dtype)
            kept = dropout(ones, self.recurrent_dropout, fold_in(dropout_seed, 1))
        kernel, bias, *weights = self._weights()
        arguments = inputs, lengths, kernel, bias, weights, state, self.reverse

        def by_scan():
            return scan(self.cell, *arguments, kept)

        mode = self.cell.cudnn_mode
        if eligible(mode, inputs.dtype, kept):
            return on_gpu(lambda: cudnn(mode, *arguments), by_scan)
        return by_scan()

    def step(self, inputs, state):
        """Returns the outputs `[B, D]` and the state after one step on inputs `[B, F]`."""
        if not self.built:
            self.build(inputs.shape)
        inputs = tf.cast(inputs, self.compute_dtype)
        kernel, bias, *weights = self._weights()
        projected = project(inputs, kernel)
        projected += tf.cast(bias, projected.dtype)
        before = tf.nest.map_structure(lambda x: tf.cast(x, projected.dtype), self.state(*state))
        state, _ = bind(self.cell, weights, inputs.dtype).forward(projected, before)
        state = self._cast(state)
        return state.hidden, state

    def zero_state(self, batch):
        """Returns the state of `batch` examples before their first step."""
        zeros = tf.zeros([batch, self.units], self.compute_dtype)
        return self.state(*[zeros] * len(self.state._fields))

    def _cast(self, state):
        return self.state(*(tf.cast(x, self.compute_dtype) for x in state))


class LSTM(Recurrent):
    """A layer of LSTM cells.

    Args:
        units: Width `D` of hidden state and outputs.
        peepholes: Whether gates see the cell, by weights `[3, D]` for i, f and o.
        unit_forget_bias: Whether the forget gate's bias starts at 1.
        options: As of `Recurrent`.
    """

    state, gates = LSTMState, 4

    def __init__(self, units, peepholes=False, unit_forget_bias=True, **options):
        super().__init__(units, **options)
        self.cell = PeepholeLSTMCell if peepholes else LSTMCell
        self.unit_forget_bias = unit_forget_bias

    def build(self, inputs_shape):
        super().build(inputs_shape)
        self.peepholes = None
        if self.cell is PeepholeLSTMCell:
            self.peepholes = self._weight("peepholes", (3, self.units), self.kernel_initializer)

    def _weights(self):
        if self.peepholes is None:
            return super()._weights()
        return *super()._weights(), tf.convert_to_tensor(self.peepholes)

    def _initial_bias(self, shape, dtype=None):
        bias = self.bias_initializer(shape, dtype=dtype)
        if not self.unit_forget_bias:
            return bias
        i, _, g_and_o = tf.split(bias, [self.units, self.units, 2 * self.units])
        return tf.concat([i, tf.ones_like(i), g_and_o], axis=0)


class GRU(Recurrent):
    """A layer of GRU cells.

    Args:
        units: Width `D` of hidden state and outputs.
        reset_after: Whether the reset gate acts after the product, as in cuDNN, or before.
        options: As of `Recurrent`.
    """

    gates = 3

    def __init__(self, units, reset_after=True, **options):
        super().__init__(units, **options)
        self.cell = GRUCell if reset_after else ResetBeforeGRUCell

    def _bias_shape(self):
        width = self.gates * self.units
        return (2, width) if self.cell is GRUCell else (width,)

    def _weights(self):
        kernel, bias, recurrent_kernel = super()._weights()
        if self.cell is not GRUCell:
            return kernel, bias, recurrent_kernel
        bias, recurrent_bias = tf.unstack(bias)
        return kernel, bias, recurrent_kernel, recurrent_bias


class RNN(Recurrent):
    """A layer of plain recurrent cells.

    Args:
        units: Width `D` of hidden state and outputs.
        activation: `"tanh"`, `"relu"` or `"sigmoid"`.
        options: As of `Recurrent`.
    """

    def __init__(self, units, activation="tanh", **options):
        super().__init__(units, **options)
        cells = {"tanh": TanhCell, "relu": ReLUCell, "sigmoid": SigmoidCell}
        if activation not in cells:
            raise ValueError(
                f"Argument `activation` must be one of {list(cells)}. "
                f"Received: activation={activation!r}"
            )
        self.cell = cells[activation]


class Bidirectional(keras.layers.Layer):
    """A recurrent layer from each end, their outputs side by side.

    Args:
        kind: LSTM, GRU or RNN.
        units: Width `D` of each direction.
        options: Of each layer.
    """

    def __init__(self, kind, units, dtype=None, name=None, **options):
        super().__init__(dtype=dtype, name=name)
        options["dtype"] = self.dtype_policy
        self.forward = kind(units, name="forward", **options)
        self.backward = kind(units, reverse=True, name="backward", **options)

    def build(self, inputs_shape):
        self.forward.build(inputs_shape)
        self.backward.build(inputs_shape)

    def call(self, inputs, lengths, initial_state=None, dropout_seed=None):
        """Returns outputs `[B, T, 2D]` and the last state of each direction."""
        forward_state, backward_state = initial_state or (None, None)
        forward, forward_state = self.forward(
            inputs, lengths, forward_state, fold_in(dropout_seed, 0)
        )
        backward, backward_state = self.backward(
            inputs, lengths, backward_state, fold_in(dropout_seed, 1)
        )
        return tf.concat([forward, backward], axis=-1), (forward_state, backward_state)

    def zero_state(self, batch):
        """Returns the states of `batch` examples before their first steps."""
        return self.forward.zero_state(batch), self.backward.zero_state(batch)


class Stacked(keras.layers.Layer):
    """Recurrent layers one on another.

    Args:
        kind: LSTM, GRU or RNN.
        units: Width `D` of each direction of each layer.
        layers: Number of layers.
        bidirectional: Whether each layer reads from both ends.
        residual: Whether every layer but the first adds its inputs to its outputs.
        dropout: Share of the elements dropped between one layer and the next, each by itself.
        options: Of each layer, such as `recurrent_dropout`.
    """

    def __init__(
        self,
        kind,
        units,
        layers,
        bidirectional=False,
        residual=False,
        dropout=0.0,
        dtype=None,
        name=None,
        **options,
    ):
        super().__init__(dtype=dtype, name=name)
        if layers < 1:
            raise ValueError(f"Argument `layers` must be positive. Received: layers={layers}")
        check_rate("dropout", dropout)
        options["dtype"] = self.dtype_policy
        names = [f"{n}" for n in range(layers)]
        if bidirectional:
            self.layers = [Bidirectional(kind, units, name=name, **options) for name in names]
        else:
            self.layers = [kind(units, name=name, **options) for name in names]
        self.bidirectional = bidirectional
        self.residual = residual
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
            kept = self._between(n, inputs, dropout_seed)
            seed = fold_in(dropout_seed, len(self.layers) + n)
            outputs, state = layer(kept, lengths, initial_state and initial_state[n], seed)
            inputs = self._joined(n, inputs, outputs)
            states.append(state)
        return inputs, tuple(states)

    def step(self, inputs, state, dropout_seed=None):
        """Returns outputs `[B, D]` and the states after one step on inputs `[B, F]`."""
        if self.bidirectional:
            raise ValueError("A bidirectional layer reads whole sequences and has no `step`.")
        states = []
        for n, layer in enumerate(self.layers):
            kept = self._between(n, inputs, dropout_seed)
            outputs, layer_state = layer.step(kept, state[n])
            inputs = self._joined(n, inputs, outputs)
            states.append(layer_state)
        return inputs, tuple(states)

    def _between(self, n, inputs, seed):
        return dropout(inputs, self.dropout, fold_in(seed, n)) if n else inputs

    def _joined(self, n, inputs, outputs):
        return inputs + outputs if n and self.residual else outputs

    def zero_state(self, batch):
        """Returns the states of `batch` examples before their first steps."""
        return tuple(layer.zero_state(batch) for layer in self.layers)


class BidirectionalLSTM(Bidirectional):
    """An LSTM from each end, their outputs side by side."""

    def __init__(self, units, **options):
        super().__init__(LSTM, units, **options)


class StackedLSTM(Stacked):
    """LSTMs one on another."""

    def __init__(self, units, layers, **options):
        super().__init__(LSTM, units, layers, **options)
