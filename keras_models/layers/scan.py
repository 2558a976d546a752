"""Recurrences over time, with the gradient written out.

A step of a recurrence reads an input and a state, and its gates are an affine map of both. What
depends on the input alone is multiplied for all steps before the loop; what the weights receive
is multiplied for all steps after the backward loop. Only `state · recurrent_kernel` stays inside.
"""

from typing import NamedTuple

import tensorflow as tf


class LSTMState(NamedTuple):
    """What an LSTM carries from step to step, each `[B, D]`."""

    hidden: tf.Tensor
    cell: tf.Tensor


class LSTMCell:
    """One step of Hochreiter and Schmidhuber's LSTM with a forget gate, and its derivative.

        i, f, o = σ(z_i), σ(z_f), σ(z_o)        g = tanh(z_g)
        c' = f · c + i · g                      h' = o · tanh(c')

    with `z = x · kernel + h · recurrent_kernel + bias`, in the order i, f, g, o.
    """

    gates = 4
    state = LSTMState

    @staticmethod
    def forward(projected, product, state):
        """Returns the next state, and what `backward` needs to know of this step."""
        i, f, g, o = tf.split(projected + product, 4, axis=-1)
        i, f, g, o = tf.sigmoid(i), tf.sigmoid(f), tf.tanh(g), tf.sigmoid(o)
        cell = f * state.cell + i * g
        return LSTMState(o * tf.tanh(cell), cell), (tf.concat([i, f, g, o], axis=-1),)

    @staticmethod
    def backward(saved, before, after, gradient):
        """Returns the gradients of `projected`, and of `before` other than through `product`."""
        i, f, g, o = tf.split(saved[0], 4, axis=-1)
        tanh_cell = tf.tanh(after.cell)
        d_cell = gradient.cell + gradient.hidden * o * (1 - tanh_cell * tanh_cell)
        d_projected = tf.concat(
            [
                d_cell * g * i * (1 - i),
                d_cell * before.cell * f * (1 - f),
                d_cell * i * (1 - g * g),
                gradient.hidden * tanh_cell * o * (1 - o),
            ],
            axis=-1,
        )
        return d_projected, LSTMState(tf.zeros_like(d_cell), d_cell * f)


class Direction(NamedTuple):
    """The weights of one direction and the state it starts from."""

    kernel: tf.Tensor
    recurrent_kernel: tf.Tensor
    bias: tf.Tensor
    state: NamedTuple


def scan(cell, inputs, lengths, directions, reverses):
    """Returns, for each direction, its outputs `[B, T, D]` and its last state.

    The directions share the inputs and one loop. A reversed one starts at the last real step.

    Args:
        cell: A cell, such as `LSTMCell`.
        inputs: Float tensor `[B, T, F]`.
        lengths: Integer tensor `[B]`, in `[0, T]`. Past it the state is carried and outputs are 0.
        directions: List of `Direction`.
        reverses: List of Python booleans, one a direction.
    """
    structure = list(directions)

    @tf.custom_gradient
    def run(inputs, lengths, *flat):
        directions = tf.nest.pack_sequence_as(structure, flat)
        mask = _time_mask(inputs, lengths)  # [T, B, 1]
        inputs = tf.transpose(inputs, [1, 0, 2])
        inputs = tf.where(mask, inputs, tf.zeros_like(inputs))  # [T, B, F]
        sequences, last = _forward(cell, inputs, mask, directions, reverses)
        outputs = [
            tf.transpose(tf.where(mask, states.hidden, tf.zeros_like(states.hidden)), [1, 0, 2])
            for states, _ in sequences
        ]

        def gradient(*flat_gradients):
            d_outputs, d_last = tf.nest.pack_sequence_as((outputs, last), flat_gradients)
            d_outputs = [tf.transpose(d, [1, 0, 2]) for d in d_outputs]
            d_outputs = [tf.where(mask, d, tf.zeros_like(d)) for d in d_outputs]
            d_inputs, d_directions = _backward(
                cell, inputs, mask, directions, reverses, sequences, d_outputs, d_last
            )
            d_inputs = tf.transpose(d_inputs, [1, 0, 2])
            return d_inputs, None, *tf.nest.flatten(d_directions)

        return tf.nest.flatten((outputs, last)), gradient

    flat = run(inputs, lengths, *tf.nest.flatten(structure))
    return tf.nest.pack_sequence_as(([0] * len(reverses), [d.state for d in directions]), flat)


def _time_mask(inputs, lengths):
    mask = tf.sequence_mask(lengths, tf.shape(inputs)[1])  # [B, T]
    return tf.transpose(mask)[:, :, None]


def _array(steps, like):
    return tf.TensorArray(like.dtype, size=steps, element_shape=like.shape)


