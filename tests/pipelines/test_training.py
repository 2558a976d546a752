import json
import math
import os
import resource
import shutil
import signal
from dataclasses import replace
from functools import cached_property

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_models.frontends.padding import pad
from pipelines import strategies
from pipelines.checkpoints import CheckpointNotSaved, DamagedCheckpoint, OtherModel, weights_of
from pipelines.display import Display
from pipelines.errors import Interrupted, Termination
from pipelines.evaluation import Evaluator
from pipelines.input import training_batches, write_examples
from pipelines.job import Train
from pipelines.log import MetricsLog, read_metrics
from pipelines.schedules import learning_rate
from pipelines.selection import restore_best
from pipelines.step import TrainStep
from pipelines.training import NotFinite, Trainer

STEPS = 23
CONFIG = Train(
    steps=STEPS,
    learning_rate=0.05,
    warmup_steps=3,
    weight_decay=0.01,
    log_every=4,
    evaluate_every=10,
    checkpoint_every=5,
    jit_compile=False,
)


class Quiet(Display):
    """Keeps what it is told."""

    def __init__(self):
        super().__init__()
        self.notes = []

    def note(self, text):
        self.notes.append(text)


class Training:
    """A training in a folder, which goes on from what is in the folder."""

    def __init__(self, make_task, dataset, config, folder, profile=0):
        strategy = strategies.choose("auto")
        keras.utils.set_random_seed(config.seed)
        with strategy.scope():
            self.task = make_task()
        self.folder, self.display = folder, Quiet()
        folder.mkdir(exist_ok=True)
        self._dataset, self._config = dataset, config
        self.trainer = Trainer(self.task, config, self.batches().since, strategy, folder, profile)

    def batches(self):
        store, _ = write_examples([self._dataset], self.task, self.folder / "features")
        return training_batches(store, [[2, 2], [4, 4]], [12, 6], self._config.seed)

    def run(self, evaluate=None):
        self.trainer.train(evaluate or self.evaluate, self.display)
        return self

    @cached_property
    def _evaluator(self):
        return Evaluator(self.task, self._dataset, batch_tokens=40)

    def evaluate(self):
        return self._evaluator().numbers

    @property
    def weights(self):
        return [variable.numpy().copy() for variable in self.task.model.variables]

    @property
    def lines(self):
        return read_metrics(self.folder)


@pytest.fixture(scope="module")
def dataset(words, records):
    return records([(word, word.upper()) for word in words(97)])


@pytest.fixture
def training(speller, dataset, tmp_path):
    """Returns a training; one of the same name goes on where the other ended."""

    def make(name="run", task=speller, data=dataset, **changed):
        return Training(task, data, replace(CONFIG, **changed), tmp_path / name)

    return make


@pytest.fixture(scope="module")
def uninterrupted(speller, dataset, tmp_path_factory):
    return Training(speller, dataset, CONFIG, tmp_path_factory.mktemp("uninterrupted")).run()


def same(weights, others):
    return all((a == b).all() for a, b in zip(weights, others, strict=True))


def first_batch(training):
    (batch,) = training.batches().since(0).take(1)
    return batch


def interrupt(training, evaluation, number=signal.SIGINT):
    """Runs until a signal that comes in an evaluation, and returns what ends the training."""
    turns = iter(range(1, 100))

    def evaluate():
        if next(turns) == evaluation:
            os.kill(os.getpid(), number)
        return training.evaluate()

    with pytest.raises(Interrupted) as caught:
        training.run(evaluate)
    return caught.value


# Learning.


@pytest.mark.parametrize("jit_compile", [False, True])
def test_the_loss_falls_and_the_task_is_learnt(training, jit_compile):
    done = training(steps=60, evaluate_every=30, jit_compile=jit_compile).run()
    losses = [line["loss"] for line in done.lines if "loss" in line]
    assert losses[-1] < 0.2 * losses[0]
    assert done.lines[-1]["validation_sound_error_rate"] == 0.0
    assert done.trainer.step == 60


def test_the_same_seed_gives_the_same_weights_and_another_one_others(training):
    first, again, other = (
        training(name, seed=seed).run().weights for name, seed in [("a", 7), ("b", 7), ("c", 8)]
    )
    assert same(first, again)
    assert not same(first, other)


