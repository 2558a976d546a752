"""One step of a recurrence, forward and backward: the maths that `scan` repeats.

A cell's gates are an affine map of inputs and state. `scan` multiplies; a cell does the rest, with
three functions:

    forward(projected, product, state)       the next state, and the gates, which are saved
    coefficients(gates, before, after)       what `backward` needs, for any number of steps at once
    backward(coefficients, gradient)         gradients of the gates' sum, and of the state before

A step backward is linear in the gradient that comes from the step after it, so its coefficients
need nothing of later steps and are not computed inside the loop.
"""

from typing import NamedTuple

import tensorflow as tf


class LSTMState(NamedTuple):
    """What an LSTM carries from step to step, each `[B, D]`."""

    hidden: tf.Tensor
    cell: tf.Tensor


class LSTMCell:
    """The long short-term memory with a forget gate (Gers, Schmidhuber and Cummins, 2000).

        i, f, o = σ(z_i), σ(z_f), σ(z_o)        c' = f · c + i · g
              g = tanh(z_g)                     h' = o · tanh(c')

    where `z`, in the order i, f, g, o, is the sum of `projected` (from the inputs, with the bias)
    and `product` (from the hidden state).
    """

    @staticmethod
    def forward(projected, product, state):
        """Returns the state after a step and its gates `[B, 4D]`."""
        units = state.cell.shape[-1]
        # σ(z) = (tanh(z / 2) + 1) / 2: one pass over all four gates.
        half = tf.constant([0.5] * 2 * units + [1.0] * units + [0.5] * units, projected.dtype)
        gates = tf.tanh((projected + product) * half) * half + (1 - half)
        i, f, g, o = tf.split(gates, 4, axis=-1)
        cell = f * state.cell + i * g
        return LSTMState(hidden=o * tf.tanh(cell), cell=cell), gates

    @staticmethod
    def coefficients(gates, before, after):
        """Returns the factors of `dz` `[…, 4D]`, of `dc'` in `dh'`, and of `dc` in `dc'`."""
        i, f, g, o = tf.split(gates, 4, axis=-1)
        tanh_cell = tf.tanh(after.cell)
        of_gates = [
            g * i * (1 - i),
            before.cell * f * (1 - f),
            i * (1 - g * g),
            tanh_cell * o * (1 - o),
        ]
        return tf.concat(of_gates, axis=-1), o * (1 - tanh_cell * tanh_cell), f

    @staticmethod
    def backward(coefficients, gradient):
        """Returns `dz` `[B, 4D]` and `dc`. `dh` comes of `dz` alone, through the product."""
        of_gates, of_hidden, of_cell = coefficients
        d_cell = gradient.cell + of_hidden * gradient.hidden
        d_gates = of_gates * tf.concat([d_cell, d_cell, d_cell, gradient.hidden], axis=-1)
        return d_gates, LSTMState(hidden=None, cell=of_cell * d_cell)
