"""One step of a recurrence, forward and backward: the maths that `scan` repeats.

A cell is bound to its recurrent weights, a matrix first, and then vectors. Of all steps at once,
where letters stand before the last axis, and of one step, `scan` asks for:

    forward(projected, state)                  the next state, and what is saved of the step
    coefficients(saved, before, after)         … what `backward` needs
    transposed()                               the kernels to go backward with
    backward(coefficients, gradient, kernels)  gradients of the gates, and of the state before
    gradients(inputs, saved, before, after, d_gates)
                                               … gradients of what was projected, of the kernel
                                               that multiplies the inputs, and of the weights

`saves` and `gates` count the parts, `[B, D]` each, of what is saved and of the gates' gradients.
`cudnn_mode` is the name that cuDNN has for the same recurrence, if it has it. `in_place` says
whether, step by step, what is saved overwrites `projected`, and the gates' gradients overwrite the
first coefficient. Both must be as wide, and XLA must not join such a reading to the writing, which
would have it copy the whole sequence at every step.

A step backward is linear in the gradient that comes from the step after it, so its coefficients
need nothing of later steps and are not computed inside the loop.

Products are taken in the kernel's dtype, all else in that of `projected` and the state. `kept`
`[B, D]`, if any, multiplies the hidden state wherever it enters a product, and nowhere else.
"""

from typing import NamedTuple

import tensorflow as tf


class LSTMState(NamedTuple):
    """What an LSTM carries from step to step, each `[B, D]`."""

    hidden: tf.Tensor
    cell: tf.Tensor


class HiddenState(NamedTuple):
    """What a GRU or a plain recurrence carries from step to step, `[B, D]`."""

    hidden: tf.Tensor


class LSTMCell:
    """The long short-term memory with a forget gate (Gers, Schmidhuber and Cummins, 2000).

        i, f, o = σ(z_i), σ(z_f), σ(z_o)        c' = f · c + i · g
              g = tanh(z_g)                     h' = o · tanh(c')

    where `z`, in the order i, f, g, o, is the sum of `projected` (from the inputs, with the bias)
    and the product of `h` with the recurrent kernel `[D, 4D]`.
    """

    saves, gates, in_place = 4, 4, True
    cudnn_mode = "lstm"

    def __init__(self, recurrent_kernel, kept=None):
        self._kernel, self._kept = recurrent_kernel, kept

    def forward(self, projected, state):
        """Returns the state after a step and its gates `[B, 4D]`."""
        units = state.cell.shape[-1]
        # σ(z) = (tanh(z / 2) + 1) / 2: one pass over all four gates.
        half = tf.constant([0.5] * 2 * units + [1.0] * units + [0.5] * units, projected.dtype)
        z = projected + _product(state.hidden, self._kernel, self._kept)
        gates = tf.tanh(z * half) * half + (1 - half)
        i, f, g, o = tf.split(gates, 4, axis=-1)
        cell = f * state.cell + i * g
        return LSTMState(hidden=o * tf.tanh(cell), cell=cell), gates

    @staticmethod
    def coefficients(saved, before, after):
        """Returns the factors of `dz` `[…, 4D]`, of `dc'` in `dh'`, and of `dc` in `dc'`."""
        i, f, g, o = tf.split(saved, 4, axis=-1)
        tanh_cell = tf.tanh(after.cell)
        of_gates = [
            g * i * (1 - i),
            before.cell * f * (1 - f),
            i * (1 - g * g),
            tanh_cell * o * (1 - o),
        ]
        return tf.concat(of_gates, axis=-1), o * (1 - tanh_cell * tanh_cell), f

    def transposed(self):
        return tf.transpose(self._kernel)

    def backward(self, coefficients, gradient, kernel):
        """Returns `dz` `[B, 4D]` and the gradient of the state before."""
        of_gates, of_hidden, of_cell = coefficients
        d_cell = gradient.cell + of_hidden * gradient.hidden
        d_gates = of_gates * tf.concat([d_cell, d_cell, d_cell, gradient.hidden], axis=-1)
        return d_gates, LSTMState(_back(d_gates, kernel, self._kept), of_cell * d_cell)

    def gradients(self, inputs, saved, before, after, d_gates):
        """Returns `dz` itself and both kernels' gradients."""
        d_kernel, d_recurrent = _kernel_gradients(inputs, before.hidden, d_gates, self._kept)
        return d_gates, d_kernel, [d_recurrent]


