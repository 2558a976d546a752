import itertools
import re
from typing import NamedTuple

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_models.layers import cells
from keras_models.layers.dropout import dropout, fold_in
from keras_models.layers.recurrent import (
    GRU,
    LSTM,
    RNN,
    Bidirectional,
    BidirectionalLSTM,
    HiddenState,
    LSTMState,
    Stacked,
    StackedLSTM,
)
from keras_models.layers.scan import scan

B, T, F, D = 4, 6, 3, 5
LENGTHS = [6, 2, 0, 5]
MODES = {
    "eager": lambda function: function,
    "graph": tf.function,
    "xla": lambda function: tf.function(function, jit_compile=True),
}


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def lstm_step(x, state, kernel, peepholes=(0, 0, 0)):
    hidden, cell = state
    i, f, g, o = np.split(x + hidden @ kernel, 4)
    before, cell = cell, sigmoid(f + peepholes[1] * cell) * cell
    cell = cell + sigmoid(i + peepholes[0] * before) * np.tanh(g)
    return sigmoid(o + peepholes[2] * cell) * np.tanh(cell), cell


def gru_step(x, state, kernel, bias):
    [hidden] = state
    x_z, x_r, x_g = np.split(x, 3)
    y_z, y_r, y_g = np.split(hidden @ kernel + bias, 3)
    z, r = sigmoid(x_z + y_z), sigmoid(x_r + y_r)
    return (z * hidden + (1 - z) * np.tanh(x_g + r * y_g),)


def reset_before_step(x, state, kernel):
    [hidden] = state
    x_z, x_r, x_g = np.split(x, 3)
    of_z, of_r, of_g = np.split(kernel, 3, axis=1)
    z, r = sigmoid(x_z + hidden @ of_z), sigmoid(x_r + hidden @ of_r)
    return (z * hidden + (1 - z) * np.tanh(x_g + (r * hidden) @ of_g),)


def plain_step(curve):
    return lambda x, state, kernel: (curve(x + state[0] @ kernel),)


class Kind(NamedTuple):
    """A cell, the number of its gates, its weights beside the kernel, its state, its definition."""

    cell: type
    gates: int
    vectors: list
    state: type
    step: object


KINDS = {
    "lstm": Kind(cells.LSTMCell, 4, [], LSTMState, lstm_step),
    "peephole lstm": Kind(cells.PeepholeLSTMCell, 4, [(3, D)], LSTMState, lstm_step),
    "gru": Kind(cells.GRUCell, 3, [(3 * D,)], HiddenState, gru_step),
    "reset before gru": Kind(cells.ResetBeforeGRUCell, 3, [], HiddenState, reset_before_step),
    "tanh": Kind(cells.TanhCell, 1, [], HiddenState, plain_step(np.tanh)),
    "relu": Kind(cells.ReLUCell, 1, [], HiddenState, plain_step(lambda z: np.maximum(z, 0))),
    "sigmoid": Kind(cells.SigmoidCell, 1, [], HiddenState, plain_step(sigmoid)),
}
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=KINDS)
both_ways = pytest.mark.parametrize("reverse", [False, True])


def arguments(kind, seed=0, dtype=np.float64, batch=B, steps=T):
    """Inputs, kernel, bias, the cell's weights and each part of the state, all of them random."""
    width = kind.gates * D
    weights = [(D, width), *kind.vectors]
    states = [(batch, D)] * len(kind.state._fields)
    random = np.random.default_rng(seed)
    shapes = [(batch, steps, F), (F, width), (width,), *weights, *states]
    return [tf.constant(random.normal(size=shape), dtype) for shape in shapes]


def run(kind, inputs, lengths, kernel, bias, *rest, **options):
    """Outputs and each part of the last state, as one flat tuple."""
    count = 1 + len(kind.vectors)
    weights, state = rest[:count], kind.state(*rest[count:])
    outputs, state = scan(kind.cell, inputs, lengths, kernel, bias, weights, state, **options)
    return outputs, *state


def defined(kind, inputs, lengths, kernel, bias, *rest, reverse=False):
    """The same by the definition, one example and one step at a time, in float64."""
    count = 1 + len(kind.vectors)
    weights, states = rest[:count], [x.copy() for x in rest[count:]]
    outputs = np.zeros([len(inputs), inputs.shape[1], D])
    for b, length in enumerate(lengths):
        for t in reversed(range(length)) if reverse else range(length):
            after = kind.step(inputs[b, t] @ kernel + bias, [x[b] for x in states], *weights)
            for state, value in zip(states, after, strict=True):
                state[b] = value
            outputs[b, t] = after[0]
    return outputs, *states


