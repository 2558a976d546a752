"""A cell repeated over time, as cuDNN does it, with its gradient written out.

What depends on the inputs alone is multiplied for all steps before the loop, and what inputs and
weights receive is multiplied for all steps after the loop backward. Only the product of the state
with the recurrent kernel stays inside. Inside, sequences are time-major, `[T, B, ·]`.

Products take the dtype of the inputs. States, gates and sums over steps are float32 where that is
bfloat16 or float16, so that a weight of float32 has a gradient that was summed in float32.
"""

from typing import NamedTuple

import tensorflow as tf


class _Tape(NamedTuple):
    """What the way back needs of the way forth: of all steps, `[T, B, ·]`."""

    before: NamedTuple
    after: NamedTuple
    saved: tf.Tensor


def scan(cell, inputs, lengths, kernel, bias, weights, initial_state, reverse=False, kept=None):
    """Returns the hidden states `[B, T, D]` of all steps, and the state after the last one.

    Past its length an example carries its state unchanged and has outputs 0, and what its inputs
    hold there changes nothing, neither values nor gradients. Gradients have no gradient.

    Args:
        cell: Maths of a step, such as `cells.LSTMCell`, with `G` gates in all.
        inputs: Float tensor `[B, T, F]`.
        lengths: Integer tensor `[B]`, in `[0, T]`.
        kernel: Float tensor `[F, G]`.
        bias: Float tensor `[G]`.
        weights: Float tensors that the cell is bound to, the recurrent kernel `[D, G]` first.
        initial_state: The cell's state, each part `[B, D]`.
        reverse: Whether to go from the last real step to the first.
        kept: Float tensor `[B, D]` that multiplies the hidden state in products; None is all ones.
    """
    state_type = type(initial_state)
    count, compute, exact = len(weights), inputs.dtype, _exact(inputs.dtype)
    total = tf.shape(inputs)[1]
    if not inputs.shape[1]:  # XLA takes no loop over an empty axis: where there are no steps, one.
        empty = tf.cast(total == 0, tf.int32)
        inputs = tf.pad(inputs, [[0, 0], [0, empty], [0, 0]])
    kept = None if kept is None else tf.cast(kept, exact)

    # All that has a gradient is an argument and a tensor: a captured one would lose its gradient.
    @tf.custom_gradient
    def differentiable(inputs, kernel, bias, *rest):
        weights, initial_state = rest[:count], state_type(*rest[count:])
        bound = bind(cell, weights, compute, kept)
        mask = tf.transpose(tf.sequence_mask(lengths, tf.shape(inputs)[1]))[:, :, None]
        rows = _masked(mask, _swap(inputs))
        start = tf.nest.map_structure(lambda x: tf.cast(x, exact), initial_state)
        projected = project(rows, kernel)
        tape, last = _forward(bound, projected, tf.cast(bias, exact), mask, start, reverse)
        outputs = _swap(tf.cast(_masked(mask, tape.after.hidden), compute))
        last = tf.nest.map_structure(lambda x: tf.cast(x, compute), last)

        def gradient(d_outputs, *d_last):
            d_outputs = _masked(mask, _swap(tf.cast(d_outputs, exact)))
            d_last = state_type(*(tf.cast(d, exact) for d in d_last))
            d_gates, d_initial = _backward(bound, tape, mask, d_outputs, d_last, reverse)
            # The bias is the kernel's share of an input that is always 1.
            joined = tf.concat([rows, tf.ones_like(rows[:, :, :1])], axis=-1)
            d_projected, d_kernel, d_weights = bound.gradients(
                tf.cast(joined, exact), tape.saved, tape.before, tape.after, d_gates
            )
            flat = tf.reshape(d_projected, [-1, d_projected.shape[-1]])
            # XLA multiplies by a transposed matrix more slowly than it transposes one first.
            transposed = tf.transpose(tf.cast(kernel, compute))
            d_inputs = tf.matmul(tf.cast(flat, compute), transposed)
            d_arguments = (
                _swap(tf.reshape(d_inputs, tf.shape(rows))),
                d_kernel[:-1],
                d_kernel[-1],
                *d_weights,
                *d_initial,
            )
            return [
                tf.cast(d, x.dtype)
                for d, x in zip(d_arguments, (inputs, kernel, bias, *rest), strict=True)
            ]

        return (outputs, *last), _once(gradient, (inputs, kernel, bias, *rest))

    tensors = (inputs, kernel, bias, *weights, *initial_state)
    outputs, *last = differentiable(*map(tf.convert_to_tensor, tensors))
    return outputs[:, :total], state_type(*last)


