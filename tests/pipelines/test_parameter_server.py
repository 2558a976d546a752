"""Workers and a parameter server, all in a process of its own: it cannot leave its cluster."""

import json
import subprocess
import sys

import numpy as np
import pytest

STEPS = 6
ADAM = {"optimizer": "adamw", "learning_rate": 0.02}
CASES = {
    "steps": ADAM | {"weight_decay": 0.1, "ema": 0.9, "clip": "global_norm", "schedule": "cosine"},
    "steps of two batches, three a call": {
        **{"accumulate": 2, "steps_per_call": 3},
        **{"beta_1": 0.9, "clip": "value", "gradient_noise": 0.01, "l2": 0.01},
    },
    "bfloat16, compiled": {"precision": "bfloat16", "jit_compile": True},
}
# Trains by a strategy, dropout and all, and prints what became of it in each case.
PROGRAM = """
import json
import sys
from dataclasses import replace

import keras
import numpy as np
import tensorflow as tf

from keras_models.frontends.padding import LENGTHS
from keras_models.layers.dropout import dropout
from pipelines import strategies
from pipelines.cluster import Cluster, free_ports
from pipelines.job import Train
from pipelines.step import Totals, TrainStep

workers, steps, cases = json.loads(sys.argv[1])
tf.config.threading.set_inter_op_parallelism_threads(2 * (workers + 2))  # all share them
plain = Train(
    steps=steps,
    optimizer="sgd",
    beta_1=0.0,
    learning_rate=0.1,
    schedule="constant",
    warmup_steps=0,
    clip="none",
    jit_compile=False,
)


class Letters(keras.layers.Layer):
    def __init__(self):
        super().__init__()
        self.embedding, self.scores = keras.layers.Embedding(9, 7), keras.layers.Dense(9)
        self.embedding.build()
        self.scores.build((None, 7))
        self.built = True


class Task:  # says the letter that comes next
    def __init__(self):
        self.model = Letters()

    def losses(self, batch, dropout_seed=None):
        known = dropout(self.model.embedding(batch["text"]), 0.1, dropout_seed)
        scores = tf.cast(self.model.scores(known), tf.float32)
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits((batch["text"] + 1) % 9, scores)
        return tf.reduce_sum(losses, axis=1)

    def weights(self, batch):
        return tf.ones_like(batch["text" + LENGTHS])


def batch(number):
    random = np.random.default_rng(number)
    count = 3 + number % 3
    text = tf.constant(random.integers(0, 9, (count, 5)), tf.int32)
    return {"text": text, "text" + LENGTHS: tf.fill([count], 5)}


def trained(strategy, changed):
    train = replace(plain, **changed)
    policy = train.precision if train.precision == "float32" else f"mixed_{train.precision}"
    keras.config.set_dtype_policy(policy)
    keras.utils.set_random_seed(3)
    with strategy.scope():
        task = Task()
    step = TrainStep(task, train, strategy)
    batches = [batch(number) for number in range(steps * train.accumulate)]
    groups = [
        tuple(batches[i * train.accumulate : (i + 1) * train.accumulate]) for i in range(steps)
    ]
    each = train.steps_per_call
    totals = [step(tuple(groups[i : i + each]), stop=False)[0] for i in range(0, steps, each)]
    totals = [Totals(*map(float, call)) for call in [*totals, step.join()]]
    averages = [] if step.average is None else step.average.averages
    values = [variable.numpy().tolist() for variable in [*task.model.variables, *averages]]
    done = [int(step.step), int(step.optimizer.iterations.value)]
    sums = np.sum(totals, axis=0).tolist()
    return {"values": values, "totals": totals, "sums": sums, "done": done}


def cluster():
    ports = [f"localhost:{port}" for port in free_ports(workers + 2)]
    addresses = {"chief": ports[:1], "ps": ports[1:2], "worker": ports[2:]}
    others = [("ps", 0), *(("worker", index) for index in range(workers))]
    servers = [strategies.serve(Cluster(addresses, *each)) for each in others]
    return servers, strategies.choose("parameter_server", Cluster(addresses, "chief", 0))


alone = {name: trained(strategies.choose("one_device"), case) for name, case in cases.items()}
servers, strategy = cluster()
served = {name: trained(strategy, case) for name, case in cases.items()}
print(json.dumps([strategies.describe(strategy), alone, served]))
"""


def run(workers, steps, cases):
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps([workers, steps, cases])],
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def one_worker():
    """What one worker did, and one device."""
    return run(1, STEPS, CASES)


@pytest.mark.parametrize("case", CASES)
def test_one_worker_does_what_one_device_does(one_worker, case):
    """With dropout, of which a step's number is the seed."""
    _, alone, served = one_worker
    for own, right in zip(served[case]["values"], alone[case]["values"], strict=True):
        assert np.linalg.norm(np.subtract(own, right)) <= 1e-6 * np.linalg.norm(right)
    np.testing.assert_allclose(served[case]["sums"], alone[case]["sums"], rtol=1e-6)
    assert served[case]["done"] == alone[case]["done"] == [STEPS, STEPS]


def test_steps_are_given_before_those_before_them_are_done(one_worker):
    """Which is why what a call returns is of earlier ones, and the last of them are waited for."""
    _, alone, served = one_worker
    first, *_, last = (totals[2] for totals in served["steps"]["totals"])  # examples
    assert (first, alone["steps"]["totals"][-1][2]) == (0, 0)
    assert last > 3


def test_two_workers_lose_no_batch_and_no_update_and_learn():
    steps = 60
    name, alone, served = run(2, steps, {"Adam": ADAM})
    assert name == "parameter_server, 2 workers and 1 server"
    assert served["Adam"]["done"] == [steps, steps]
    np.testing.assert_array_equal(served["Adam"]["sums"][1:], alone["Adam"]["sums"][1:])
    totals = [totals for totals in served["Adam"]["totals"] if totals[1]]
    early, late = (np.sum(some, axis=0) for some in (totals[:20], totals[-20:]))
    assert late[0] / late[1] < 0.7 * early[0] / early[1]