def loss(*tensors):
    """A scalar in which every element of every tensor has a weight of its own."""

    def total(x):
        weights = tf.cos(tf.range(tf.size(x), dtype=x.dtype))
        return tf.reduce_sum(tf.sin(x) * tf.reshape(weights, tf.shape(x)))

    return tf.add_n([total(tf.convert_to_tensor(x)) for x in tensors])


def values_and_gradients(kind, tensors, lengths=LENGTHS, **options):
    inputs, *rest = tensors
    with tf.GradientTape() as tape:
        tape.watch(tensors)
        values = run(kind, inputs, tf.constant(lengths), *rest, **options)
        total = loss(*values)
    return [*values, *tape.gradient(total, tensors)]


def assert_all_close(actual, expected, tolerance=1e-6):
    for a, e in zip(tf.nest.flatten(actual), tf.nest.flatten(expected), strict=True):
        np.testing.assert_allclose(a, e, rtol=tolerance, atol=tolerance)


@every_kind
@both_ways
def test_values_are_those_of_the_definition(kind, reverse):
    inputs, *rest = arguments(kind)
    expected = defined(kind, inputs.numpy(), LENGTHS, *(x.numpy() for x in rest), reverse=reverse)
    assert_all_close(run(kind, inputs, LENGTHS, *rest, reverse=reverse), expected, 1e-12)


@every_kind
@both_ways
@pytest.mark.parametrize("dropped", [False, True])
def test_gradients_are_the_finite_differences(kind, reverse, dropped):
    tensors = arguments(kind, 1)
    random = np.random.default_rng(2)
    kept = random.integers(0, 2, size=(B, D)) * 2.0 if dropped else None
    gradients = values_and_gradients(kind, tensors, reverse=reverse, kept=kept)[-len(tensors) :]

    def total(tensors):
        values = run(kind, tensors[0], LENGTHS, *tensors[1:], reverse=reverse, kept=kept)
        return float(loss(*values))

    for n, gradient in enumerate(gradients):
        direction = random.normal(size=gradient.shape)
        above, below = (
            total([x + h * direction if k == n else x for k, x in enumerate(tensors)])
            for h in (1e-6, -1e-6)
        )
        expected = np.sum(gradient * direction)
        assert (above - below) / 2e-6 == pytest.approx(expected, rel=1e-5, abs=1e-7)


@every_kind
def test_eager_graph_and_xla_agree(kind):
    tensors = arguments(kind, 4, np.float32)
    reverse = kind.cell is not cells.LSTMCell
    expected = values_and_gradients(kind, tensors, reverse=reverse)
    for mode in ("graph", "xla"):
        function = MODES[mode](lambda *x: values_and_gradients(kind, list(x), reverse=reverse))
        assert_all_close(function(*tensors), expected, 2e-5)


@every_kind
@both_ways
def test_no_step_copies_a_whole_sequence(kind, reverse):
    @tf.function(autograph=False, jit_compile=True)
    def compute(*tensors):
        return values_and_gradients(kind, list(tensors), lengths=[7] * B, reverse=reverse)

    tensors = arguments(kind, dtype=np.float32, steps=7)
    compiled = compute.experimental_get_compiler_ir(*tensors)(stage="optimized_hlo")
    bodies = set(re.findall(r" while\(.*body=(%[\w.-]+)", compiled))
    of_steps = [x for x in re.split(r"\n(?=%|ENTRY)", compiled) if x.split(" ")[0] in bodies]
    assert len(of_steps) == 2
    assert not re.search(rf"%[\w.]*copy[\w.]* = f32\[7,{B},", "".join(of_steps))