def test_a_step_is_adamw_on_the_clipped_gradient_of_the_mean_loss(training):
    rate, clip = 0.03, 0.01
    made = training(clip_limit=clip, learning_rate=rate, warmup_steps=0, schedule="constant")
    batch, before = first_batch(made), made.weights
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(made.task.losses(batch, tf.constant([CONFIG.seed, 0])))
    variables = [variable.value for variable in made.task.model.variables]
    gradients = [tf.convert_to_tensor(each).numpy() for each in tape.gradient(loss, variables)]
    norm = math.sqrt(sum((each.astype(np.float64) ** 2).sum() for each in gradients))
    assert norm > 10 * clip
    made.trainer._advance(stop=False)
    optimizer = made.trainer._step.optimizer
    moments = [each.numpy() for each in optimizer.variables if "momentum" in each.path]
    for old, new, gradient, moment in zip(before, made.weights, gradients, moments, strict=True):
        clipped = gradient * clip / norm
        np.testing.assert_allclose(moment, 0.1 * clipped, rtol=1e-4, atol=1e-9)
        # Both moments are of this gradient alone; Keras adds its 1e-7 before it corrects the bias.
        adam = clipped / (np.abs(clipped) + 1e-7 / math.sqrt(0.001))
        expected = old * (1 - rate * CONFIG.weight_decay) - rate * adam
        np.testing.assert_allclose(new, expected, rtol=1e-4, atol=1e-6)


def test_a_small_gradient_is_not_clipped(training):
    made = training(clip_limit=1e6)
    batch = first_batch(made)
    with tf.GradientTape() as tape:
        loss = tf.reduce_mean(made.task.losses(batch, tf.constant([CONFIG.seed, 0])))
    bias = made.task.model.variables[-1]
    gradient = tape.gradient(loss, bias.value).numpy()
    made.trainer._advance(stop=False)
    moments = [each for each in made.trainer._step.optimizer.variables if "momentum" in each.path]
    np.testing.assert_allclose(moments[-1].numpy(), 0.1 * gradient, rtol=1e-4, atol=1e-9)


def test_dropout_differs_from_step_to_step(training):
    """By the step alone: the same weights and batch have another loss at another step."""
    made = training()
    batch = first_batch(made)
    losses = {
        float(tf.reduce_sum(made.task.losses(batch, tf.constant([CONFIG.seed, step]))))
        for step in range(5)
    }
    assert len(losses) == 5


# Going on.


def test_what_was_interrupted_goes_on_as_if_it_was_not(training, uninterrupted):
    error = interrupt(training(), evaluation=2)
    assert str(error) == f"stopped at step 20 of {STEPS}"
    resumed = training()
    assert resumed.trainer.step == 20
    resumed.run()
    assert same(resumed.weights, uninterrupted.weights)
    assert resumed.trainer.best_step == uninterrupted.trainer.best_step
    assert steps_of(resumed) == steps_of(uninterrupted) == [[4, 8, 12, 16, 20], [10, 20, 23]]


def test_the_signal_to_terminate_stops_as_the_one_from_the_keyboard(training):
    assert str(interrupt(training(), 1, signal.SIGTERM)) == f"stopped at step 10 of {STEPS}"
    assert training().trainer.step == 10


def test_an_interruption_between_two_evaluations_is_as_exact(training, uninterrupted):
    class Crash(Exception):
        pass

    stopped = training()

    def crash(step, numbers):
        if step == 8:
            raise Crash

    stopped.display.step = crash
    with pytest.raises(Crash):
        stopped.run()
    resumed = training()
    assert resumed.trainer.step == 5
    assert same(resumed.run().weights, uninterrupted.weights)


def test_a_crash_after_a_best_evaluation_changes_nothing(training, uninterrupted):
    """The best weights are on the disk then, and the checkpoint to go on from is older."""

    class Crash(Exception):
        pass

    stopped = training(checkpoint_every=7)

    def crash(step, numbers, best):
        raise Crash

    stopped.display.evaluation = crash
    with pytest.raises(Crash):
        stopped.run()
    resumed = training(checkpoint_every=7)
    assert resumed.trainer.step == 7
    assert same(resumed.run().weights, uninterrupted.weights)
    assert steps_of(resumed) == steps_of(uninterrupted)


