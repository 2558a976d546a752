import itertools

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_models.layers.recurrent import (
    LSTM,
    BidirectionalLSTM,
    LSTMState,
    StackedLSTM,
    lstm,
)

B, T, F, D = 4, 6, 3, 5
LENGTHS = [6, 2, 0, 5]
MODES = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}


def arguments(seed=0, dtype=np.float64, batch=B, steps=T):
    """Inputs, kernel, recurrent kernel, bias, hidden and cell, each of them random."""
    shapes = [(batch, steps, F), (F, 4 * D), (D, 4 * D), (4 * D,), (batch, D), (batch, D)]
    random = np.random.default_rng(seed)
    return [tf.constant(random.normal(size=shape), dtype) for shape in shapes]


def run(inputs, lengths, kernel, recurrent_kernel, bias, hidden, cell, reverse=False):
    """Outputs, hidden and cell, as one flat tuple."""
    state = LSTMState(hidden, cell)
    outputs, state = lstm(inputs, lengths, kernel, recurrent_kernel, bias, state, reverse)
    return outputs, *state


def loss(*tensors):
    """A scalar in which every element of every tensor has a weight of its own."""

    def total(x):
        weights = tf.cos(tf.range(tf.size(x), dtype=x.dtype))
        return tf.reduce_sum(tf.sin(x) * tf.reshape(weights, tf.shape(x)))

    return tf.add_n([total(tf.convert_to_tensor(x)) for x in tensors])


def values_and_gradients(tensors, lengths=LENGTHS, reverse=False):
    inputs, *rest = tensors
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        values = run(inputs, tf.constant(lengths), *rest, reverse=reverse)
        total = loss(*values)
    return [*values, *tape.gradient(total, tensors)]


def numpy_lstm(inputs, lengths, kernel, recurrent_kernel, bias, hidden, cell, reverse=False):
    """The definition, one example and one step at a time, in float64."""

    def sigmoid(z):
        return 1 / (1 + np.exp(-z))

    hidden, cell = hidden.copy(), cell.copy()
    outputs = np.zeros([len(inputs), inputs.shape[1], len(recurrent_kernel)])
    for b, length in enumerate(lengths):
        for t in reversed(range(length)) if reverse else range(length):
            z = inputs[b, t] @ kernel + hidden[b] @ recurrent_kernel + bias
            i, f, g, o = np.split(z, 4)
            cell[b] = sigmoid(f) * cell[b] + sigmoid(i) * np.tanh(g)
            hidden[b] = sigmoid(o) * np.tanh(cell[b])
            outputs[b, t] = hidden[b]
    return outputs, hidden, cell


def assert_all_close(actual, expected, tolerance=1e-6):
    for a, e in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("reverse", [False, True])
def test_values_are_those_of_the_definition(reverse):
    inputs, *rest = arguments()
    expected = numpy_lstm(inputs.numpy(), LENGTHS, *(x.numpy() for x in rest), reverse=reverse)
    assert_all_close(run(inputs, LENGTHS, *rest, reverse=reverse), expected, 1e-12)