def _select(mask, taken, otherwise):
    return tf.nest.map_structure(lambda a, b: tf.where(mask, a, b), taken, otherwise)


def _times(reverses, step, steps):
    """The time at which each direction is in its `step`-th step."""
    return [steps - 1 - step if reverse else step for reverse in reverses]


def _matmul(sequence, matrix):
    """Product over all steps: `[T, B, X] · [X, Y] → [T, B, Y]`."""
    return tf.einsum("tbx,xy->tby", sequence, matrix)


def _forward(cell, inputs, mask, directions, reverses):
    """Returns, a direction, its states `[T, B, ·]` with what was saved, and its last state."""
    steps, batch = tf.shape(inputs)[0], inputs.shape[1]
    projected = [_matmul(inputs, d.kernel) + d.bias for d in directions]

    def saved_like(direction):
        state = tf.nest.map_structure(lambda s: s, direction.state)
        width = direction.recurrent_kernel.shape[1]
        return state, (tf.zeros([batch or 0, width], inputs.dtype),)

    arrays = [
        tf.nest.map_structure(
            lambda t: tf.TensorArray(t.dtype, size=steps, element_shape=[batch, t.shape[-1]]),
            saved_like(d),
        )
        for d in directions
    ]

    def body(step, states, arrays):
        new_states, new_arrays = [], []
        times = _times(reverses, step, steps)
        for time, d, x, state, array in zip(
            times, directions, projected, states, arrays, strict=True
        ):
            product = tf.matmul(state.hidden, d.recurrent_kernel)
            after, saved = cell.forward(x[time], product, state)
            after = _select(mask[time], after, state)
            new_states.append(after)
            new_arrays.append(
                tf.nest.map_structure(lambda a, v, t=time: a.write(t, v), array, (after, saved))
            )
        return step + 1, new_states, new_arrays

    _, last, arrays = tf.while_loop(
        lambda step, *_: step < steps, body, (0, [d.state for d in directions], arrays)
    )
    return tf.nest.map_structure(lambda a: a.stack(), arrays), last


def _before(states, first, reverse):
    """The states `[T, B, ·]` before each step, of those after it."""
    return tf.nest.map_structure(
        lambda s, f: (
            tf.concat([s[1:], f[None]], axis=0) if reverse else tf.concat([f[None], s[:-1]], axis=0)
        ),
        states,
        first,
    )


def _backward(cell, inputs, mask, directions, reverses, sequences, d_outputs, d_last):
    """Returns the gradients of the inputs `[T, B, F]` and of the directions."""
    steps = tf.shape(inputs)[0]
    befores = [
        _before(s, d.state, r) for (s, _), d, r in zip(sequences, directions, reverses, strict=True)
    ]
    transposed = [tf.transpose(d.recurrent_kernel) for d in directions]
    arrays = [
        tf.TensorArray(
            inputs.dtype, size=steps, element_shape=[inputs.shape[1], d.recurrent_kernel.shape[1]]
        )
        for d in directions
    ]

    def body(step, d_states, arrays):
        new_states, new_arrays = [], []
        times = _times(reverses, steps - 1 - step, steps)
        for n, time in enumerate(times):
            states, saved, before = tf.nest.map_structure(
                lambda s, t=time: s[t], (*sequences[n], befores[n])
            )
            d_after = d_states[n]._replace(hidden=d_states[n].hidden + d_outputs[n][time])
            d_projected, d_before = cell.backward(saved, before, states, d_after)
            d_projected = tf.where(mask[time], d_projected, tf.zeros_like(d_projected))
            d_before = _select(mask[time], d_before, d_after)
            d_hidden = d_before.hidden + tf.matmul(d_projected, transposed[n])
            new_states.append(d_before._replace(hidden=d_hidden))
            new_arrays.append(arrays[n].write(time, d_projected))
        return step + 1, new_states, new_arrays

    _, d_states, arrays = tf.while_loop(
        lambda step, *_: step < steps, body, (0, list(d_last), arrays)
    )
    d_projected = [a.stack() for a in arrays]  # [T, B, 4D]
    d_inputs = tf.add_n(
        [
            tf.einsum("tbg,fg->tbf", p, d.kernel)
            for p, d in zip(d_projected, directions, strict=True)
        ]
    )
    d_directions = [
        Direction(
            kernel=tf.einsum("tbf,tbg->fg", inputs, p),
            recurrent_kernel=tf.einsum("tbd,tbg->dg", before.hidden, p),
            bias=tf.reduce_sum(p, axis=[0, 1]),
            state=d_state,
        )
        for p, before, d_state in zip(d_projected, befores, d_states, strict=True)
    ]
    return d_inputs, d_directions
