import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_models import BLANK
from keras_models.configs.transducer import TransducerConfig

B, T, U = 4, 6, 3
INPUTS, OUTPUTS, UNITS = 9, 7, 8
# A full example, a short one, one without labels, one without anything.
FRAMES, LABELS = np.array([6, 2, 4, 0], np.int32), np.array([3, 1, 0, 0], np.int32)
SEED = np.array([5, 11], np.int32)


@pytest.fixture(scope="module")
def model():
    """A transducer whose weights, biases too, are random."""
    config = TransducerConfig(
        embedding_units=5,
        encoder_units=4,
        encoder_layers=2,
        predictor_units=3,
        joint_units=UNITS,
        dropout=0.5,
    )
    model = config.build(INPUTS, OUTPUTS)
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.normal(size=variable.shape))
    return model


@pytest.fixture(scope="module")
def batch():
    """Inputs, their lengths, labels, their lengths; there are no zeros where they are padded."""
    random = np.random.default_rng(1)
    inputs = random.integers(1, INPUTS, (B, T), np.int32)
    return inputs, FRAMES, random.integers(1, OUTPUTS, (B, U), np.int32), LABELS


def _assert_same(scores, expected, example):
    """Compares the lattices of one example, as far as they go."""
    t, u = FRAMES[example], LABELS[example] + 1
    np.testing.assert_allclose(scores[:t, :u], expected[:t, :u], rtol=1e-5, atol=1e-5)


def _gradients(model, inputs, frames, labels, label_lengths):
    """Returns the gradients of a function of all scores that are within the lengths."""
    with tf.GradientTape() as tape:
        scores = model(inputs, frames, labels, label_lengths)
        within = (
            tf.sequence_mask(frames, scores.shape[1])[:, :, None, None]
            & tf.sequence_mask(label_lengths + 1, scores.shape[2])[:, None, :, None]
        )
        loss = tf.reduce_sum(tf.where(within, scores, 0.0) ** 2)
    variables = [variable.value for variable in model.trainable_variables]
    return [tf.convert_to_tensor(gradient).numpy() for gradient in tape.gradient(loss, variables)]


def test_there_are_scores_for_every_frame_and_prefix(model, batch):
    scores = model(*batch)
    assert scores.shape == (B, T, U + 1, OUTPUTS)
    assert scores.dtype == tf.float32
    assert np.isfinite(scores).all()
    assert model.encode(batch[0], FRAMES).shape == (B, T, UNITS)


def test_walking_the_lattice_gives_the_scores_of_the_whole(model, batch):
    inputs, frames, labels, _ = batch
    whole = model(inputs, frames, labels, np.full(B, U)).numpy()
    encoding, state = model.encode(inputs, frames), model.start(B)
    for u in range(U + 1):
        for t in range(T):
            scores = model.score(encoding, tf.fill([B], t), state)
            assert scores.shape == (B, OUTPUTS)
            np.testing.assert_allclose(scores, whole[:, t, u], rtol=1e-5, atol=1e-5)
        if u < U:
            state = model.advance(labels[:, u], state)


def test_each_example_may_be_scored_at_a_frame_of_its_own(model, batch):
    inputs, frames, labels, _ = batch
    whole = model(inputs, frames, labels, LABELS).numpy()
    at = np.array([5, 1, 3, 0])
    scores = model.score(model.encode(inputs, frames), at, model.start(B))
    np.testing.assert_allclose(scores, whole[np.arange(B), at, 0], rtol=1e-5, atol=1e-5)


def test_the_empty_prefix_is_a_blank(model):
    start, empty = model.start(2), model.start(2)._replace(projection=None)
    assert not np.allclose(start.lstm.hidden, 0.0)
    zeros = empty._replace(lstm=type(start.lstm)(*(tf.zeros([2, 3]) for _ in start.lstm)))
    after_blank = model.advance(tf.fill([2], BLANK), zeros)
    np.testing.assert_array_equal(start.projection, after_blank.projection)