@pytest.mark.parametrize("reverse", [False, True])
def test_gradients_are_the_finite_differences(reverse):
    tensors = arguments(1)
    gradients = values_and_gradients(tensors, reverse=reverse)[3:]
    random = np.random.default_rng(2)

    def total(tensors):
        return float(loss(*run(tensors[0], LENGTHS, *tensors[1:], reverse=reverse)))

    for n, gradient in enumerate(gradients):
        direction = random.normal(size=gradient.shape)
        above, below = (
            total([x + h * direction if k == n else x for k, x in enumerate(tensors)])
            for h in (1e-5, -1e-5)
        )
        expected = np.sum(gradient * direction)
        assert (above - below) / 2e-5 == pytest.approx(expected, rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("lengths", [[T] * B, [6, 2, 1, 5]])
@pytest.mark.parametrize("reverse", [False, True])
def test_values_and_gradients_are_those_of_keras(lengths, reverse):
    tensors = arguments(3, np.float32)
    inputs, kernel, recurrent_kernel, bias, hidden, cell = tensors
    theirs = keras.layers.LSTM(D, return_sequences=True, return_state=True)
    theirs.build(inputs.shape)
    theirs.set_weights([kernel, recurrent_kernel, bias])
    weights = [variable.value for variable in theirs.trainable_variables]
    mask = tf.sequence_mask(lengths, T)

    def flip(sequence):
        return tf.reverse_sequence(sequence, lengths, seq_axis=1) if reverse else sequence

    with tf.GradientTape() as tape:
        tape.watch([inputs, hidden, cell])
        outputs, *state = theirs(flip(inputs), mask=mask, initial_state=[hidden, cell])
        outputs = tf.where(mask[:, :, None], flip(outputs), 0)
        total = loss(outputs, *state)
    gradients = tape.gradient(total, [inputs, *weights, hidden, cell])
    expected = [outputs, *state, *gradients]
    assert_all_close(values_and_gradients(tensors, lengths, reverse), expected, 1e-5)


@pytest.mark.parametrize("reverse", [False, True])
def test_eager_graph_and_xla_agree(reverse):
    tensors = arguments(4, np.float32)
    expected = values_and_gradients(tensors, reverse=reverse)
    for mode in ("graph", "xla"):
        function = MODES[mode](lambda *x: values_and_gradients(list(x), reverse=reverse))
        assert_all_close(function(*tensors), expected, 1e-5)


@pytest.mark.parametrize("mode", ["graph", "xla"])
def test_one_graph_takes_any_batch_and_any_number_of_steps(mode):
    def function(inputs, lengths, kernel, recurrent_kernel, bias, hidden, cell):
        weights = [kernel, recurrent_kernel, bias]
        with tf.GradientTape() as tape:
            tape.watch(weights)
            values = run(inputs, lengths, *weights, hidden, cell)
            total = tf.add_n([tf.reduce_sum(value**2) for value in values])
        return *values, *tape.gradient(total, weights)

    shapes = [[None, None, F], [None], [F, 4 * D], [D, 4 * D], [4 * D], [None, D], [None, D]]
    dtypes = [tf.float64, tf.int32, *[tf.float64] * 5]
    signature = [tf.TensorSpec(s, d) for s, d in zip(shapes, dtypes, strict=True)]
    compiled = tf.function(function, input_signature=signature, jit_compile=mode == "xla")
    for batch, steps in [(2, 3), (4, 7), (1, 1)]:
        inputs, *rest = arguments(5, batch=batch, steps=steps)
        lengths = tf.range(batch) % (steps + 1)
        expected = function(inputs, lengths, *rest)
        assert_all_close(compiled(inputs, lengths, *rest), expected, 1e-9)


@pytest.mark.parametrize("mode", ["eager", "graph"])  # XLA refuses to slice an empty axis.
def test_no_steps_give_the_initial_state_and_gradients_of_zero(mode):
    tensors = arguments(6, steps=0)
    function = MODES[mode](lambda *x: values_and_gradients(list(x), [0] * B))
    outputs, hidden, cell, *gradients = function(*tensors)
    assert outputs.shape == (B, 0, D)
    assert_all_close([hidden, cell], tensors[-2:])
    assert not any(np.any(gradient) for gradient in gradients[:4])


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("filling", [1e4, np.inf, np.nan])
def test_padding_changes_nothing(filling, mode, reverse):
    tensors = arguments(7)
    padding = np.arange(T) >= np.array(LENGTHS)[:, None]
    filled = [tf.where(padding[:, :, None], filling, tensors[0]), *tensors[1:]]
    function = MODES[mode](lambda *x: values_and_gradients(list(x), reverse=reverse))
    expected, actual = function(*tensors), function(*filled)
    assert_all_close(actual, expected, 0)
    outputs, d_inputs = actual[0], actual[3]
    assert not np.any(outputs[padding])
    assert not np.any(d_inputs[padding])


def test_more_padding_changes_nothing():
    inputs, *rest = arguments(8)
    outputs, *values = values_and_gradients([inputs, *rest])
    longer = tf.pad(inputs, [[0, 0], [0, 3], [0, 0]], constant_values=7.0)
    with tf.GradientTape() as tape:
        tape.watch(rest)
        long_outputs, *state = run(longer, LENGTHS, *rest)
        total = loss(long_outputs[:, :T], *state)
    assert_all_close([long_outputs[:, :T], *state], [outputs, *values[:2]])
    assert_all_close(tape.gradient(total, rest), values[3:])


@pytest.mark.parametrize("reverse", [False, True])
def test_an_example_alone_has_the_values_it_has_in_a_batch(reverse):
    inputs, *rest = arguments(9)
    weights, state = rest[:3], rest[3:]
    batch = run(inputs, LENGTHS, *rest, reverse=reverse)
    for b, length in enumerate(LENGTHS):
        first, *own = (x[b : b + 1] for x in (inputs[:, :length], *state))
        alone = run(first, [length], *weights, *own, reverse=reverse)
        outputs, *last = (x[b : b + 1] for x in batch)
        assert_all_close(alone, [outputs[:, :length], *last], 1e-12)


def test_an_example_of_length_0_keeps_its_state_and_passes_its_gradient_on():
    inputs, *rest = arguments(10)
    empty = LENGTHS.index(0)
    with tf.GradientTape() as tape:
        tape.watch([inputs, *rest])
        _, hidden, cell = run(inputs, LENGTHS, *rest)
        total = tf.reduce_sum(3 * hidden[empty] + 5 * cell[empty])
    gradients = tape.gradient(total, [inputs, *rest])
    assert_all_close([hidden[empty], cell[empty]], [x[empty] for x in rest[3:]], 0)
    assert not any(np.any(gradient) for gradient in gradients[:4])
    assert_all_close([g[empty] for g in gradients[4:]], [np.full(D, 3.0), np.full(D, 5.0)], 0)


def test_reverse_is_forward_on_the_flipped_real_part():
    inputs, *rest = arguments(11)
    flipped = tf.reverse_sequence(inputs, LENGTHS, seq_axis=1)
    outputs, *state = run(flipped, LENGTHS, *rest)
    expected = [tf.reverse_sequence(outputs, LENGTHS, seq_axis=1), *state]
    assert_all_close(run(inputs, LENGTHS, *rest, reverse=True), expected, 1e-12)


def test_chunks_with_carried_state_equal_the_whole():
    inputs, *rest = arguments(12)
    lengths, weights, state = np.array(LENGTHS), rest[:3], rest[3:]
    whole = run(inputs, LENGTHS, *rest)
    outputs = []
    for start, end in itertools.pairwise([0, 1, 4, T]):
        left = np.clip(lengths - start, 0, end - start)
        chunk, *state = run(inputs[:, start:end], left, *weights, *state)
        outputs.append(chunk)
    assert_all_close([tf.concat(outputs, axis=1), *state], whole, 1e-12)


@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16, tf.float32, tf.float64])
def test_everything_has_the_dtype_of_the_arguments(dtype):
    exact = arguments(13)
    outputs, *rest = values_and_gradients([tf.cast(x, dtype) for x in exact])
    assert {x.dtype for x in (outputs, *rest)} == {dtype}
    expected = run(exact[0], LENGTHS, *exact[1:])[0]
    np.testing.assert_allclose(tf.cast(outputs, tf.float64), expected, atol=0.1)


