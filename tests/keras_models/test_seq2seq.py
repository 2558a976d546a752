"""The encoder and decoder: what holds whatever their choices."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.seq2seq import Seq2SeqConfig
from keras_models.decoding.sequence import END
from keras_models.tasks.explanation import NotExplained

B, T, U = 4, 5, 3
INPUTS, OUTPUTS = 9, 4
# A full example, a short one, one without labels, one without anything.
INPUT_LENGTHS, LABEL_LENGTHS = np.array([5, 2, 4, 0], np.int32), np.array([3, 1, 0, 0], np.int32)
SEED = np.array([5, 11], np.int32)
SIZES = {
    "embedding_units": 5,
    "encoder_units": 4,
    "encoder_layers": 2,
    "decoder_units": 6,
    "decoder_layers": 2,
    "attention_units": 7,
    "dropout": 0.0,
}
# Each choice at least once.
CHOICES = [
    {},
    {"attention": "additive", "context": "input"},
    {"attention": "none", "context": "both", "tied_embeddings": True},
    {"input_feeding": True, "context": "both"},
    {"attention": "additive", "input_feeding": True, "tied_embeddings": True},
]


def build(scale=0.7, **choices):
    """Returns a model whose weights, biases too, are random."""
    model = Seq2SeqConfig(**{**SIZES, **choices}).build(INPUTS, OUTPUTS)
    random = np.random.default_rng(0)
    for variable in model.variables:
        variable.assign(random.normal(scale=scale, size=variable.shape))
    return model


@pytest.fixture(params=CHOICES, ids=lambda choices: "-".join(map(str, choices.values())) or "plain")
def choices(request):
    return request.param


@pytest.fixture
def model(choices):
    return build(**choices)


@pytest.fixture(scope="module")
def batch():
    """Inputs, their lengths, labels, their lengths; there are no zeros where they are padded."""
    random = np.random.default_rng(1)
    inputs = random.integers(1, INPUTS, (B, T), np.int32)
    labels = random.integers(1, OUTPUTS, (B, U), np.int32)
    return inputs, INPUT_LENGTHS, labels, LABEL_LENGTHS


def stepped(model, inputs, input_lengths, labels):
    """Returns the log-probabilities and the attention of each step, one after the other."""
    memory = model.encode(inputs, input_lengths)
    state = tf.nest.map_structure(lambda x: x[:, tf.newaxis], model.start(memory))
    found = []
    for label in np.pad(labels, [(0, 0), (1, 0)], constant_values=END).T:
        *values, state = model.step(label[:, np.newaxis], state, memory)
        found.append([value[:, 0] for value in values])
    return [np.stack(each, axis=1) for each in zip(*found, strict=True)]


def test_all_steps_at_once_are_one_after_the_other(model, batch):
    inputs, input_lengths, labels, _ = batch
    scores, attention = model(inputs, input_lengths, labels, np.full(B, U))
    assert scores.shape == (B, U + 1, OUTPUTS)
    assert attention.shape == (B, U + 1, T)
    expected = stepped(model, inputs, input_lengths, labels)
    np.testing.assert_allclose(tf.nn.log_softmax(scores), expected[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(attention, expected[1], rtol=1e-4, atol=1e-5)


def test_a_loss_is_that_of_the_labels_and_their_end(model, batch):
    inputs, input_lengths, labels, label_lengths = batch
    scores, _ = stepped(model, inputs, input_lengths, labels)
    losses = model.losses(*batch)
    for b, count in enumerate(label_lengths):
        said = [*labels[b, :count], END]
        expected = -sum(scores[b, u, symbol] for u, symbol in enumerate(said))
        np.testing.assert_allclose(losses[b], expected, rtol=1e-4)


def test_the_probabilities_of_all_outputs_add_up(batch):
    """But for that of the longer ones."""
    model = build(scale=0.3)
    [bias] = [variable for variable in model.variables if variable.shape == (OUTPUTS,)]
    bias.assign([4.0, 0.0, 0.0, 0.0])  # the end is likely, so that there are few
    inputs, input_lengths, *_ = batch
    total = np.zeros(B)
    for count in range(4):
        for said in itertools.product(range(1, OUTPUTS), repeat=count):
            labels = np.array([said] * B, np.int32).reshape(B, count)
            total += np.exp(-model.losses(inputs, input_lengths, labels, np.full(B, count)))
    assert (total < 1).all()
    assert (total > 0.99).all()


def test_padding_changes_no_attention(model, batch):
    inputs, input_lengths, labels, label_lengths = batch
    attention = model(*batch)[1].numpy()
    wider = np.pad(inputs, [(0, 0), (0, 2)], constant_values=7)
    other = model(wider, input_lengths, labels, label_lengths)[1].numpy()
    assert not other[..., T:].any()
    np.testing.assert_allclose(other[..., :T], attention, rtol=1e-5, atol=1e-6)


def test_the_context_reaches_the_decoder_without_attention(batch):
    inputs, input_lengths, labels, label_lengths = batch
    changed = np.where(inputs == inputs[:, :1], 1 + inputs % (INPUTS - 1), inputs)
    for context in ("state", "input", "both"):
        model = build(attention="none", context=context)
        losses, others = (
            model.losses(each, input_lengths, labels, label_lengths).numpy()
            for each in (inputs, changed)
        )
        assert (np.abs(losses - others)[:3] > 1e-5).all()


def test_steps_one_by_one_are_trained_as_those_at_once(batch):
    """With dropout, and with a share of the decoder's own labels that is next to none."""
    losses = [
        build(dropout=0.4, decoder_layers=1, own_labels=share).losses(*batch, SEED).numpy()
        for share in (0.0, 1e-9)
    ]
    np.testing.assert_allclose(*losses, rtol=1e-5)


