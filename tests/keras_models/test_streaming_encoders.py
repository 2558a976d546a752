import numpy as np
import pytest
import tensorflow as tf

from keras_models.layers.recurrent import StackedLSTM
from keras_models.layers.streaming import CausalLSTM, ChunkedLSTM

B, T, F, D = 4, 11, 3, 5
# A full example, short ones whose last chunk is not whole, one without anything.
LENGTHS = np.array([11, 6, 4, 0], np.int32)
SIZES = [(1, 0), (1, 3), (3, 0), (3, 2), (2, 5), (4, 4)]


@pytest.fixture(scope="module")
def inputs():
    return np.random.default_rng(0).normal(size=(B, T, F)).astype(np.float32)


def chunked(chunk, lookahead, **arguments):
    layer = ChunkedLSTM(D, 2, chunk, lookahead, **arguments)
    return _random(layer)


def _random(layer):
    layer.build((None, None, F))
    random = np.random.default_rng(1)
    for variable in layer.variables:
        variable.assign(random.normal(size=variable.shape))
    return layer


def _read(layer, steps):
    """Returns the outputs of an LSTM for one example alone, `[T, D]`."""
    return layer(steps[None], np.array([len(steps)]))[0][0].numpy()


def by_definition(layer, steps):
    """Returns the outputs for one example, chunk by chunk: each backward pass is its own."""
    lookahead = layer.lookahead
    for each in layer.layers:
        backward = [
            _read(each.backward, steps[start : start + layer.chunk + lookahead])[: layer.chunk]
            for start in range(0, len(steps), layer.chunk)
        ]
        steps = np.concatenate([_read(each.forward, steps), np.concatenate(backward)], axis=1)
        lookahead = 0
    return steps


def streamed(layer, inputs, lengths, pieces):
    """Returns each example's outputs when it comes in pieces of these lengths, `[pieces, B]`."""
    state, position = layer.zero_state(len(inputs)), np.zeros(len(inputs), int)
    found = [[] for _ in inputs]
    for n, sizes in enumerate(pieces):
        piece = np.full((len(inputs), max(1, *sizes), F), np.nan, np.float32)
        for b, size in enumerate(sizes):
            piece[b, :size] = inputs[b, position[b] : position[b] + size]
        final = n == len(pieces) - 1
        outputs, counts, state = layer.stream(piece, np.array(sizes, np.int32), state, final)
        position += sizes
        for b, count in enumerate(counts):
            found[b].append(outputs[b, :count])
    assert (position == lengths).all()
    return [np.concatenate(parts) for parts in found]


def pieces_of(size):
    """Returns how each example is cut into pieces of `size` steps, and a last empty one."""
    starts = np.arange(0, T + size, size)[:, None]
    return np.clip(LENGTHS - starts, 0, size)


@pytest.mark.parametrize(("chunk", "lookahead"), SIZES)
def test_outputs_are_those_of_the_definition(inputs, chunk, lookahead):
    layer = chunked(chunk, lookahead)
    outputs, _ = layer(inputs, LENGTHS)
    assert outputs.shape == (B, T, layer.output_width) == (B, T, 2 * D)
    for b, length in enumerate(LENGTHS):
        if length:
            expected = by_definition(layer, inputs[b, :length])
            np.testing.assert_allclose(outputs[b, :length], expected, rtol=1e-5, atol=1e-6)
        assert not np.any(outputs[b, length:])


@pytest.mark.parametrize(("chunk", "lookahead"), SIZES)
def test_an_output_depends_on_what_is_ahead_up_to_the_lookahead(inputs, chunk, lookahead):
    layer, full = chunked(chunk, lookahead), np.full(B, T)
    outputs = layer(inputs, full)[0].numpy()
    for changed in range(T):
        other = inputs.copy()
        other[:, changed] += 1.0
        differs = np.any(layer(other, full)[0].numpy() != outputs, axis=(0, 2))
        ends = np.arange(T) // chunk * chunk + chunk + lookahead  # of what each step may read
        assert not differs[ends <= changed].any()
        assert differs[ends > changed].all()