def inputs_and_lengths(dtype=np.float32):
    random = np.random.default_rng(14)
    return tf.constant(random.normal(size=(B, T, F)), dtype), tf.constant(LENGTHS)


def test_weights_are_those_of_keras():
    inputs, lengths = inputs_and_lengths()
    ours, theirs = LSTM(D), keras.layers.LSTM(D)
    ours(inputs, lengths)
    theirs.build(inputs.shape)
    assert [w.shape for w in ours.get_weights()] == [w.shape for w in theirs.get_weights()]
    ours.set_weights(theirs.get_weights())
    theirs.set_weights(ours.get_weights())
    _, state = ours(inputs, tf.fill([B], T))
    assert_all_close(state.hidden, theirs(inputs), 1e-6)


def test_the_forget_gate_starts_open():
    layer = LSTM(D)
    layer.build([B, T, F])
    assert layer.bias.numpy().tolist() == [0] * D + [1] * D + [0] * 2 * D
    square = layer.recurrent_kernel.numpy() @ layer.recurrent_kernel.numpy().T
    np.testing.assert_allclose(square, np.eye(D), atol=1e-6)


def test_a_layer_without_a_state_starts_from_zeros():
    inputs, lengths = inputs_and_lengths()
    layer = LSTM(D)
    assert_all_close(layer(inputs, lengths), layer(inputs, lengths, layer.zero_state(B)), 0)