class PeepholeLSTMCell(LSTMCell):
    """An LSTM whose gates see the cell (Gers, Schraudolph and Schmidhuber, 2002).

    As `LSTMCell`, with `p_i · c` and `p_f · c` added to `z_i` and `z_f`, and `p_o · c'` to `z_o`;
    the peepholes are p_i, p_f, p_o, `[3, D]`.
    """

    cudnn_mode, in_place = None, False

    def __init__(self, recurrent_kernel, peepholes, kept=None):
        super().__init__(recurrent_kernel, kept)
        self._peepholes = tf.unstack(peepholes)

    def forward(self, projected, state):
        of_i, of_f, of_o = self._peepholes
        z = projected + _product(state.hidden, self._kernel, self._kept)
        i, f, g, o = tf.split(z, 4, axis=-1)
        i, f = tf.sigmoid(i + of_i * state.cell), tf.sigmoid(f + of_f * state.cell)
        g = tf.tanh(g)
        cell = f * state.cell + i * g
        o = tf.sigmoid(o + of_o * cell)
        return LSTMState(o * tf.tanh(cell), cell), tf.concat([i, f, g, o], axis=-1)

    def backward(self, coefficients, gradient, kernel):
        of_gates, of_hidden, of_cell = coefficients
        of_i, of_f, of_o = self._peepholes
        for_i, for_f, for_g, for_o = tf.split(of_gates, 4, axis=-1)
        d_o = for_o * gradient.hidden
        d_cell = gradient.cell + of_hidden * gradient.hidden + of_o * d_o
        d_i, d_f = for_i * d_cell, for_f * d_cell
        d_gates = tf.concat([d_i, d_f, for_g * d_cell, d_o], axis=-1)
        d_before = of_cell * d_cell + of_i * d_i + of_f * d_f
        return d_gates, LSTMState(_back(d_gates, kernel, self._kept), d_before)

    def gradients(self, inputs, saved, before, after, d_gates):
        d_gates, d_kernel, d_weights = super().gradients(inputs, saved, before, after, d_gates)
        d_i, d_f, _, d_o = tf.split(d_gates, 4, axis=-1)
        d_peepholes = [d_i * before.cell, d_f * before.cell, d_o * after.cell]
        return d_gates, d_kernel, [*d_weights, tf.stack([_sum(d) for d in d_peepholes])]