def test_a_chunk_as_long_as_the_sequence_makes_a_bidirectional_layer(inputs):
    layer, other = chunked(T, 2), StackedLSTM(D, 2, bidirectional=True)
    other.build((None, None, F))
    other.set_weights(layer.get_weights())
    outputs = layer(inputs, LENGTHS)[0]
    np.testing.assert_allclose(outputs, other(inputs, LENGTHS)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("size", [1, 2, 3, 7, T])
@pytest.mark.parametrize("sizes", [*SIZES, None])
def test_pieces_of_any_size_equal_the_whole(inputs, sizes, size):
    layer = chunked(*sizes) if sizes else _random(CausalLSTM(D, 2))
    whole = layer(inputs, LENGTHS)[0].numpy()
    for b, parts in enumerate(streamed(layer, inputs, LENGTHS, pieces_of(size))):
        np.testing.assert_allclose(parts, whole[b, : LENGTHS[b]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("sizes", [(3, 2), (2, 5), None])
def test_sequences_may_be_cut_each_in_its_own_way(inputs, sizes):
    layer = chunked(*sizes) if sizes else _random(CausalLSTM(D, 2))
    whole = layer(inputs, LENGTHS)[0].numpy()
    random = np.random.default_rng(2)
    cuts = np.sort(random.integers(0, LENGTHS + 1, (5, B)), axis=0)
    pieces = np.diff(cuts, axis=0, prepend=0, append=LENGTHS[None])
    for b, parts in enumerate(streamed(layer, inputs, LENGTHS, pieces)):
        np.testing.assert_allclose(parts, whole[b, : LENGTHS[b]], rtol=1e-5, atol=1e-6)


def test_an_output_comes_as_soon_as_what_it_reads_is_there(inputs):
    layer = chunked(3, 2)
    state, counts = layer.zero_state(B), []
    for t in range(T):
        _, count, state = layer.stream(inputs[:, t : t + 1], np.ones(B, np.int32), state)
        assert len(set(count.numpy())) == 1
        counts.append(int(count[0]))
    assert counts == [0, 0, 0, 0, 3, 0, 0, 3, 0, 0, 3]


@pytest.mark.parametrize("filling", [1e4, np.nan])
def test_padding_changes_neither_values_nor_gradients(inputs, filling):
    layer = chunked(3, 2)
    padding = np.arange(T) >= LENGTHS[:, None]
    filled = np.where(padding[:, :, None], np.float32(filling), inputs)
    longer = np.pad(filled, [(0, 0), (0, 4), (0, 0)])
    expected = _values_and_gradients(layer, inputs)
    for other in (filled, longer):
        for value, right in zip(_values_and_gradients(layer, other), expected, strict=True):
            np.testing.assert_allclose(value, right, rtol=1e-4, atol=1e-5)


def _values_and_gradients(layer, inputs, seed=None):
    variables = [variable.value for variable in layer.trainable_variables]
    with tf.GradientTape() as tape:
        outputs = layer(inputs, LENGTHS, dropout_seed=seed)[0][:, :T]
        total = tf.reduce_sum(tf.sin(outputs) * tf.range(2.0 * D))
    return [outputs, *tape.gradient(total, variables)]


def test_eager_graph_and_xla_agree(inputs):
    layer, seed = chunked(3, 2, dropout=0.4), tf.constant([3, 4])
    expected = _values_and_gradients(layer, inputs, seed)
    for jit_compile in (False, True):
        compiled = tf.function(
            lambda x: _values_and_gradients(layer, x, seed), jit_compile=jit_compile
        )
        for value, right in zip(compiled(inputs), expected, strict=True):
            np.testing.assert_allclose(value, right, rtol=1e-4, atol=1e-4)


def test_dropout_is_between_layers_and_a_function_of_its_seed(inputs):
    layer, seed = chunked(3, 2, dropout=0.4), tf.constant([3, 4])
    dropped = layer(inputs, LENGTHS, dropout_seed=seed)[0].numpy()
    np.testing.assert_array_equal(layer(inputs, LENGTHS, dropout_seed=seed)[0], dropped)
    for other in (seed + 1, None):
        assert np.any(layer(inputs, LENGTHS, dropout_seed=other)[0] != dropped)
    single = _random(ChunkedLSTM(D, 1, 3, 2, dropout=0.4))
    for other in (seed, None):
        np.testing.assert_array_equal(
            single(inputs, LENGTHS, dropout_seed=other)[0], single(inputs, LENGTHS)[0]
        )


def test_bad_arguments_are_refused():
    for chunk, lookahead in [(0, 1), (1, -1)]:
        with pytest.raises(ValueError, match=rf"Received: chunk={chunk}, lookahead={lookahead}"):
            ChunkedLSTM(D, 1, chunk, lookahead)