def steps_of(training):
    """Returns the steps of the lines of training, and those of evaluations."""
    return [
        [line["step"] for line in training.lines if name in line]
        for name in ("loss", "validation_loss")
    ]


def test_what_is_done_is_not_done_again(speller, dataset, uninterrupted):
    again = Training(speller, dataset, CONFIG, uninterrupted.folder)
    assert again.trainer.step == STEPS
    assert same(again.run().weights, uninterrupted.weights)
    assert again.display.notes == []


@pytest.mark.parametrize(
    ("second", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Termination)]
)
def test_the_second_signal_interrupts_at_once_and_handlers_are_put_back(training, second, error):
    made, before = training(), signal.getsignal(signal.SIGINT)

    def evaluate():
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), second)

    with pytest.raises(KeyboardInterrupt) as caught:
        made.run(evaluate)
    assert caught.type is error
    assert signal.getsignal(signal.SIGINT) is before


def test_the_last_checkpoints_are_kept_and_the_best(uninterrupted):
    folder, best_step = uninterrupted.folder, uninterrupted.trainer.best_step
    kept = {path.stem for path in (folder / "checkpoints").glob("*.index")}
    assert kept == {"ckpt-20", f"ckpt-{STEPS}"}
    assert [path.stem for path in (folder / "best").glob("*.index")] == [f"ckpt-{best_step}"]


