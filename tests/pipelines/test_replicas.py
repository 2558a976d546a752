"""What several replicas do is what one does."""

import functools
from dataclasses import replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_models.frontends.padding import pad
from pipelines import strategies
from pipelines.job import Train
from pipelines.step import TrainStep

SIZES = (7, 5, 3, 8, 4, 3, 6, 5, 3, 7)  # examples in a batch, most of which do not divide
PLAIN = Train(
    optimizer="sgd",
    beta_1=0.0,
    learning_rate=0.5,
    schedule="constant",
    warmup_steps=0,
    clip="none",
    jit_compile=False,
)
CASES = {
    "plain": {},
    "momentum": {"beta_1": 0.9},
    "global norm": {"clip": "global_norm", "clip_limit": 0.05},
    "norm": {"clip": "norm", "clip_limit": 0.03},
    "value": {"clip": "value", "clip_limit": 0.004},
    "accumulation": {"accumulate": 2},
    "several steps a call": {"steps_per_call": 5},
    "average": {"ema": 0.9},
    "decay": {"optimizer": "adamw", "weight_decay": 0.1, "learning_rate": 0.01},
    "l2": {"l2": 0.01},
    "noise": {"gradient_noise": 0.01},
}


def strategy_of(replicas):
    if replicas == 1:
        return strategies.choose("one_device")
    devices = tf.config.list_logical_devices("CPU")[:replicas]
    return strategies.mirrored(devices)


@pytest.fixture(scope="module")
def trained(speller, words):
    """Returns the weights after ten batches on so many replicas, and the totals of each call."""

    def run(replicas, task=speller, **changed):
        config = replace(PLAIN, **changed)
        strategy = strategy_of(replicas)
        keras.utils.set_random_seed(3)
        with strategy.scope():
            made = task(rate=0.0)
        step = TrainStep(made, config, strategy)
        batches = [batch_of(made, words(sum(SIZES)), i) for i in range(len(SIZES))]
        groups = [tuple(batches[i : i + config.accumulate]) for i in grouped(config.accumulate)]
        each = config.steps_per_call
        calls = [tuple(groups[i : i + each]) for i in range(0, len(groups), each)]
        totals = [[float(t) for t in step(call, stop=False)[0]] for call in calls]
        averages = [] if step.average is None else step.average.averages
        values = [variable.numpy() for variable in [*made.model.variables, *averages]]
        return values, totals

    return run


@pytest.fixture(scope="module")
def trained_on_one(trained):
    """Returns the same of one replica in a case."""
    return functools.cache(lambda case: trained(1, **CASES[case]))


def grouped(accumulate):
    return range(0, len(SIZES), accumulate)


def batch_of(task, words, i):
    start = sum(SIZES[:i])
    some = tf.constant(words[start : start + SIZES[i]])
    return pad(task.features({"text": some, "sound": tf.strings.upper(some)}))


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("replicas", [2, 3])
def test_replicas_do_what_one_does(trained, trained_on_one, case, replicas):
    one, its_totals = trained_on_one(case)
    several, their_totals = trained(replicas, **CASES[case])
    for a, b in zip(one, several, strict=True):
        assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(a)
    np.testing.assert_allclose(their_totals, its_totals, rtol=1e-6)


def test_unequal_weights_are_divided_by_their_sum_over_replicas(trained, trained_on_one, speller):
    class PerSound(speller):
        def weights(self, batch):
            return tf.cast(batch["sound_lengths"], tf.float32)

    one, its_totals = trained(1, task=PerSound)
    several, their_totals = trained(3, task=PerSound)
    for a, b in zip(one, several, strict=True):
        assert np.linalg.norm(a - b) <= 1e-6 * np.linalg.norm(a)
    np.testing.assert_allclose(their_totals, its_totals, rtol=1e-6)
    by_example, _ = trained_on_one("plain")
    assert any(np.linalg.norm(a - b) > 1e-3 for a, b in zip(one, by_example, strict=True))