def project(inputs, kernel):
    """Returns the share of the inputs `[…, F]` in the gates, `[…, G]`, still without the bias."""
    flat = tf.reshape(inputs, [-1, inputs.shape[-1]])
    product = tf.matmul(flat, tf.cast(kernel, inputs.dtype))
    shape = tf.concat([tf.shape(inputs)[:-1], kernel.shape[-1:]], axis=0)
    projected = tf.reshape(tf.cast(product, _exact(inputs.dtype)), shape)
    return tf.ensure_shape(projected, [*inputs.shape[:-1], kernel.shape[-1]])


def bind(cell, weights, dtype, kept=None):
    """Returns a cell bound to its weights, to multiply in `dtype`."""
    recurrent_kernel, *vectors = weights
    vectors = [tf.cast(vector, _exact(dtype)) for vector in vectors]
    return cell(tf.cast(recurrent_kernel, dtype), *vectors, kept=kept)


def _exact(dtype):
    """Returns the dtype for what is summed over steps."""
    return tf.float64 if dtype == tf.float64 else tf.float32


def _once(gradient, arguments):
    """Returns a gradient function that refuses to be differentiated, by itself or `arguments`."""

    def once(*d_values):
        @tf.custom_gradient
        def first(*tensors):
            return gradient(*tensors[: len(d_values)]), _refuse

        return first(*d_values, *arguments)

    return once


def _refuse(*_):
    raise NotImplementedError(
        "A recurrent layer must be differentiated once at most. Received: a gradient of its "
        "gradient. `keras.layers.LSTM`, which takes the same weights, has second derivatives."
    )


def _forward(cell, projected, bias, mask, initial_state, reverse):
    """Returns the tape and the state after the last step."""
    steps = tf.shape(projected)[0]
    of_state = tf.nest.map_structure(lambda x: _array(steps, x, 1), initial_state)
    of_saved = _array(steps, initial_state.hidden, cell.saves) if cell.saves else ()
    of_saved, read = _reader(cell, of_saved, projected)

    def step(n, state, arrays):
        time = steps - 1 - n if reverse else n
        after, saved = cell.forward(read(arrays[1], time) + bias, state)
        state = _where(mask[time], after, state)
        return n + 1, state, _write(arrays, time, (state, saved))

    _, last, arrays = tf.while_loop(
        lambda n, *_: n < steps, step, (0, initial_state, (of_state, of_saved))
    )
    after, saved = tf.nest.map_structure(lambda array: array.stack(), arrays)
    before = tf.nest.map_structure(
        lambda first, rest: _shifted(first, rest, reverse), initial_state, after
    )
    return _Tape(before, after, saved), last


def _backward(cell, tape, mask, d_outputs, d_last, reverse):
    """Returns the gradients of the gates `[T, B, ·]` and of the initial state."""
    steps = tf.shape(d_outputs)[0]
    first, *others = cell.coefficients(tape.saved, tape.before, tape.after)
    array, read = _reader(cell, _array(steps, d_last.hidden, cell.gates), first)
    kernels = cell.transposed()

    def step(n, d_state, array):
        time = n if reverse else steps - 1 - n
        d_after = d_state._replace(hidden=d_state.hidden + d_outputs[time])
        # A step is linear in the gradient of its state: past the end, where that is 0, so is all.
        d_real = tf.nest.map_structure(lambda d: _masked(mask[time], d), d_after)
        coefficients = [read(array, time), *(other[time] for other in others)]
        d_gates, d_before = cell.backward(coefficients, d_real, kernels)
        return n + 1, _where(mask[time], d_before, d_after), array.write(time, d_gates)

    _, d_initial, array = tf.while_loop(lambda n, *_: n < steps, step, (0, d_last, array))
    return array.stack(), d_initial


def _swap(sequence):
    """Batch-major to time-major, and back."""
    return tf.transpose(sequence, [1, 0, 2])


def _masked(mask, x):
    return tf.where(mask, x, tf.zeros_like(x))


def _where(mask, taken, otherwise):
    return tf.nest.map_structure(lambda a, b: tf.where(mask, a, b), taken, otherwise)


def _array(steps, state, parts):
    """Returns an array of `steps` tensors, each `parts` times as wide as a state `[B, D]`."""
    batch, units = state.shape
    shape = [batch, parts * units]
    return tf.TensorArray(state.dtype, steps, clear_after_read=False, element_shape=shape)


def _reader(cell, array, sequence):
    """Returns the array that takes what comes of a sequence, and what reads a step from it."""
    if cell.in_place:
        return array.unstack(sequence), lambda array, time: array.read(time)
    return array, lambda _, time: sequence[time]


def _write(arrays, time, values):
    return tf.nest.map_structure(lambda array, value: array.write(time, value), arrays, values)


def _shifted(first, after, reverse):
    """The state before each step, from the first one and those after each step."""
    if reverse:
        return tf.concat([after, first[None]], axis=0)[1:]
    return tf.concat([first[None], after], axis=0)[:-1]
