"""One long text, chunk by chunk, with the state carried from one to the next."""

from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.language_model import LanguageModelConfig
from keras_models.configs.language_modeling import LanguageModeling
from pipelines import strategies
from pipelines.chunks import STARTS, chunk_batches
from pipelines.display import Display
from pipelines.errors import Interrupted, UsageError
from pipelines.input import write_examples
from pipelines.job import Train
from pipelines.step import TrainStep
from pipelines.training import Trainer

ROWS, CHUNK = 5, 4
TEXTS = ["the quick brown fox", "jumps", "over the lazy dog " * 4]
TOTAL = sum(map(len, TEXTS)) + len(TEXTS)  # with the boundary after each
CHUNKS = TOTAL // ROWS // CHUNK
PLAIN = Train(
    optimizer="sgd",
    beta_1=0.0,
    learning_rate=0.5,
    schedule="constant",
    warmup_steps=0,
    clip="none",
    jit_compile=False,
)


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Returns a task, its weights always the same, made where a strategy says."""
    folder, config = tmp_path_factory.mktemp("assets"), LanguageModeling(chunk=CHUNK)
    config.prepare([{"text": tf.constant(TEXTS)}], folder)

    def task(strategy=None, dropout=0.0):
        keras.utils.set_random_seed(3)
        sizes = LanguageModelConfig(embedding_units=3, units=7, layers=1, dropout=dropout)
        with (strategy or strategies.choose("one_device")).scope():
            return config.build(sizes, folder)

    return task


@pytest.fixture(scope="module")
def store(build, tmp_path_factory):
    """The features of all the texts."""
    records = tf.data.Dataset.from_tensor_slices({"text": TEXTS}).batch(2)
    return write_examples([records], build(), tmp_path_factory.mktemp("features"))[0]


def batches(store, count, seed=1):
    return list(chunk_batches(store, ROWS, CHUNK, seed).since(0).take(count))


def circle(store):
    return store.values("text").numpy()


def test_an_epoch_goes_once_through_as_many_arcs_as_rows(store):
    """Of the circle of all texts, which may begin anywhere."""
    symbols = circle(store)
    assert len(symbols) == TOTAL
    epochs = [batches(store, 3 * CHUNKS)[n * CHUNKS : (n + 1) * CHUNKS] for n in range(3)]
    begins = []
    for epoch in epochs:
        arcs = np.concatenate([batch["text"] for batch in epoch], axis=1)
        whole = [np.roll(symbols, -turn) for turn in range(TOTAL)]
        firsts = [row * TOTAL // ROWS for row in range(ROWS)]
        fitting = [
            turn
            for turn, text in enumerate(whole)
            if all(
                (np.take(text, range(first, first + CHUNKS * CHUNK), mode="wrap") == arc).all()
                for first, arc in zip(firsts, arcs, strict=True)
            )
        ]
        assert len(fitting) == 1
        begins += fitting
    assert len(set(begins)) == 3


def test_rows_begin_anew_with_each_epoch_alone(store):
    starts = [batch[STARTS].numpy().tolist() for batch in batches(store, 2 * CHUNKS)]
    epoch = [[True] * ROWS] + [[False] * ROWS] * (CHUNKS - 1)
    assert starts == 2 * epoch


def test_chunks_are_full(store):
    for batch in batches(store, CHUNKS):
        assert batch["text"].shape == (ROWS, CHUNK)
        np.testing.assert_array_equal(batch["text_lengths"], [CHUNK] * ROWS)


def test_a_batch_is_a_function_of_the_seed_and_its_number(store):
    one, again, other = (np.array([b["text"] for b in batches(store, 40, n)]) for n in (1, 1, 2))
    np.testing.assert_array_equal(one, again)
    assert (one != other).any()


def test_a_text_shorter_than_the_chunks_has_shorter_ones(store):
    (batch,) = chunk_batches(store, ROWS, 50, 1).since(0).take(1)
    assert batch["text"].shape == (ROWS, TOTAL // ROWS)


def test_too_short_a_text_is_refused_with_what_would_do(store):
    with pytest.raises(UsageError, match=rf"{TOTAL + 1} rows; --data.batch_size {TOTAL} would do"):
        chunk_batches(store, TOTAL + 1, CHUNK, 1)
    chunk_batches(store, TOTAL, CHUNK, 1)


def test_texts_of_several_places_are_refused(build, tmp_path):
    records = tf.data.Dataset.from_tensor_slices({"text": TEXTS}).batch(2)
    several, _ = write_examples([records, records], build(), tmp_path)
    with pytest.raises(UsageError, match="one place"):
        chunk_batches(several, ROWS, CHUNK, 1)


def stepped(build, given, strategy=None, **changed):
    """Returns the weights, the state carried and the losses after steps on some batches."""
    config = replace(PLAIN, **changed)
    strategy = strategy or strategies.choose("one_device")
    step = TrainStep(build(strategy), config, strategy, ROWS)
    groups = [
        tuple(given[i : i + config.accumulate]) for i in range(0, len(given), config.accumulate)
    ]
    each = config.steps_per_call
    totals = [step(tuple(groups[i : i + each]), stop=False)[0] for i in range(0, len(groups), each)]
    weights = [variable.numpy() for variable in step._variables]
    carried = [variable.numpy() for variable in step.state["carried"]]
    return weights, carried, [float(total.loss) for total in totals]


def test_the_losses_of_chunks_add_up_to_that_of_the_whole(build, store):
    """Of weights that hardly move: so that the state is what was carried."""
    given = batches(store, CHUNKS)
    _, carried, losses = stepped(build, given, learning_rate=1e-12)
    arcs = {
        "text": np.concatenate([batch["text"] for batch in given], axis=1),
        "text_lengths": np.full(ROWS, CHUNKS * CHUNK, np.int32),
    }
    whole = build().losses(arcs)
    np.testing.assert_allclose(sum(losses), np.sum(whole), rtol=1e-5)
    apart = sum(
        float(tf.reduce_sum(build().losses({n: b[n] for n in ("text", "text_lengths")})))
        for b in given
    )
    assert abs(apart - sum(losses)) > 1e-3
    np.testing.assert_array_equal(carried[0], arcs["text"][:, -1])


def test_a_new_epoch_begins_with_no_state(build, store):
    given = batches(store, CHUNKS + 1)
    _, carried, losses = stepped(build, given, learning_rate=1e-12)
    _, fresh, first = stepped(build, given[-1:], learning_rate=1e-12)
    np.testing.assert_allclose(losses[-1:], first, rtol=1e-6)
    for one, other in zip(carried, fresh, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-6)


@pytest.mark.parametrize(
    ("replicas", "changed"), [(2, {}), (3, {"accumulate": 2}), (2, {"steps_per_call": 2})]
)
def test_replicas_carry_what_one_does(build, store, replicas, changed):
    """Though they do not divide the rows."""
    given = batches(store, 6)
    several = strategies.mirrored(tf.config.list_logical_devices("CPU")[:replicas])
    one, other = (stepped(build, given, where, **changed) for where in (None, several))
    for a, b in zip((*one[0], *one[1]), (*other[0], *other[1]), strict=True):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(other[2], one[2], rtol=1e-5)


@pytest.fixture(params=["bfloat16", "float16"])
def precision(request):
    """What layers compute in, inside a test."""
    keras.config.set_dtype_policy(f"mixed_{request.param}")
    yield request.param
    keras.config.set_dtype_policy("float32")


def test_what_is_carried_in_mixed_precision_is_near_that_of_float32(build, store, precision):
    """On two replicas, too; though a loss scale that is too high at first skips steps."""
    given = batches(store, 3)
    several = strategies.mirrored(tf.config.list_logical_devices("CPU")[:2])
    still = {"learning_rate": 1e-12}
    found = [
        stepped(build, given, where, precision=precision, **still) for where in (None, several)
    ]
    keras.config.set_dtype_policy("float32")
    _, right, losses = stepped(build, given, **still)
    for _, carried, its_losses in found:
        for own, other in zip(carried, right, strict=True):
            np.testing.assert_allclose(own, other, atol=0.02)
        for own, other in zip(its_losses, losses, strict=True):
            assert own in (0.0, pytest.approx(other, rel=0.02))
        assert its_losses[-1] or precision == "float16"


@pytest.mark.parametrize("precision", ["float16"], indirect=True)
def test_the_text_goes_on_past_a_step_whose_loss_scale_was_too_high(build, store, precision):
    """What is carried first is the last symbol of each row."""
    strategy = strategies.choose("one_device")
    step = TrainStep(build(strategy), replace(PLAIN, precision=precision), strategy, ROWS)
    step.state["loss_scale"].scale.assign(2.0**100)
    (batch,) = batches(store, 1)
    totals, _ = step(((batch,),), stop=False)
    assert float(totals.examples) == 0
    np.testing.assert_array_equal(step.state["carried"][0].numpy(), batch["text"][:, -1])


def test_the_batches_of_a_step_go_on_from_one_another(build, store):
    given = batches(store, 4)
    _, carried, _ = stepped(build, given, learning_rate=1e-12)
    _, accumulated, _ = stepped(build, given, learning_rate=1e-12, accumulate=4)
    for one, other in zip(carried, accumulated, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)


def test_a_step_that_is_not_finite_leaves_the_state_as_it_was(build, store):
    strategy = strategies.mirrored(tf.config.list_logical_devices("CPU")[:2])
    step = TrainStep(build(strategy), PLAIN, strategy, ROWS)
    first, second, third = batches(store, 3)
    step(((first,),), stop=False)
    before = [variable.numpy() for variable in step.state["carried"]]
    bias = step._variables[-1]
    value = bias.numpy()
    bias.assign(np.full_like(value, np.nan))
    assert float(step(((second,),), stop=False)[0].skipped) == 1
    for variable, right in zip(step.state["carried"], before, strict=True):
        np.testing.assert_array_equal(variable.numpy(), right)
    bias.assign(value)
    assert np.isfinite(float(step(((third,),), stop=False)[0].loss))


def test_a_training_gone_on_with_carries_the_same_state_to_the_last_bit(build, store, tmp_path):
    config = replace(
        PLAIN, steps=12, log_every=3, checkpoint_every=5, evaluate_every=6, optimizer="adam"
    )

    def trainer(name):
        strategy = strategies.choose("one_device")
        data = chunk_batches(store, ROWS, CHUNK, 1).since
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        return Trainer(build(strategy, dropout=0.3), config, data, strategy, folder, rows=ROWS)

    def evaluation():
        return {"nats_per_character": 1.0}

    def interrupted():
        raise Interrupted

    whole = trainer("whole")
    whole.train(evaluation, Display())
    with pytest.raises(Interrupted):
        trainer("parts").train(interrupted, Display())
    parts = trainer("parts")
    assert parts.step == 5
    parts.train(evaluation, Display())
    last, right = (
        tf.train.load_checkpoint(str(tmp_path / name / "checkpoints" / "ckpt-12"))
        for name in ("parts", "whole")
    )
    types = right.get_variable_to_dtype_map()
    keys = [key for key in types if key.startswith(("carried/", "weights/", "optimizer/"))]
    assert sum(key.startswith("carried/") for key in keys) == 4
    for key in keys:
        np.testing.assert_array_equal(last.get_tensor(key), right.get_tensor(key), key)