def test_reverse_layer_reads_from_the_last_real_step():
    inputs, lengths = inputs_and_lengths()
    layer = LSTM(D, reverse=True)
    outputs, state = layer(inputs, lengths)
    expected = lstm(inputs, lengths, *layer.weights, layer.zero_state(B), reverse=True)
    assert_all_close((outputs, state), expected)
    assert_all_close(outputs[0, 0], state.hidden[0])


@pytest.mark.parametrize("make", [lambda: LSTM(D), lambda: StackedLSTM(D, 3)])
def test_repeated_steps_equal_the_whole(make):
    inputs, _ = inputs_and_lengths()
    layer = make()
    state, outputs = layer.zero_state(B), []
    if isinstance(layer, LSTM):  # A step builds a layer that has not been called.
        assert not layer.built
    else:
        layer.build(inputs.shape)
    for t in range(T):
        output, state = layer.step(inputs[:, t], state)
        outputs.append(output)
    assert_all_close(layer(inputs, tf.fill([B], T)), (tf.stack(outputs, axis=1), state))


def test_bidirectional_is_both_directions_side_by_side():
    inputs, lengths = inputs_and_lengths()
    layer = BidirectionalLSTM(D)
    outputs, states = layer(inputs, lengths)
    forward, forward_state = layer.forward(inputs, lengths)
    backward, backward_state = layer.backward(inputs, lengths)
    assert_all_close(outputs, tf.concat([forward, backward], axis=-1), 0)
    assert_all_close(states, (forward_state, backward_state), 0)
    assert layer.backward.reverse
    assert_all_close(layer(inputs, lengths, layer.zero_state(B)), (outputs, states), 0)
    _, again = layer(inputs, lengths, states)
    expected = layer.forward(inputs, lengths, states[0]), layer.backward(inputs, lengths, states[1])
    assert_all_close(again, [state for _, state in expected], 0)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_stacked_layers_read_one_another(bidirectional):
    inputs, lengths = inputs_and_lengths()
    layer = StackedLSTM(D, 2, bidirectional=bidirectional, dropout=0.5)
    outputs, states = layer(inputs, lengths)
    first, first_state = layer.layers[0](inputs, lengths)
    second, second_state = layer.layers[1](first, lengths)
    assert_all_close((outputs, states), (second, (first_state, second_state)), 0)
    assert outputs.shape[-1] == layer.output_width == D * (1 + bidirectional)
    assert_all_close(layer(inputs, lengths, layer.zero_state(B)), (outputs, states), 0)