@pytest.mark.parametrize("mode", ["graph", "xla"])
@pytest.mark.parametrize("name", ["lstm", "gru"])
def test_one_graph_takes_any_batch_and_any_number_of_steps(mode, name):
    kind = KINDS[name]

    def function(inputs, lengths, *rest):
        weights = rest[: -len(kind.state._fields)]
        with tf.GradientTape() as tape:
            tape.watch(weights)
            values = run(kind, inputs, lengths, *rest)
            total = tf.add_n([tf.reduce_sum(value**2) for value in values])
        return *values, *tape.gradient(total, weights)

    inputs, *rest = arguments(kind)
    weights = [tf.TensorSpec(x.shape, tf.float64) for x in rest[: -len(kind.state._fields)]]
    states = [tf.TensorSpec([None, D], tf.float64)] * len(kind.state._fields)
    of_inputs = [tf.TensorSpec([None, None, F], tf.float64), tf.TensorSpec([None], tf.int32)]
    signature = [*of_inputs, *weights, *states]
    compiled = tf.function(function, input_signature=signature, jit_compile=mode == "xla")
    for batch, steps in [(2, 3), (4, 7), (1, 1), (3, 0)]:
        inputs, *rest = arguments(kind, 5, batch=batch, steps=steps)
        lengths = tf.range(batch) % (steps + 1)
        expected = function(inputs, lengths, *rest)
        assert_all_close(compiled(inputs, lengths, *rest), expected, 1e-9)


@pytest.mark.parametrize("kind", [KINDS["lstm"], KINDS["gru"]], ids=["lstm", "gru"])
@pytest.mark.parametrize("mode", MODES)
def test_no_steps_give_the_initial_state_and_gradients_of_zero(kind, mode):
    tensors = arguments(kind, 6, steps=0)
    states = len(kind.state._fields)
    function = MODES[mode](lambda *x: values_and_gradients(kind, list(x), [0] * B))
    values = function(*tensors)
    outputs, last, gradients = values[0], values[1 : 1 + states], values[1 + states :]
    assert outputs.shape == (B, 0, D)
    assert_all_close(last, tensors[-states:])
    assert not any(np.any(gradient) for gradient in gradients[:-states])
    assert all(np.all(gradient) for gradient in gradients[-states:])


@both_ways
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", ["lstm", "gru", "relu"])
def test_padding_changes_nothing(mode, reverse, name):
    kind = KINDS[name]
    tensors = arguments(kind, 7)
    padding = np.arange(T) >= np.array(LENGTHS)[:, None]
    filling = tf.constant([1e4, np.inf, np.nan], tf.float64)
    filled = [tf.where(padding[:, :, None], filling, tensors[0]), *tensors[1:]]
    function = MODES[mode](lambda *x: values_and_gradients(kind, list(x), reverse=reverse))
    expected, actual = function(*tensors), function(*filled)
    assert_all_close(actual, expected, 0)
    outputs, d_inputs = actual[0], actual[-len(tensors)]
    assert not np.any(outputs[padding])
    assert not np.any(d_inputs[padding])


@every_kind
def test_more_padding_changes_nothing(kind):
    inputs, *rest = arguments(kind, 8)
    outputs, *values = values_and_gradients(kind, [inputs, *rest])
    longer = tf.pad(inputs, [[0, 0], [0, 3], [0, 0]], constant_values=7.0)
    with tf.GradientTape() as tape:
        tape.watch(rest)
        long_outputs, *state = run(kind, longer, LENGTHS, *rest)
        total = loss(long_outputs[:, :T], *state)
    assert_all_close([long_outputs[:, :T], *state], [outputs, *values[: len(state)]])
    assert_all_close(tape.gradient(total, rest), values[-len(rest) :])


@every_kind
@both_ways
def test_an_example_alone_has_the_values_it_has_in_a_batch(kind, reverse):
    inputs, *rest = arguments(kind, 9)
    states = len(kind.state._fields)
    weights, state = rest[:-states], rest[-states:]
    batch = run(kind, inputs, LENGTHS, *rest, reverse=reverse)
    for b, length in enumerate(LENGTHS):
        first, *own = (x[b : b + 1] for x in (inputs[:, :length], *state))
        alone = run(kind, first, [length], *weights, *own, reverse=reverse)
        outputs, *last = (x[b : b + 1] for x in batch)
        assert_all_close(alone, [outputs[:, :length], *last], 1e-12)