class GRUCell:
    """The gated recurrent unit (Cho et al., 2014), its reset after the product, as cuDNN has it.

        z, r = σ(x_z + y_z), σ(x_r + y_r)       g = tanh(x_g + r · y_g)
          h' = z · h + (1 - z) · g

    where `x`, in the order z, r, g, is `projected`, and `y` the product of `h` with the recurrent
    kernel `[D, 3D]`, with a bias `[3D]` of its own.
    """

    saves, gates, in_place = 4, 4, False
    cudnn_mode = "gru"

    def __init__(self, recurrent_kernel, recurrent_bias, kept=None):
        self._kernel, self._bias, self._kept = recurrent_kernel, recurrent_bias, kept

    def forward(self, projected, state):
        """Returns the state after a step, and z, r, y_g and g side by side, `[B, 4D]`."""
        units = state.hidden.shape[-1]
        y = _product(state.hidden, self._kernel, self._kept) + self._bias
        z, r = tf.split(tf.sigmoid(projected[:, : 2 * units] + y[:, : 2 * units]), 2, axis=-1)
        y_g = y[:, 2 * units :]
        g = tf.tanh(projected[:, 2 * units :] + r * y_g)
        hidden = g + z * (state.hidden - g)
        return HiddenState(hidden), tf.concat([z, r, y_g, g], axis=-1)

    @staticmethod
    def coefficients(saved, before, after):
        """Returns the factors, in `dh'`, of z's, r's, `y_g`'s and g's gradients, and of `dh`."""
        z, r, y_g, g = tf.split(saved, 4, axis=-1)
        of_g = (1 - z) * (1 - g * g)
        of_z = (before.hidden - g) * z * (1 - z)
        return tf.concat([of_z, of_g * y_g * r * (1 - r), of_g * r, of_g], axis=-1), z

    def transposed(self):
        return tf.transpose(self._kernel)

    def backward(self, coefficients, gradient, kernel):
        """Returns gradients of z, r, `y_g` and g before their curves, and of the state before."""
        of_gates, of_hidden = coefficients
        d_gates = of_gates * tf.concat([gradient.hidden] * 4, axis=-1)
        d_product = _back(_of_product(d_gates), kernel, self._kept)
        return d_gates, HiddenState(of_hidden * gradient.hidden + d_product)

    def gradients(self, inputs, saved, before, after, d_gates):
        d_z, d_r, _, d_g = tf.split(d_gates, 4, axis=-1)
        d_projected, d_product = tf.concat([d_z, d_r, d_g], axis=-1), _of_product(d_gates)
        d_kernel = _kernel_gradient(inputs, d_projected)
        d_recurrent = _kernel_gradient(_dropped(before.hidden, self._kept), d_product)
        return d_projected, d_kernel, [d_recurrent, _sum(d_product)]


class ResetBeforeGRUCell:
    """The gated recurrent unit with the reset before the product (Cho et al., 2014, version 1).

    As `GRUCell`, with `g = tanh(x_g + (r · h) U_g)` and no bias of `y`: each step has two products,
    one after the other.
    """

    saves, gates, in_place = 3, 3, False
    cudnn_mode = None

    def __init__(self, recurrent_kernel, kept=None):
        units = recurrent_kernel.shape[0]
        self._of_gates = recurrent_kernel[:, : 2 * units]
        self._of_candidate = recurrent_kernel[:, 2 * units :]
        self._kept = kept

    def forward(self, projected, state):
        """Returns the state after a step, and z, r and g side by side, `[B, 3D]`."""
        units = state.hidden.shape[-1]
        y = _product(state.hidden, self._of_gates, self._kept)
        z, r = tf.split(tf.sigmoid(projected[:, : 2 * units] + y), 2, axis=-1)
        y_g = _product(r * state.hidden, self._of_candidate, self._kept)
        g = tf.tanh(projected[:, 2 * units :] + y_g)
        hidden = g + z * (state.hidden - g)
        return HiddenState(hidden), tf.concat([z, r, g], axis=-1)

    @staticmethod
    def coefficients(saved, before, after):
        """Returns the factors of `dz` and `dg` in `dh'`, of `dr` in `d(r · h)`, then r and z."""
        z, r, g = tf.split(saved, 3, axis=-1)
        of_z = (before.hidden - g) * z * (1 - z)
        return of_z, (1 - z) * (1 - g * g), before.hidden * r * (1 - r), r, z

    def transposed(self):
        return tf.transpose(self._of_gates), tf.transpose(self._of_candidate)

    def backward(self, coefficients, gradient, kernels):
        """Returns gradients of z, r and g before their curves, and of the state before."""
        of_z, of_g, of_r, r, z = coefficients
        of_gates, of_candidate = kernels
        d_z, d_g = of_z * gradient.hidden, of_g * gradient.hidden
        d_reset = _back(d_g, of_candidate, self._kept)
        d_r = of_r * d_reset
        d_product = _back(tf.concat([d_z, d_r], axis=-1), of_gates, self._kept)
        d_hidden = z * gradient.hidden + r * d_reset + d_product
        return tf.concat([d_z, d_r, d_g], axis=-1), HiddenState(d_hidden)

    def gradients(self, inputs, saved, before, after, d_gates):
        units = before.hidden.shape[-1]
        _, r, _ = tf.split(saved, 3, axis=-1)
        d_z_and_r, d_g = d_gates[..., : 2 * units], d_gates[..., 2 * units :]
        d_kernels = (
            _kernel_gradients(inputs, before.hidden, d_z_and_r, self._kept),
            _kernel_gradients(inputs, r * before.hidden, d_g, self._kept),
        )
        d_kernel, d_recurrent = (tf.concat(d, axis=-1) for d in zip(*d_kernels, strict=True))
        return d_gates, d_kernel, [d_recurrent]