def test_padding_changes_nothing(model, batch):
    inputs, frames, labels, label_lengths = (array.copy() for array in batch)
    scores = model(*batch).numpy()
    assert (FRAMES[0], LABELS[0]) == (T, U)
    for example in range(B):
        inputs[example, FRAMES[example] :] = INPUTS - 1
        labels[example, LABELS[example] :] = OUTPUTS - 1
    wider = np.pad(inputs, [(0, 0), (0, 2)]), np.pad(labels, [(0, 0), (0, 1)])
    others = [
        model(inputs, frames, labels, label_lengths).numpy(),
        model(wider[0], frames, wider[1], label_lengths).numpy(),
    ]
    for other in others:
        for example in range(B):
            _assert_same(other[example], scores[example], example)


def test_padding_changes_no_gradient(model, batch):
    together = _gradients(model, *batch)
    alone = []
    for example, (t, u) in enumerate(zip(np.maximum(FRAMES, 1), LABELS, strict=True)):
        one = slice(example, example + 1)
        inputs, _, labels, _ = batch
        alone.append(_gradients(model, inputs[one, :t], FRAMES[one], labels[one, :u], LABELS[one]))
    for gradient, *parts in zip(together, *alone, strict=True):
        assert np.any(gradient)
        np.testing.assert_allclose(gradient, sum(parts), rtol=1e-4, atol=1e-4)


def test_an_example_in_a_batch_is_scored_as_it_is_alone(model, batch):
    scores = model(*batch).numpy()
    for example in range(B):
        alone = model(*(array[example : example + 1] for array in batch)).numpy()
        _assert_same(alone[0], scores[example], example)


def test_frames_without_inputs_are_encoded_alike_whatever_the_example(model, batch):
    encoding = model.encode(batch[0], np.zeros(B, np.int32)).numpy()
    np.testing.assert_array_equal(encoding, np.broadcast_to(encoding[:1, :1], encoding.shape))


@pytest.mark.parametrize(("frames", "labels"), [(0, U), (T, 0), (0, 0)])
def test_an_axis_may_be_empty(model, batch, frames, labels):
    inputs, _, prefix, _ = batch
    none = np.zeros(B, np.int32)
    scores = model(inputs[:, :frames], none, prefix[:, :labels], none)
    assert scores.shape == (B, frames, labels + 1, OUTPUTS)
    assert model(inputs[:0], none[:0], prefix[:0], none[:0]).shape == (0, T, U + 1, OUTPUTS)


def test_dropout_is_a_function_of_its_seed(model, batch):
    without = model(*batch).numpy()
    np.testing.assert_array_equal(without, model(*batch))
    seeded = model(*batch, dropout_seed=SEED).numpy()
    np.testing.assert_array_equal(seeded, model(*batch, dropout_seed=SEED))
    assert not np.allclose(seeded, without)
    assert not np.allclose(seeded, model(*batch, dropout_seed=SEED + 1))


@pytest.mark.parametrize("silenced", ["_encoding", "_prediction"])
def test_dropout_is_in_both_networks(model, batch, silenced):
    """With one network out of the scores, they change by what is dropped in the other."""
    layer = getattr(model._joint, silenced)
    saved = layer.get_weights()
    try:
        layer.set_weights([np.zeros_like(weights) for weights in saved])
        assert not np.allclose(model(*batch), model(*batch, dropout_seed=SEED))
    finally:
        layer.set_weights(saved)