# What a file may look like after a machine went down while it was written.
TEARS = {
    "cut short": lambda data: data[:-100],
    "cut early": lambda data: data[: len(data) // 3],
    "emptied": lambda data: b"",
    "zeros": lambda data: data[: len(data) // 2] + bytes(len(data) - len(data) // 2),
}


def tear(folder, name, kind, part="data", of="checkpoints"):
    (path,) = (folder / of).glob(f"{name}.{part}*")
    path.write_bytes(TEARS[kind](path.read_bytes()))


@pytest.mark.parametrize("part", ["data", "index"])
@pytest.mark.parametrize("kind", TEARS)
def test_a_torn_checkpoint_is_passed_over_for_the_one_before(
    speller, dataset, uninterrupted, tmp_path, kind, part
):
    shutil.copytree(uninterrupted.folder, tmp_path / "run")
    tear(tmp_path / "run", f"ckpt-{STEPS}", kind, part)
    training = Training(speller, dataset, CONFIG, tmp_path / "run")
    assert training.trainer.step == 20
    (told,) = training.trainer.passed_over
    assert f"ckpt-{STEPS} cannot be read" in told
    assert same(training.run().weights, uninterrupted.weights)


def test_no_list_of_the_checkpoints_can_be_torn(speller, dataset, uninterrupted, tmp_path):
    """They are found by themselves, whatever is in a file where TensorFlow would keep a list."""
    shutil.copytree(uninterrupted.folder, tmp_path / "run")
    for torn in (b"", bytes(99)):
        (tmp_path / "run" / "checkpoints" / "checkpoint").write_bytes(torn)
        training = Training(speller, dataset, CONFIG, tmp_path / "run")
        assert (training.trainer.step, training.trainer.passed_over) == (STEPS, [])
        assert training.lines == uninterrupted.lines


def test_a_torn_checkpoint_takes_no_whole_ones_place(speller, dataset, uninterrupted, tmp_path):
    """Nor does what was half written when a process was killed."""
    shutil.copytree(uninterrupted.folder, tmp_path / "run")
    tear(tmp_path / "run", f"ckpt-{STEPS}", "cut short")
    folder = tmp_path / "run" / "checkpoints"
    (folder / "ckpt-21_temp").mkdir()
    Training(speller, dataset, replace(CONFIG, steps=22), tmp_path / "run").run()
    assert {path.stem for path in folder.glob("ckpt-*")} == {"ckpt-20", "ckpt-22"}


def test_torn_checkpoints_only_are_an_error_that_names_them(
    speller, dataset, uninterrupted, tmp_path
):
    shutil.copytree(uninterrupted.folder, tmp_path / "run")
    for name in ("ckpt-20", f"ckpt-{STEPS}"):
        tear(tmp_path / "run", name, "cut short")
    with pytest.raises(DamagedCheckpoint, match="ckpt-20 cannot be read"):
        Training(speller, dataset, CONFIG, tmp_path / "run")


# When to stop.


def test_training_stops_when_no_evaluation_is_better_and_the_best_weights_remain(training):
    made, seen = training(steps=200, evaluate_every=3, patience=2), []
    rates = iter([0.5, 0.4, 0.2, 0.3, 0.2, 0.1])

    def evaluate():
        seen.append(made.weights)
        return {"sound_error_rate": next(rates), "loss": 0.0}

    made.run(evaluate)
    assert (made.trainer.step, made.trainer.best_step) == (15, 9)
    assert same(made.weights, seen[2])
    assert not same(made.weights, seen[4])


def test_what_is_not_a_number_is_the_worst_of_evaluations(training):
    values = iter([math.nan, 0.5, 0.4, math.nan, math.nan])
    made = training(steps=200, evaluate_every=3, patience=2, average=2)
    made.run(lambda: {"sound_error_rate": next(values), "loss": 0.0})
    assert (made.trainer.step, made.trainer.best_step) == (15, 9)
    assert {path.stem for path in (made.folder / "best").glob("*.index")} == {"ckpt-6", "ckpt-9"}


def test_patience_counts_on_after_an_interruption(training):
    changed = {"steps": 200, "evaluate_every": 3, "patience": 2}
    made, rates = training(**changed), iter([0.2, 0.3, 0.4])

    def evaluate():
        rate = next(rates)
        if rate == 0.3:
            os.kill(os.getpid(), signal.SIGINT)
        return {"sound_error_rate": rate, "loss": 0.0}

    with pytest.raises(Interrupted):
        made.run(evaluate)
    again = training(**changed).run(evaluate)
    assert (again.trainer.step, again.trainer.best_step) == (9, 3)


def test_a_run_stopped_early_stays_stopped(training):
    changed = {"steps": 200, "evaluate_every": 3, "patience": 1}
    numbers = {"sound_error_rate": 0.5, "loss": 0.0}
    training(**changed).run(lambda: numbers)
    again = training(**changed).run(lambda: pytest.fail("nothing is left to evaluate"))
    assert again.trainer.step == 6


def test_a_loss_that_is_not_a_number_stops_with_its_step_and_batch(
    training, speller, records, words
):
    class Failing(speller):
        def losses(self, batch, dropout_seed=None):
            losses = super().losses(batch, dropout_seed)
            unlucky = tf.reduce_all(batch["text"][:, :2] == [5, 4], axis=1)  # words in ed…
            return tf.where(unlucky, float("nan"), losses)

    some = [word for word in words(200) if not word.startswith("ed")]
    data = records([(word, word.upper()) for word in [*some, "edab"]])
    changed = {"steps": 100, "evaluate_every": 100, "checkpoint_every": 2}
    made = training(task=Failing, data=data, **changed)
    with pytest.raises(NotFinite, match=r"one more by step \d+, of 6 examples") as caught:
        made.run()
    assert "'text': [" in str(caught.value)
    step = made.trainer.step
    again = training(task=Failing, data=data, **changed)
    assert again.trainer.step == step - 1 - (step - 1) % 2
    assert all(np.isfinite(weights).all() for weights in again.weights)
    with pytest.raises(NotFinite, match=f"by step {step}, "):
        again.run()


def test_the_best_weights_come_back_in_a_new_task(speller, uninterrupted):
    task = speller()
    restore_best(weights_of(task), uninterrupted.folder)
    weights = [variable.numpy() for variable in task.model.variables]
    assert same(weights, uninterrupted.weights)


def test_the_weights_of_another_model_are_refused(speller, uninterrupted):
    told = r"000:embedding:embeddings is \[6, 7\] in it and \[6, 8\] here"
    with pytest.raises(OtherModel, match=told):
        restore_best(weights_of(speller(units=8)), uninterrupted.folder)


def test_a_torn_best_checkpoint_is_told_and_left_out_of_the_mean(training):
    values, seen = iter([0.3, 0.2, 0.1]), []
    made = training(steps=9, evaluate_every=3, average=3)

    def evaluate():
        seen.append(made.weights)
        if len(seen) == 3:
            tear(made.folder, "ckpt-6", "cut short", of="best")
        return {"sound_error_rate": next(values), "loss": 0.0}

    made.run(evaluate)
    torn, told = made.display.notes[-2:]
    assert "best/ckpt-6 must be whole" in torn
    assert told == "train: the final weights are the mean of the other 2"
    for weights, first, last in zip(made.weights, seen[0], seen[2], strict=True):
        np.testing.assert_allclose(weights, (first.astype(np.float64) + last) / 2, rtol=1e-6)


def test_the_last_weights_take_the_place_of_torn_best_ones(speller, uninterrupted, tmp_path):
    shutil.copytree(uninterrupted.folder, tmp_path / "run")
    tear(tmp_path / "run", f"ckpt-{STEPS}", "cut short")
    for path in (tmp_path / "run" / "best").glob("*.index"):
        tear(tmp_path / "run", path.stem, "emptied", "index", of="best")
    task = speller()
    best, last, told = restore_best(weights_of(task), tmp_path / "run")
    assert "must be whole" in best
    assert f"checkpoints/ckpt-{STEPS} must be whole" in last
    assert told == "the final weights are those of step 20, the last ones saved"
    saved = tf.train.load_checkpoint(str(uninterrupted.folder / "checkpoints" / "ckpt-20"))
    for name, variable in weights_of(task).items():
        right = saved.get_tensor(f"weights/{name}/.ATTRIBUTES/VARIABLE_VALUE")
        np.testing.assert_array_equal(variable, right)
    tear(tmp_path / "run", "ckpt-20", "emptied")
    with pytest.raises(DamagedCheckpoint, match=r"best/ckpt.*; .*ckpt-23 must.*; .*ckpt-20 must"):
        restore_best(weights_of(task), tmp_path / "run")


def test_a_folder_without_a_model_is_an_error_that_says_so(speller, tmp_path):
    with pytest.raises(FileNotFoundError, match="must hold a trained model"):
        restore_best(weights_of(speller()), tmp_path)


@pytest.fixture
def unlucky(speller, records, words):
    """A task whose loss is not a number in batches with `edab`, and its records: one has it."""

    class Unlucky(speller):
        def losses(self, batch, dropout_seed=None):
            losses = super().losses(batch, dropout_seed)
            those = tf.reduce_all(batch["text"][:, :2] == [5, 4], axis=1)  # words in ed…
            return tf.where(those, float("nan"), losses)

    some = [word for word in words(97) if not word.startswith("ed")]
    return Unlucky, records([(word, word.upper()) for word in [*some, "edab"]])


def test_steps_that_are_not_finite_are_skipped_and_counted_up_to_the_limit(training, unlucky):
    task, data = unlucky
    changed = {"log_every": 1, "evaluate_every": 100, "steps": 100, "nonfinite_limit": 2}
    made = training(task=task, data=data, **changed)
    with pytest.raises(NotFinite, match="At most 2 steps may"):
        made.run()
    skips = [line["step"] for line in made.lines if line["skipped_steps"]]
    assert len(skips) == 2
    assert all(np.isfinite(weights).all() for weights in made.weights)
    assert int(made.trainer._step.optimizer.iterations) == made.trainer.step - 3


def test_in_float16_the_loss_scale_finds_its_place(training):
    keras.config.set_dtype_policy("mixed_float16")
    try:
        done = training(steps=60, evaluate_every=60, precision="float16").run()
    finally:
        keras.config.set_dtype_policy("float32")
    losses = [line["loss"] for line in done.lines if line.get("loss")]
    assert losses[-1] < 0.2 * losses[0]
    assert sum(line.get("skipped_steps", 0) for line in done.lines) == 0


def test_accumulated_batches_make_the_step_of_one_large_batch(speller, words):
    """Of any sizes: the mean is over all their examples."""
    config = replace(CONFIG, optimizer="sgd", weight_decay=0.0, beta_1=0.0, warmup_steps=0)

    def weights(accumulate, sizes):
        keras.utils.set_random_seed(1)
        task, start, some = speller(rate=0.0), 0, words(12)
        step = TrainStep(task, replace(config, accumulate=accumulate), strategies.choose("auto"))
        batches = []
        for size in sizes:
            texts = tf.constant(some[start : start + size])
            batches.append(pad(task.features({"text": texts, "sound": tf.strings.upper(texts)})))
            start += size
        step((tuple(batches),), stop=False)
        return [variable.numpy() for variable in task.model.variables]

    for a, b in zip(weights(1, [12]), weights(3, [5, 1, 6]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-7)


def test_several_steps_a_call_are_the_same_steps(training, uninterrupted):
    assert same(training(steps_per_call=3).run().weights, uninterrupted.weights)


def test_the_moving_average_is_what_is_evaluated_and_kept(training):
    made, seen = training(steps=20, ema=0.9), []

    def evaluate():
        seen.append(made.weights)
        return {"sound_error_rate": 1.0 / len(seen), "loss": 0.0}

    made.run(evaluate)
    averages = [each.numpy() for each in made.trainer._step.average.averages]
    assert same(seen[-1], averages)
    assert same(made.weights, averages)


@pytest.mark.parametrize(("select", "kept"), [("best", [2, 4]), ("last", [5, 6])])
def test_the_final_weights_are_the_mean_of_those_selected(training, select, kept):
    """Of six evaluations; interrupted after the fifth, when all but one are to come again."""
    rates, seen = [0.5, 0.2, 0.4, 0.1, 0.6, 0.3], {}
    changed = {"steps": 12, "evaluate_every": 2, "checkpoint_every": 7}
    changed |= {"average": 2, "select": select}

    def run(made, crash_at=None):
        def evaluate():
            number = made.trainer.step // 2
            seen[number] = made.weights
            return {"sound_error_rate": rates[number - 1], "loss": 0.0}

        def crash(step, numbers, best):
            if step == crash_at:
                raise KeyboardInterrupt

        made.display.evaluation = crash
        made.run(evaluate)
        return made

    with pytest.raises(KeyboardInterrupt):
        run(training(**changed), crash_at=10)
    done = run(training(**changed))
    means = [(a.astype(np.float64) + b) / 2 for a, b in zip(*(seen[n] for n in kept), strict=True)]
    for weights, mean in zip(done.weights, means, strict=True):
        np.testing.assert_allclose(weights, mean, rtol=1e-6)
    files = {path.stem for path in (done.folder / "best").glob("*.index")}
    assert files == {f"ckpt-{2 * number}" for number in kept}
    assert done.trainer.best_step == 8


def test_the_rate_is_reduced_on_a_plateau_and_stays_so(training):
    rates = iter([0.5, 0.4, 0.4, 0.4, 0.4, 0.4, 0.3, 0.3, 0.3])
    changed = {"steps": 18, "evaluate_every": 2, "schedule": "plateau", "learning_rate": 0.4}
    changed |= {"plateau_patience": 2, "plateau_factor": 0.1, "warmup_steps": 0}
    made = training(**changed, log_every=2)
    made.run(lambda: {"sound_error_rate": next(rates), "loss": 0.0})
    shown = [line["learning_rate"] for line in made.lines if "learning_rate" in line]
    # After evaluations 4 and 6 (none better since the second), and after the ninth.
    expected = [0.4] * 4 + [0.04] * 2 + [0.004] * 3
    assert shown == pytest.approx(expected, rel=1e-5)
    again = training(**changed, log_every=2)
    assert again.trainer._step.learning_rate == pytest.approx(0.0004, rel=1e-5)


def test_any_number_of_an_evaluation_may_select_and_large_ones_may_be_good(training, speller):
    class Accurate(speller):
        higher_is_better = frozenset({"accuracy"})

    made = training(task=Accurate, steps=9, evaluate_every=3, metric="accuracy")
    accuracies = iter([0.5, 0.7, 0.6])
    made.run(lambda: {"sound_error_rate": 0.0, "accuracy": next(accuracies)})
    assert made.trainer.best_step == 6


def test_a_profile_is_of_as_many_steps_as_asked_for(speller, dataset, tmp_path, profiled):
    """In calls of two at most: after 2 + 2 + 1, of 1 + 2."""
    config = replace(CONFIG, steps=12, steps_per_call=2, log_every=100, checkpoint_every=100)
    made = Training(speller, dataset, config, tmp_path / "run", profile=3).run()
    assert profiled(made.folder) == [5, 6]
    assert made.trainer.step == 12


# A disk that is full.


def test_a_checkpoint_that_cannot_be_written_loses_none_before(training, uninterrupted):
    """A limit on the size of files stands in for the disk: the weights do not fit any more."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    made = training()
    evaluate = iter(range(2))

    def fill():
        if next(evaluate) == 1:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, limits[1]))
        return made.evaluate()

    try:
        with pytest.raises(CheckpointNotSaved, match="Checkpoints before it are"):
            made.run(fill)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    resumed = training()
    assert resumed.trainer.step == 15
    assert same(resumed.run().weights, uninterrupted.weights)


# The learning rate.


def rate(step, **changed):
    config = replace(CONFIG, **{"steps": 100, "learning_rate": 0.4, "warmup_steps": 20, **changed})
    return float(learning_rate(config, step))


SCHEDULES = ["constant", "cosine", "inverse_sqrt"]


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_the_learning_rate_rises_in_a_line_to_its_highest(schedule):
    for step in range(20):
        expected = 0.4 * (step + 1) / 20
        assert rate(step, schedule=schedule) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_warm_up_the_first_rate_is_near_the_highest(schedule):
    assert rate(0, schedule=schedule, warmup_steps=0) == pytest.approx(0.4, rel=1e-3)


def test_constant_stays():
    assert [rate(step, schedule="constant") for step in (20, 57, 99)] == pytest.approx([0.4] * 3)


def test_cosine_is_half_of_it_half_way_and_ends_at_zero():
    assert rate(59, schedule="cosine") == pytest.approx(0.2)
    assert rate(39, schedule="cosine") == pytest.approx(0.4 * (2 + math.sqrt(2)) / 4)
    assert rate(99, schedule="cosine") == pytest.approx(0.0, abs=1e-8)
    assert rate(150, schedule="cosine") == pytest.approx(0.0, abs=1e-8)


def test_inverse_square_root_halves_in_four_times_the_steps():
    assert rate(79, schedule="inverse_sqrt") == pytest.approx(0.2)
    assert rate(319, schedule="inverse_sqrt") == pytest.approx(0.1)


def test_warm_up_may_be_longer_than_the_training():
    assert rate(9, schedule="cosine", steps=10) == pytest.approx(0.2)


# The log.


def test_numbers_are_written_by_step(tmp_path):
    log = MetricsLog(tmp_path, 0)
    log.write(3, loss=0.25, padding_share=0.5)
    log.write(6, loss=0.125)
    expected = [{"step": 3, "loss": 0.25, "padding_share": 0.5}, {"step": 6, "loss": 0.125}]
    assert read_metrics(tmp_path) == expected
    assert len(list((tmp_path / "events").iterdir())) == 1


def test_no_metrics_are_none(tmp_path):
    assert read_metrics(tmp_path) == []


def test_a_torn_last_line_is_left_out_and_written_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    whole = json.dumps({"step": 3, "loss": 0.25})
    for torn in ("{", '{"st', '{"step": 6, "lo', '{"step": 6, "loss": 0.1'):
        path.write_text(f"{whole}\n{torn}")
        assert read_metrics(tmp_path) == [{"step": 3, "loss": 0.25}]
    MetricsLog(tmp_path, 3).write(6, loss=0.125)
    assert [line["step"] for line in read_metrics(tmp_path)] == [3, 6]


def test_steps_to_be_done_again_are_dropped(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in (3, 6, 9):
        log.write(step, loss=1.0 / step)
    MetricsLog(tmp_path, 6)
    assert [line["step"] for line in read_metrics(tmp_path)] == [3, 6]


def test_a_log_that_cannot_be_written_anew_stays_as_it_was(tmp_path):
    """A limit on the size of files stands in for a full disk."""
    log = MetricsLog(tmp_path, 0)
    for step in (3, 6, 9):
        log.write(step, loss=1.0 / step)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10, limits[1]))
    try:
        with pytest.raises(OSError, match="too large"):
            MetricsLog(tmp_path, 6)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [line["step"] for line in read_metrics(tmp_path)] == [3, 6, 9]