def test_in_open_loop_the_decoder_goes_on_from_what_it_would_have_answered(batch):
    inputs, input_lengths, labels, _ = batch
    free, forced = build(own_labels=1.0), build()
    prefix = np.zeros((B, 0), np.int32)
    for _ in range(U):
        scores, _ = forced(inputs, input_lengths, prefix, np.full(B, prefix.shape[1]))
        prefix = np.concatenate([prefix, np.argmax(scores[:, -1:], axis=-1)], axis=1)
    expected, _ = forced(inputs, input_lengths, prefix.astype(np.int32), np.full(B, U))
    found, _ = free(inputs, input_lengths, labels, np.full(B, U), SEED)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_without_a_seed_the_decoder_is_told_the_right_labels(batch):
    np.testing.assert_array_equal(build(own_labels=0.5).losses(*batch), build().losses(*batch))
    sampled = build(own_labels=0.5).losses(*batch, SEED)
    assert not np.allclose(sampled, build().losses(*batch))


@pytest.mark.parametrize("choices", [{"input_feeding": True}, {"own_labels": 0.5}])
def test_steps_one_by_one_have_the_same_gradients_under_xla(batch, choices):
    model = build(**choices, context="both", dropout=0.3)

    def gradients():
        variables = [variable.value for variable in model.trainable_variables]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model.losses(*batch, tf.constant(SEED)))
        return [tf.convert_to_tensor(each) for each in tape.gradient(loss, variables)]

    graph, compiled = (tf.function(gradients, jit_compile=jit)() for jit in (False, True))
    for found, expected in zip(compiled, graph, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)


def test_tied_embeddings_are_scored_by(batch):
    tied, apart = build(tied_embeddings=True), build()
    assert tied.count_params() < apart.count_params()
    embedding = next(v for v in tied.variables if v.shape == (OUTPUTS, SIZES["embedding_units"]))
    before = tied(*batch)[0].numpy()
    embedding.assign(embedding + tf.one_hot([3], OUTPUTS, axis=0) * 0.5)
    after = tied(*batch)[0].numpy()
    assert not np.allclose(before[:, 0, 3], after[:, 0, 3])
    np.testing.assert_allclose(before[:, 0, :3], after[:, 0, :3], rtol=1e-5)


def test_label_smoothing_costs_the_certain(batch):
    smoothed, plain = build(label_smoothing=0.1).losses(*batch), build().losses(*batch)
    assert not np.allclose(smoothed, plain)


@pytest.mark.parametrize("beam", [1, 3])
def test_what_is_found_has_its_probability_and_its_attention(choices, batch, beam):
    inputs, input_lengths, *_ = map(tf.constant, batch)
    model = build(**choices, beam=beam)
    found = model.search(inputs, input_lengths)
    widest = 2 * T + 10
    assert found.tokens.shape == (B, widest)
    assert found.attention.shape == (B, widest, T)
    given = inputs, input_lengths, found.tokens, found.lengths
    np.testing.assert_allclose(-model.losses(*given), found.log_probability, rtol=1e-3)
    _, attention = model(*given)
    for b, count in enumerate(found.lengths.numpy()):
        assert count <= (2 * input_lengths[b] + 10 if input_lengths[b] else 0)
        expected = attention[b, :count]
        np.testing.assert_allclose(found.attention[b, :count], expected, rtol=1e-4, atol=1e-6)
        np.testing.assert_array_equal(found.frames[b, :count], np.argmax(expected, axis=-1))
        assert not found.attention[b, count:].numpy().any()
        assert not found.frames[b, count:].numpy().any()


def test_the_best_of_all_is_what_a_beam_as_wide_finds(batch):
    inputs, input_lengths, *_ = map(tf.constant, batch)
    model = build(beam=4, n_best=3, length_penalty=0.6, coverage_penalty=0.2)
    one, best = model.search(inputs, input_lengths), model.n_best(inputs, input_lengths)
    assert best.tokens.shape[:2] == (B, 3)
    for found, first in zip(one, best, strict=True):
        np.testing.assert_allclose(found, first[:, 0], rtol=1e-4, atol=1e-5)


def test_what_has_no_attention_is_not_explained(batch):
    with pytest.raises(NotExplained, match="without attention"):
        list(build(attention="none").explain(*map(tf.constant, batch)))


def test_an_example_is_explained_by_the_attention_of_its_labels_to_its_inputs(batch):
    model = build()
    _, attention = model(*batch)
    explained = list(model.explain(*map(tf.constant, batch)))
    assert len(explained) == B
    for b, (weights, frames, certainties) in enumerate(explained[:2]):
        expected = attention[b, : LABEL_LENGTHS[b], : INPUT_LENGTHS[b]].numpy()
        np.testing.assert_array_equal(weights, expected.T)
        assert frames == tuple(expected.argmax(1))
        assert certainties == tuple(expected.max(1))