@every_kind
def test_an_example_of_length_0_keeps_its_state_and_passes_its_gradient_on(kind):
    inputs, *rest = arguments(kind, 10)
    states = len(kind.state._fields)
    empty = LENGTHS.index(0)
    with tf.GradientTape() as tape:
        tape.watch([inputs, *rest])
        _, *last = run(kind, inputs, LENGTHS, *rest)
        total = tf.add_n([tf.reduce_sum((3 + n) * x[empty]) for n, x in enumerate(last)])
    gradients = tape.gradient(total, [inputs, *rest])
    assert_all_close([x[empty] for x in last], [x[empty] for x in rest[-states:]], 0)
    assert not any(np.any(gradient) for gradient in gradients[:-states])
    expected = [np.full(D, 3.0 + n) for n in range(states)]
    assert_all_close([g[empty] for g in gradients[-states:]], expected, 0)


@every_kind
def test_reverse_is_forward_on_the_flipped_real_part(kind):
    inputs, *rest = arguments(kind, 11)
    flipped = tf.reverse_sequence(inputs, LENGTHS, seq_axis=1)
    outputs, *state = run(kind, flipped, LENGTHS, *rest)
    expected = [tf.reverse_sequence(outputs, LENGTHS, seq_axis=1), *state]
    assert_all_close(run(kind, inputs, LENGTHS, *rest, reverse=True), expected, 1e-12)


@every_kind
def test_chunks_with_carried_state_equal_the_whole(kind):
    inputs, *rest = arguments(kind, 12)
    states = len(kind.state._fields)
    lengths, weights, state = np.array(LENGTHS), rest[:-states], rest[-states:]
    whole = run(kind, inputs, LENGTHS, *rest)
    outputs = []
    for start, end in itertools.pairwise([0, 1, 4, T]):
        left = np.clip(lengths - start, 0, end - start)
        chunk, *state = run(kind, inputs[:, start:end], left, *weights, *state)
        outputs.append(chunk)
    assert_all_close([tf.concat(outputs, axis=1), *state], whole, 1e-12)


@every_kind
@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16, tf.float32])
def test_everything_has_the_dtype_of_the_arguments(kind, dtype):
    exact = arguments(kind, 13)
    outputs, *rest = values_and_gradients(kind, [tf.cast(x, dtype) for x in exact])
    assert {x.dtype for x in (outputs, *rest)} == {dtype}
    # A curve without bounds grows, and its rounding with it.
    expected = run(kind, exact[0], LENGTHS, *exact[1:])[0]
    np.testing.assert_allclose(tf.cast(outputs, tf.float64), expected, rtol=0.1, atol=0.1)


@every_kind
@pytest.mark.parametrize("dtype", [tf.bfloat16, tf.float16])
def test_gradients_of_float32_weights_are_summed_in_float32(kind, dtype):
    inputs, kernel, bias, *rest = arguments(kind, 14, np.float32, steps=3)
    # Of so many equal terms the sum is rounded otherwise than each, and too large for float16.
    examples_in_all = 4000
    inputs = tf.cast(tf.tile(inputs[:1, :1], [examples_in_all, 1, 1]), dtype)
    count = 1 + len(kind.vectors)
    weights, states = rest[:count], [tf.zeros([examples_in_all, D], dtype) for _ in rest[count:]]
    variables = [kernel, bias, *weights]

    def gradients(examples):
        chosen = [inputs[:examples], [1] * examples, *variables, *(x[:examples] for x in states)]
        with tf.GradientTape() as tape:
            tape.watch(variables)
            outputs = run(kind, *chosen)[0]
            total = tf.reduce_sum(tf.cast(outputs, tf.float32))
        return tape.gradient(total, variables)

    one, all_of_them = gradients(1), gradients(examples_in_all)
    assert {gradient.dtype for gradient in one} == {tf.float32}
    assert_all_close([g / examples_in_all for g in all_of_them], one, 1e-4)


@pytest.mark.parametrize("by", ["inputs", "gradient"])
@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_second_derivative_is_refused(by, mode):
    kind = KINDS["gru"]
    inputs, *rest = arguments(kind, 15)

    def second(inputs):
        with tf.GradientTape() as outer:
            outer.watch(inputs)
            with tf.GradientTape() as inner:
                inner.watch(inputs)
                outputs = run(kind, inputs, LENGTHS, *rest)[0]
                total = tf.reduce_sum(outputs if by == "inputs" else outputs**2)
            first = inner.gradient(total, inputs)
        return outer.gradient(first, inputs)

    with pytest.raises(NotImplementedError, match="must be differentiated once at most"):
        MODES[mode](second)(inputs)