class TanhCell:
    """The plain recurrence (Elman, 1990): `h' = tanh(x + h U)`."""

    saves, gates, in_place = 0, 1, False
    cudnn_mode = "rnn_tanh"
    curve = staticmethod(tf.tanh)

    def __init__(self, recurrent_kernel, kept=None):
        self._kernel, self._kept = recurrent_kernel, kept

    @staticmethod
    def slope(hidden):
        """Returns the curve's derivative where its value is `hidden`."""
        return 1 - hidden * hidden

    def forward(self, projected, state):
        """Returns the state after a step, which says all."""
        product = _product(state.hidden, self._kernel, self._kept)
        return HiddenState(self.curve(projected + product)), ()

    def coefficients(self, saved, before, after):
        return (self.slope(after.hidden),)

    def transposed(self):
        return tf.transpose(self._kernel)

    def backward(self, coefficients, gradient, kernel):
        """Returns the gradients of the curve's argument and of the state before."""
        [slope] = coefficients
        d_sum = slope * gradient.hidden
        return d_sum, HiddenState(_back(d_sum, kernel, self._kept))

    def gradients(self, inputs, saved, before, after, d_gates):
        d_kernel, d_recurrent = _kernel_gradients(inputs, before.hidden, d_gates, self._kept)
        return d_gates, d_kernel, [d_recurrent]


class ReLUCell(TanhCell):
    """The plain recurrence with `max(0, ·)` for a curve."""

    cudnn_mode = "rnn_relu"
    curve = staticmethod(tf.nn.relu)

    @staticmethod
    def slope(hidden):
        return tf.cast(hidden > 0, hidden.dtype)


class SigmoidCell(TanhCell):
    """The plain recurrence with `σ` for a curve."""

    cudnn_mode = None
    curve = staticmethod(tf.sigmoid)

    @staticmethod
    def slope(hidden):
        return hidden * (1 - hidden)


def _dropped(hidden, kept):
    return hidden if kept is None else hidden * kept


def _product(x, kernel, kept):
    """Returns `[B, G]` in the dtype of `x` `[B, D]`, multiplied in that of the kernel."""
    product = tf.matmul(tf.cast(_dropped(x, kept), kernel.dtype), kernel)
    return tf.cast(product, x.dtype)


def _back(d_product, transposed, kept):
    """Returns the gradient of `_product` by `x`."""
    return _dropped(_product(d_product, transposed, None), kept)


def _kernel_gradients(inputs, hidden, d_product, kept):
    """Returns the gradients of both kernels, `[F, G]` and `[D, G]`: one product, not two."""
    joined = tf.concat([inputs, _dropped(hidden, kept)], axis=-1)
    return tf.split(_kernel_gradient(joined, d_product), [inputs.shape[-1], hidden.shape[-1]])


def _kernel_gradient(x, d_product):
    """Returns the gradient of a kernel that multiplied `x`, over all steps `[T, B, ·]`."""
    return tf.matmul(_rows(x), _rows(d_product), transpose_a=True)


def _of_product(d_gates):
    """Returns the gradient of the product of all that a GRU saves: z, r and `y_g`."""
    return d_gates[..., : 3 * d_gates.shape[-1] // 4]


def _rows(x):
    return tf.reshape(x, [-1, x.shape[-1]])


def _sum(x):
    """Returns the sum over all steps and examples, `[T, B, ·]`."""
    return tf.reduce_sum(x, axis=[0, 1])
