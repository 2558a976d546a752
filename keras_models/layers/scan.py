"""A cell repeated over time, as cuDNN does it, with its gradient written out.

What depends on the inputs alone is multiplied for all steps before the loop, and what inputs and
weights receive is multiplied for all steps after the loop backward. Only the product of the state
with the recurrent kernel stays inside. Inside, sequences are time-major, `[T, B, ·]`.
"""

from typing import NamedTuple

import tensorflow as tf


class _Tape(NamedTuple):
    """What the way back needs of the way forth: states and gates of all steps, `[T, B, ·]`."""

    before: NamedTuple
    after: NamedTuple
    gates: tf.Tensor


def scan(cell, inputs, lengths, kernel, recurrent_kernel, bias, initial_state, reverse=False):
    """Returns the hidden states `[B, T, D]` of all steps, and the state after the last one.

    Past its length an example carries its state unchanged and has outputs 0, and what its inputs
    hold there changes nothing, neither values nor gradients.

    Args:
        cell: Maths of a step, such as `cells.LSTMCell`, with `G` gates in all.
        inputs: Float tensor `[B, T, F]`.
        lengths: Integer tensor `[B]`, in `[0, T]`.
        kernel: Float tensor `[F, G]`.
        recurrent_kernel: Float tensor `[D, G]`.
        bias: Float tensor `[G]`.
        initial_state: The cell's state, each part `[B, D]`.
        reverse: Whether to go from the last real step to the first.
    """
    state_type = type(initial_state)

    # All that has a gradient is an argument and a tensor: a captured one would lose its gradient.
    @tf.custom_gradient
    def differentiable(inputs, lengths, kernel, recurrent_kernel, bias, *initial_state):
        mask = tf.transpose(tf.sequence_mask(lengths, tf.shape(inputs)[1]))[:, :, None]
        inputs = _masked(mask, _swap(inputs))
        projected = tf.einsum("tbf,fg->tbg", inputs, kernel) + bias
        tape, last = _forward(
            cell, projected, mask, recurrent_kernel, state_type(*initial_state), reverse
        )
        outputs = _swap(_masked(mask, tape.after.hidden))

        def gradient(d_outputs, *d_last):
            d_outputs = _masked(mask, _swap(d_outputs))
            d_gates, d_initial = _backward(
                cell, tape, mask, recurrent_kernel, d_outputs, state_type(*d_last), reverse
            )
            return (
                _swap(tf.einsum("tbg,fg->tbf", d_gates, kernel)),
                None,
                tf.einsum("tbf,tbg->fg", inputs, d_gates),
                tf.einsum("tbd,tbg->dg", tape.before.hidden, d_gates),
                tf.reduce_sum(d_gates, axis=[0, 1]),
                *d_initial,
            )

        return (outputs, *last), gradient

    tensors = (inputs, lengths, kernel, recurrent_kernel, bias, *initial_state)
    outputs, *last = differentiable(*map(tf.convert_to_tensor, tensors))
    return outputs, state_type(*last)


def _forward(cell, projected, mask, recurrent_kernel, initial_state, reverse):
    """Returns the tape and the state after the last step."""
    steps = tf.shape(projected)[0]
    arrays = (
        tf.nest.map_structure(lambda s: _array(steps, s.dtype, s.shape), initial_state),
        _array(steps, projected.dtype, projected.shape[1:]),
    )

    def step(n, state, arrays):
        time = steps - 1 - n if reverse else n
        product = tf.matmul(state.hidden, recurrent_kernel)
        after, gates = cell.forward(projected[time], product, state)
        state = _where(mask[time], after, state)
        return n + 1, state, _write(arrays, time, (state, gates))

    _, last, arrays = tf.while_loop(lambda n, *_: n < steps, step, (0, initial_state, arrays))
    after, gates = tf.nest.map_structure(lambda array: array.stack(), arrays)
    before = tf.nest.map_structure(
        lambda first, rest: _shifted(first, rest, reverse), initial_state, after
    )
    return _Tape(before, after, gates), last


def _backward(cell, tape, mask, recurrent_kernel, d_outputs, d_last, reverse):
    """Returns the gradients of `projected` `[T, B, G]` and of the initial state."""
    steps = tf.shape(d_outputs)[0]
    coefficients = cell.coefficients(tape.gates, tape.before, tape.after)
    coefficients = [_masked(mask, c) for c in coefficients]
    transposed = tf.transpose(recurrent_kernel)
    array = _array(steps, tape.gates.dtype, tape.gates.shape[1:])

    def step(n, d_state, array):
        time = n if reverse else steps - 1 - n
        d_after = d_state._replace(hidden=d_state.hidden + d_outputs[time])
        d_gates, d_before = cell.backward([c[time] for c in coefficients], d_after)
        d_hidden = tf.matmul(d_gates, transposed)
        if d_before.hidden is not None:
            d_hidden += d_before.hidden
        d_state = _where(mask[time], d_before._replace(hidden=d_hidden), d_after)
        return n + 1, d_state, array.write(time, d_gates)

    _, d_initial, array = tf.while_loop(lambda n, *_: n < steps, step, (0, d_last, array))
    return array.stack(), d_initial


def _swap(sequence):
    """Batch-major to time-major, and back."""
    return tf.transpose(sequence, [1, 0, 2])


def _masked(mask, x):
    return tf.where(mask, x, tf.zeros_like(x))


def _where(mask, taken, otherwise):
    return tf.nest.map_structure(lambda a, b: tf.where(mask, a, b), taken, otherwise)


def _array(steps, dtype, shape):
    return tf.TensorArray(dtype, size=steps, element_shape=shape)


def _write(arrays, time, values):
    return tf.nest.map_structure(lambda array, value: array.write(time, value), arrays, values)


def _shifted(first, after, reverse):
    """The state before each step, from the first one and those after each step."""
    if reverse:
        return tf.concat([after, first[None]], axis=0)[1:]
    return tf.concat([first[None], after], axis=0)[:-1]