# A layer of ours, and Keras's with the same weights.
LAYERS = {
    "lstm": (lambda **o: LSTM(D, **o), lambda **o: keras.layers.LSTM(D, **o)),
    "gru": (lambda **o: GRU(D, **o), lambda **o: keras.layers.GRU(D, **o)),
    "reset before gru": (
        lambda **o: GRU(D, reset_after=False, **o),
        lambda **o: keras.layers.GRU(D, reset_after=False, **o),
    ),
    **{
        name: (
            lambda name=name, **o: RNN(D, activation=name, **o),
            lambda name=name, **o: keras.layers.SimpleRNN(D, activation=name, **o),
        )
        for name in ("tanh", "relu", "sigmoid")
    },
}
every_layer = pytest.mark.parametrize("layers", LAYERS.values(), ids=LAYERS)


@every_layer
@both_ways
@pytest.mark.parametrize("lengths", [[T] * B, [6, 2, 1, 5]])
def test_values_and_gradients_are_those_of_keras(layers, lengths, reverse):
    ours, theirs = layers[0](reverse=reverse), layers[1](return_sequences=True, return_state=True)
    random = np.random.default_rng(3)
    inputs = tf.constant(random.normal(size=(B, T, F)), tf.float32)
    ours.build(inputs.shape)
    theirs.build(inputs.shape)
    ours.set_weights([random.normal(size=w.shape) for w in ours.weights])
    theirs.set_weights(ours.get_weights())
    state = [tf.constant(random.normal(size=(B, D)), tf.float32) for _ in ours.state._fields]
    mask = tf.sequence_mask(lengths, T)

    def flip(sequence):
        return tf.reverse_sequence(sequence, lengths, seq_axis=1) if reverse else sequence

    def by_keras():
        outputs, *last = theirs(flip(inputs), mask=mask, initial_state=state)
        return [tf.where(mask[:, :, None], flip(outputs), 0), *last]

    def by_ours():
        outputs, last = ours(inputs, tf.constant(lengths), state)
        return [outputs, *last]

    def values_and_gradients(values_of, layer):
        weights = [variable.value for variable in layer.trainable_variables]
        with tf.GradientTape() as tape:
            tape.watch([inputs, *state])
            values = values_of()
            total = loss(*values)
        return [*values, *tape.gradient(total, [inputs, *weights, *state])]

    expected = values_and_gradients(by_keras, theirs)
    assert_all_close(values_and_gradients(by_ours, ours), expected, 1e-5)


def inputs_and_lengths(dtype=np.float32):
    random = np.random.default_rng(14)
    return tf.constant(random.normal(size=(B, T, F)), dtype), tf.constant(LENGTHS)


@every_layer
def test_weights_load_from_and_into_those_of_keras(layers):
    inputs, lengths = inputs_and_lengths()
    ours, theirs = (layer() for layer in layers)
    ours(inputs, lengths)
    theirs.build(inputs.shape)
    initial = ours.get_weights()
    ours.set_weights(theirs.get_weights())
    _, state = ours(inputs, tf.fill([B], T))
    assert_all_close(state.hidden, theirs(inputs), 1e-6)
    theirs.set_weights(initial)
    ours.set_weights(initial)
    _, state = ours(inputs, tf.fill([B], T))
    assert_all_close(state.hidden, theirs(inputs), 1e-6)


@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_weights_of_both_directions_load_from_keras(kind):
    inputs, _ = inputs_and_lengths()
    ours = Bidirectional({"lstm": LSTM, "gru": GRU}[kind], D)
    theirs = keras.layers.Bidirectional(LAYERS[kind][1](return_sequences=True))
    theirs.build(inputs.shape)
    ours.build(inputs.shape)
    ours.set_weights(theirs.get_weights())
    full = tf.fill([B], T)
    assert_all_close(ours(inputs, full)[0], theirs(inputs), 1e-6)


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
    forward = LSTM(D)
    forward.build(inputs.shape)
    forward.set_weights(layer.get_weights())
    flipped, expected = forward(tf.reverse_sequence(inputs, LENGTHS, seq_axis=1), lengths)
    assert_all_close(state, expected)
    assert_all_close(outputs, tf.reverse_sequence(flipped, LENGTHS, seq_axis=1))
    assert_all_close(outputs[0, 0], state.hidden[0])