@pytest.mark.parametrize("bidirectional", [False, True])
def test_every_stacked_layer_starts_from_its_own_state(bidirectional):
    inputs, lengths = inputs_and_lengths()
    layer = StackedLSTM(D, 2, bidirectional=bidirectional)
    _, states = layer(inputs, lengths)
    first, first_state = layer.layers[0](inputs, lengths, states[0])
    second, second_state = layer.layers[1](first, lengths, states[1])
    assert_all_close(layer(inputs, lengths, states), (second, (first_state, second_state)), 0)


@pytest.mark.parametrize("mode", MODES)
def test_dropout_between_layers_depends_on_the_seed_alone(mode):
    inputs, lengths = inputs_and_lengths()
    layer = StackedLSTM(D, 3, dropout=0.4)
    layer.build(inputs.shape)
    function = MODES[mode](lambda seed: layer(inputs, lengths, dropout_seed=seed)[0])
    seed = tf.constant([8, 9])
    expected = layer(inputs, lengths, dropout_seed=seed)[0]
    assert_all_close([function(seed), function(seed)], [expected, expected], 1e-6)
    assert np.any(function(seed) != function(seed + 1))
    assert np.any(function(seed) != layer(inputs, lengths)[0])


def test_layers_drop_different_elements():
    layer = StackedLSTM(D, 3, dropout=0.5)
    layer.build([B, T, F])
    seen = []
    for inner in layer.layers:
        inner.call = lambda inputs, *_: (seen.append(inputs), (tf.ones([B, T, D]), ()))[1]
    layer(tf.ones([B, T, F]), tf.fill([B], T), dropout_seed=tf.constant([2, 1]))
    assert np.any(seen[1] != seen[2])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16", "float64"])
def test_layers_compute_in_the_dtype_of_their_policy(policy):
    inputs, lengths = inputs_and_lengths()
    layer = StackedLSTM(D, 2, bidirectional=True, dtype=policy)
    with tf.GradientTape() as tape:
        outputs, states = layer(inputs, lengths)
        total = tf.reduce_sum(tf.cast(outputs, tf.float32))
    compute, variable = layer.compute_dtype, layer.variable_dtype
    assert {x.dtype.name for x in tf.nest.flatten((outputs, states))} == {compute}
    gradients = tape.gradient(total, [v.value for v in layer.trainable_variables])
    assert {gradient.dtype.name for gradient in gradients} == {variable}


def test_step_computes_in_the_dtype_of_the_policy():
    layer = LSTM(D, dtype="mixed_bfloat16")
    outputs, state = layer.step(tf.ones([B, F]), layer.zero_state(B))
    assert {x.dtype for x in (outputs, *state)} == {tf.bfloat16}


def test_a_saved_layer_answers_as_before_and_can_be_trained(tmp_path):
    inputs, lengths = inputs_and_lengths()

    class Module(tf.Module):
        def __init__(self):
            super().__init__()
            self.layer = StackedLSTM(D, 2, bidirectional=True)
            self.layer.build([None, None, F])

        @tf.function(
            input_signature=[
                tf.TensorSpec([None, None, F], tf.float32),
                tf.TensorSpec([None], tf.int32),
            ]
        )
        def outputs(self, inputs, lengths):
            return self.layer(inputs, lengths)[0]

    def outputs_and_gradient(module):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = module.outputs(inputs, lengths)
        return outputs, tape.gradient(outputs, inputs)

    module = Module()
    tf.saved_model.save(module, str(tmp_path))
    loaded = tf.saved_model.load(str(tmp_path))
    assert_all_close(outputs_and_gradient(loaded), outputs_and_gradient(module))


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`units` must be positive\. Received: units=0"):
        LSTM(0)
    with pytest.raises(ValueError, match=r"`layers` must be positive\. Received: layers=0"):
        StackedLSTM(D, 0)
    with pytest.raises(ValueError, match=r"`dropout` must be in \[0, 1\). Received: dropout=1"):
        StackedLSTM(D, 2, dropout=1)
    with pytest.raises(ValueError, match="no `step`"):
        StackedLSTM(D, 2, bidirectional=True).step(tf.ones([B, F]), None)
