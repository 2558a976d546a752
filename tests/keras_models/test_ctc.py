import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.ctc import CTCConfig
from keras_models.configs.transcription import Text, Transcription
from keras_models.tasks.explanation import NotExplained

B, T, RATE = 4, 6, 3
INPUTS, OUTPUTS = 9, 7
LENGTHS = np.array([6, 2, 4, 0], np.int32)
SIZES = {"embedding_units": 5, "encoder_units": 4, "frames_per_symbol": RATE}


def _build(**fields):
    """Returns a model whose weights are random."""
    model = CTCConfig(**SIZES, **fields).build(INPUTS, OUTPUTS)
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.normal(scale=1.5, size=variable.shape))
    return model


@pytest.fixture(scope="module")
def inputs():
    """Input symbols; there are no zeros where they are padded."""
    return np.random.default_rng(1).integers(1, INPUTS, (B, T), np.int32)


def test_there_are_some_frames_for_each_input_symbol(inputs):
    assert _build()(inputs, LENGTHS).shape == (B, RATE * T, OUTPUTS)


@pytest.mark.parametrize(
    ("labels", "feasible"),
    [([], True), ([1, 2, 3], True), ([1, 2, 1, 2], False), ([1, 1], True), ([1, 1, 2], False)],
)
def test_labels_need_a_frame_each_and_one_between_the_same(labels, feasible):
    model = _build()
    ragged = [tf.ragged.constant(rows, tf.int32) for rows in ([[5], []], [labels, []])]
    assert model.feasible(*ragged).numpy().tolist() == [feasible, True]
    lengths = tf.constant([1, 0]), tf.constant([len(labels), 0])
    padded = [tf.constant([[5], [0]]), lengths[0], tf.constant([labels or [0]] * 2), lengths[1]]
    assert np.isfinite(model.losses(*padded)).tolist() == [feasible, True]


def test_a_beam_finds_what_is_likelier_than_the_greedy_labels(inputs):
    greedy, beam = (_build(beam=beam).search(inputs, LENGTHS) for beam in (1, 20))
    assert (beam.log_probability >= greedy.log_probability - 1e-5).numpy().all()
    assert (beam.tokens != greedy.tokens).numpy().any()
    best = _build(beam=20, n_best=4).n_best(inputs, LENGTHS)
    assert best.tokens.shape == (B, 4, RATE * T)
    for found, first in zip(beam, best, strict=True):
        np.testing.assert_allclose(first[:, 0], found, rtol=1e-5)


@pytest.mark.parametrize("beam", [1, 4])
def test_labels_are_emitted_at_inputs_one_after_another(inputs, beam):
    found = _build(beam=beam).search(inputs, LENGTHS)
    assert found.lengths.numpy().max() > 2
    for row, length in enumerate(found.lengths.numpy()):
        frames = found.frames[row, :length].numpy()
        assert (np.diff(frames) >= 0).all()
        assert (frames < LENGTHS[row]).all()


def test_a_beam_with_room_for_all_finds_the_losses_of_labels(inputs):
    model, ones = _build(beam=250), np.ones(B, np.int32)
    found = model.search(inputs[:, :1], ones)
    losses = model.losses(inputs[:, :1], ones, found.tokens, found.lengths)
    np.testing.assert_allclose(found.log_probability, -losses, rtol=1e-5)


def test_occupancies_of_inputs_are_those_of_their_frames(inputs):
    model, labels = _build(), np.array([[1, 2], [3, 3], [4, 0], [0, 0]])
    lengths = np.array([2, 2, 1, 0])
    found = model.occupancies(inputs, LENGTHS, labels, lengths)
    assert found.nodes.shape == found.blanks.shape == found.labels.shape == (B, T, 3)
    scores = tf.nn.log_softmax(model(inputs, LENGTHS)).numpy()
    expected, frames = np.zeros(T), RATE * LENGTHS[2]
    for first, last in itertools.combinations_with_replacement(range(frames), 2):
        path = np.where((np.arange(frames) < first) | (np.arange(frames) > last), 0, labels[2, 0])
        expected[first // RATE] += np.exp(scores[2, np.arange(frames), path].sum())
    np.testing.assert_allclose(found.labels[2, :, 0], expected / expected.sum(), atol=1e-5)
    for row, (steps, length) in enumerate(zip(LENGTHS, lengths, strict=True)):
        emitted = found.labels[row].numpy().sum(axis=0)
        np.testing.assert_allclose(emitted, np.arange(3) < length, atol=1e-5)
        blanks = found.blanks[row].numpy().sum(axis=1)
        np.testing.assert_allclose(blanks, np.arange(T) < steps, atol=1e-5)


STREAMING = [
    {"encoder": "causal"},
    {"encoder": "chunked", "chunk": 2, "lookahead": 1},
    {"encoder": "causal", "beam": 4},
    {"encoder": "chunked", "chunk": 2, "beam": 4},
]


@pytest.mark.parametrize("fields", STREAMING, ids=str)
@pytest.mark.parametrize("size", [1, 2, 4])
def test_labels_of_a_stream_are_those_of_the_whole(inputs, fields, size):
    model = _build(**fields)
    whole = model.search(inputs, LENGTHS)
    assert len(set(whole.lengths.numpy())) > 2
    state, tokens = model.stream_start(B), [[[]] * model.beam] * B
    starts = range(0, T + size, size)
    for start in starts:
        piece = np.pad(inputs, [(0, 0), (0, 2 * size)])[:, start : start + size]
        counts = np.clip(LENGTHS - start, 0, size)
        found, state = model.stream(piece, counts, state, final=start == starts[-1])
        rows = zip(*(x.numpy() for x in found[:3]), tokens, strict=True)
        tokens = [
            [before[k] + row[:n].tolist() for k, row, n in zip(*each, strict=True)]
            for *each, before in rows
        ]
    for row, length in enumerate(whole.lengths):
        assert tokens[row][0] == whole.tokens[row, :length].numpy().tolist()
    np.testing.assert_allclose(found.log_probability[:, 0], whole.log_probability, rtol=1e-5)


def test_a_bidirectional_encoder_does_not_stream():
    assert not _build().streams


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    config = Transcription(input=Text("text"), output=Text("sound", unit="token"))
    folder = tmp_path_factory.mktemp("assets")
    records = {"text": tf.constant(["abcde"]), "sound": tf.constant(["A B C D"])}
    config.prepare([records], folder)
    return config.build(CTCConfig(**SIZES), folder)


def test_an_answer_longer_than_all_frames_is_not_explained(task):
    inputs = {"text": tf.constant(["ab"])}
    [explanation] = task.explain(inputs, tf.constant(["A B C D A B"]))
    assert list(explanation.frames) == [0, 0, 0, 1, 1, 1]
    with pytest.raises(NotExplained, match="must not be longer than"):
        task.explain(inputs, tf.constant(["A B C D A B C"]))
    with pytest.raises(NotExplained, match="must not be longer than"):
        task.explain(inputs, tf.constant(["A A A A"]))