STEPPING = {
    "lstm": lambda: LSTM(D),
    "peephole lstm": lambda: LSTM(D, peepholes=True),
    "gru": lambda: GRU(D, bias_initializer="glorot_uniform"),
    "reset before gru": lambda: GRU(D, reset_after=False),
    "rnn": lambda: RNN(D),
    "stacked": lambda: StackedLSTM(D, 3),
    "residual": lambda: Stacked(GRU, D, 3, residual=True),
}


@pytest.mark.parametrize("make", STEPPING.values(), ids=STEPPING)
def test_repeated_steps_equal_the_whole(make):
    inputs, _ = inputs_and_lengths()
    layer = make()
    state, outputs = layer.zero_state(B), []
    if isinstance(layer, Stacked):
        layer.build(inputs.shape)
    else:  # A step builds a layer that has not been called.
        assert not layer.built
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


def test_residual_layers_add_what_was_not_dropped():
    inputs, lengths = inputs_and_lengths()
    layer = Stacked(GRU, D, 2, residual=True, dropout=0.5)
    layer.build(inputs.shape)
    seed = tf.constant([4, 2])
    first, _ = layer.layers[0](inputs, lengths)
    second, _ = layer.layers[1](dropout(first, 0.5, fold_in(seed, 1)), lengths)
    assert_all_close(layer(inputs, lengths, dropout_seed=seed)[0], first + second, 0)


@pytest.mark.parametrize("name", ["lstm", "gru", "reset before gru", "tanh"])
def test_dropout_is_one_mask_an_example_where_keras_has_it(name):
    inputs, _ = inputs_and_lengths()
    ours = LAYERS[name][0](dropout=0.4, recurrent_dropout=0.5)
    theirs = LAYERS[name][1]().cell
    ours.build(inputs.shape)
    theirs.build(inputs[:, 0].shape)
    theirs.set_weights(ours.get_weights())
    seed = tf.constant([5, 6])
    outputs, _ = ours(inputs, tf.fill([B], T), dropout_seed=seed)
    of_inputs = dropout(tf.ones([B, 1, F]), 0.4, fold_in(seed, 0))
    kept = dropout(tf.ones([B, D]), 0.5, fold_in(seed, 1))
    theirs.recurrent_dropout, theirs.implementation = 0.5, 1
    gates = 1 if name == "tanh" else ours.gates
    theirs._recurrent_dropout_mask = kept if gates == 1 else [kept] * gates
    state = [tf.zeros([B, D])] * len(ours.state._fields)
    for t in range(T):
        output, state = theirs((inputs * of_inputs)[:, t], state, training=True)
        assert_all_close(outputs[:, t], output, 1e-6)
    assert np.any(of_inputs == 0)
    assert np.any(kept == 0)


@pytest.mark.parametrize("mode", MODES)
def test_masks_depend_on_the_seed_alone(mode):
    inputs, lengths = inputs_and_lengths()
    options = {"bidirectional": True, "recurrent_dropout": 0.4}
    layer = StackedLSTM(D, 2, **options)
    layer.build(inputs.shape)
    function = MODES[mode](lambda seed: layer(inputs, lengths, dropout_seed=seed)[0])
    seed = tf.constant([8, 9])
    expected = layer(inputs, lengths, dropout_seed=seed)[0]
    assert_all_close([function(seed), function(seed)], [expected, expected], 1e-6)
    assert np.any(function(seed) != function(seed + 1))
    assert np.any(function(seed) != layer(inputs, lengths)[0])


def test_every_direction_and_layer_has_masks_of_its_own(monkeypatch):
    inputs, lengths = inputs_and_lengths()
    layer = StackedLSTM(D, 2, bidirectional=True, recurrent_dropout=0.5)
    layer.build(inputs.shape)
    masks = []

    def watched(*arguments):
        masks.append(arguments[-1].numpy())
        return scan(*arguments)

    monkeypatch.setattr("keras_models.layers.recurrent.scan", watched)
    layer(inputs, lengths, dropout_seed=tf.constant([1, 2]))
    assert len({mask.tobytes() for mask in masks}) == len(masks) == 4


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
    with pytest.raises(ValueError, match=r"`recurrent_dropout` must be in \[0, 1\)\."):
        GRU(D, recurrent_dropout=-0.1)
    with pytest.raises(ValueError, match=r"`activation` must be one of \['tanh', 'relu'"):
        RNN(D, activation="softmax")
    with pytest.raises(ValueError, match="no `step`"):
        StackedLSTM(D, 2, bidirectional=True).step(tf.ones([B, F]), None)
