"""Recurrences by cuDNN's kernels, where there is a GPU.

TensorFlow's op `CudnnRNNV3` is taken as its contract says. Whether the graph runs on a GPU is asked
when it runs: the same graph, exported, takes the scan on a machine without.
"""

import tensorflow as tf

# Where cuDNN's gates stand in ours. Its GRU has the reset before the update gate.
_ORDERS = {"lstm": [0, 1, 2, 3], "gru": [1, 0, 2], "rnn_tanh": [0], "rnn_relu": [0]}
_DTYPES = (tf.float16, tf.float32, tf.float64)


def eligible(mode, dtype, kept):
    """Returns whether cuDNN may take the place of a scan.

    It may where a GPU was there when the graph was traced, for cells that it has (`mode` is not
    None), in float16, float32 or float64, and without recurrent dropout. A graph compiled by XLA
    takes the scan all the same: XLA has no such op.
    """
    seen = bool(tf.config.list_logical_devices("GPU"))
    return seen and mode is not None and dtype in _DTYPES and kept is None


def on_gpu(there, elsewhere):
    """Returns what `there` returns where the graph runs on a GPU, else what `elsewhere` does."""
    return tf.__internal__.execute_fn_for_device({"GPU": there}, elsewhere)


def cudnn(mode, inputs, lengths, kernel, bias, weights, initial_state, reverse=False):
    """Returns the hidden states `[B, T, D]` of all steps, and the state after the last one.

    Takes what `scan.scan` takes, for a cell with this `cudnn_mode`, and returns the same.
    """
    total, dtype = tf.shape(inputs)[1], inputs.dtype
    state = type(initial_state)(*(tf.cast(x, dtype) for x in initial_state))
    mask = tf.sequence_mask(lengths, total)[:, :, None]
    # cuDNN wants at least one step of every example.
    inputs = tf.pad(
        tf.where(mask, inputs, tf.zeros_like(inputs)),
        [[0, 0], [0, tf.cast(total == 0, tf.int32)], [0, 0]],
    )
    lengths = tf.cast(lengths, tf.int32)
    steps = tf.maximum(lengths, 1)
    hidden, *cell = (x[:, None] for x in state)
    outputs, *last = tf.raw_ops.CudnnRNNV3(
        input=tf.reverse_sequence(inputs, steps, seq_axis=1) if reverse else inputs,
        input_h=hidden,
        input_c=cell[0] if cell else tf.zeros([], dtype),
        params=parameters(mode, kernel, bias, weights, dtype),
        sequence_lengths=steps,
        rnn_mode=mode,
        time_major=False,
        is_training=True,
    )[: 1 + len(state)]
    if reverse:
        outputs = tf.reverse_sequence(outputs, steps, seq_axis=1)
    outputs = tf.where(mask, outputs[:, :total], tf.zeros([], dtype))
    last = [
        tf.where(lengths[:, None] > 0, after[:, 0], before)
        for after, before in zip(last, state, strict=True)
    ]
    return outputs, type(state)(*last)


def parameters(mode, kernel, bias, weights, dtype):
    """Returns the weights as one flat tensor: all kernels, transposed, and then all biases.

    Args:
        mode: As cuDNN calls the cell.
        kernel: `[F, G]`.
        bias: `[G]`.
        weights: Recurrent kernel `[D, G]` and, of a GRU, recurrent bias `[G]`.
        dtype: of the result.
    """
    recurrent_kernel, *recurrent_bias = weights
    # cuDNN adds two biases, of which cells but GRU's have one.
    biases = [bias, *recurrent_bias] if recurrent_bias else [tf.zeros_like(bias), bias]
    order = _ORDERS[mode]
    flat = []
    for matrix in (kernel, recurrent_kernel):
        parts = tf.split(tf.transpose(matrix), len(order))
        flat += [tf.reshape(parts[n], [-1]) for n in order]
    for vector in biases:
        parts = tf.split(vector, len(order))
        flat += [parts[n] for n in order]
    return tf.concat([tf.cast(x, dtype) for x in flat], axis=0)