@pytest.mark.parametrize("jit_compile", [False, True])
def test_eager_graph_and_xla_agree(model, batch, jit_compile):
    compiled = tf.function(model.__call__, jit_compile=jit_compile, autograph=False)
    arguments = [tf.constant(array) for array in (*batch, SEED)]
    np.testing.assert_allclose(compiled(*arguments), model(*arguments), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("seed", [None, SEED])
def test_a_fused_loss_has_the_values_and_gradients_of_the_other(model, batch, seed):
    fused = dataclasses.replace(model._config, fused_loss=True).build(INPUTS, OUTPUTS)
    fused.set_weights(model.get_weights())

    def losses_and_gradients(model):
        variables = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape() as tape:
            losses = model.losses(*batch, dropout_seed=seed)
        gradients = tape.gradient(losses, variables)
        return losses, *map(tf.convert_to_tensor, gradients)

    for found, expected in zip(*map(losses_and_gradients, (fused, model)), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_a_loss_is_fused_where_there_are_many_symbols_or_it_is_asked_for():
    sizes = {"encoder_units": 4, "predictor_units": 4, "joint_units": 4}
    for size, asked, fuses in [(127, None, False), (128, None, True), (9, True, True)]:
        model = TransducerConfig(**sizes, fused_loss=asked).build(INPUTS, size)
        losses = tf.function(model.losses).get_concrete_function(
            *(tf.TensorSpec(shape, tf.int32) for shape in ([B, T], [B], [B, U], [B]))
        )
        graphs = [losses.graph, *(each.graph for each in losses.graph._functions.values())]
        tensors = [x for graph in graphs for each in graph.get_operations() for x in each.outputs]
        held = any(x.shape.is_compatible_with([B, T, U + 1, size]) for x in tensors if x.shape.rank)
        assert held != fuses


STREAMING = [
    {"encoder": "causal"},
    {"encoder": "chunked", "chunk": 2, "lookahead": 1},
    {"encoder": "chunked", "chunk": 1, "lookahead": 0},
    {"encoder": "causal", "beam": 4, "search": "frame"},
    {"encoder": "chunked", "chunk": 2, "beam": 4, "search": "adaptive", "length_normalization": 1},
]


def _streaming(**fields):
    """Returns a transducer of two layers and random weights, with all kinds of answers."""
    sizes = {"embedding_units": 5, "encoder_units": 4, "predictor_units": 3, "joint_units": UNITS}
    model = TransducerConfig(**sizes, **fields).build(INPUTS, OUTPUTS)
    random = np.random.default_rng(4)
    for variable in model.variables:
        variable.assign(random.normal(size=variable.shape))
    return model


@pytest.fixture(scope="module", params=STREAMING, ids=str)
def streaming(request):
    return _streaming(**request.param)


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_labels_of_a_stream_are_those_of_the_whole(streaming, batch, size):
    inputs, frames, _, _ = batch
    whole = streaming.search(inputs, frames)
    assert len(set(whole.lengths.numpy())) > 2
    state, tokens = streaming.stream_start(B), [[[]] * streaming.beam] * B
    starts = range(0, T + size, size)
    for start in starts:
        piece = np.pad(inputs, [(0, 0), (0, 2 * size)])[:, start : start + size]
        counts = np.clip(FRAMES - start, 0, size)
        found, state = streaming.stream(piece, counts, state, final=start == starts[-1])
        rows = zip(*(x.numpy() for x in found[:3]), tokens, strict=True)
        tokens = [
            [before[k] + row[:n].tolist() for k, row, n in zip(*each, strict=True)]
            for *each, before in rows
        ]
    for b, length in enumerate(whole.lengths):
        assert tokens[b][0] == whole.tokens[b, :length].numpy().tolist()
    np.testing.assert_allclose(found.log_probability[:, 0], whole.log_probability, rtol=1e-5)


def test_a_stream_keeps_all_hypotheses_that_the_whole_has(batch):
    inputs, frames, _, _ = batch
    model = _streaming(encoder="causal", beam=5, n_best=5, search="frame")
    whole, state = model.n_best(inputs, frames), model.stream_start(B)
    for t in range(T):
        found, state = model.stream(inputs[:, t : t + 1], np.int32(frames > t), state)
    np.testing.assert_allclose(found.log_probability, whole.log_probability, rtol=1e-5)


def test_a_model_streams_where_neither_encoder_nor_search_waits_for_the_end(model):
    assert not model.streams
    cases = [("alignment", 2, False), ("alignment", 1, True), ("frame", 2, True)]
    for search, beam, streams in cases:
        assert _streaming(encoder="causal", beam=beam, search=search).streams == streams
    assert not _streaming(beam=4, search="frame").streams
