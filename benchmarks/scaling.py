"""Training steps of two workers with a core each, beside one worker with one core.

    python -m benchmarks.scaling [--examples N ...] [--rounds N]

Model, optimizer and clipping are those of the job `g2p_transducer`, on synthetic symbols; dropout
is off, so that losses can be compared: they are first. Then are timed, in turns:

    one     a worker alone, on the whole batch
    half    a worker alone, on the first half of the batch: what two would take if their strategy
            cost nothing
    two     two workers of the strategy `multi_worker`, on the whole batch
"""

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack
from dataclasses import replace

import numpy as np

INPUTS, OUTPUTS, WIDTH = 31, 40, 8  # symbols, and the length of the longest
TOLERANCE = 1e-4
STEPS = 5  # in a round


def main():
    """Compares losses, prints a table and, last, a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--examples", nargs="+", type=int, default=[64, 320], help="in a batch")
    parser.add_argument("--rounds", type=int, default=10, help="of five steps of each side")
    parser.add_argument("--worker", nargs=2, type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(*options.worker)
        return
    rows = []
    for examples in options.examples:
        seconds = compare(examples, options.rounds)
        for peer, what in (("one", "the batch alone"), ("half", "half of it alone")):
            print(
                f"{examples} examples: {what} {seconds[peer] * 1e3:.1f} ms, two workers "
                f"{seconds['two'] * 1e3:.1f} ms, {seconds[peer] / seconds['two']:.2f} times as fast"
            )
            rows.append(
                {
                    "case": f"{peer} ({examples} examples)",
                    "ours": seconds["two"],
                    "peer": seconds[peer],
                    "ratio": seconds[peer] / seconds["two"],
                }
            )
    print(json.dumps({"rows": rows}))


def compare(examples, rounds):
    """Returns the seconds of a step of each side, the median of so many rounds."""
    with ExitStack() as processes:
        sides = {
            "one": [processes.enter_context(start(0, examples))],
            "half": [processes.enter_context(start(0, examples // 2))],
            "two": [
                processes.enter_context(start(core, examples, config))
                for core, config in enumerate(two_workers())
            ],
        }
        losses = {name: ask(workers)[0] for name, workers in sides.items()}
        if not np.isclose(losses["one"], losses["two"], rtol=TOLERANCE):
            raise SystemExit(f"Losses must be the same. Received: {losses}")
        seconds = {name: [] for name in sides}
        for _ in range(rounds):
            for name, workers in sides.items():
                seconds[name].append(ask(workers)[1])
        for workers in sides.values():
            for worker in workers:
                worker.stdin.close()
    return {name: statistics.median(each) for name, each in seconds.items()}


def two_workers():
    """Returns TF_CONFIG of two workers on this machine."""
    with ExitStack() as servers:
        free = [servers.enter_context(socket.create_server(("", 0))) for _ in range(2)]
        addresses = [f"localhost:{each.getsockname()[1]}" for each in free]
    tasks = [{"type": "worker", "index": index} for index in range(2)]
    return [json.dumps({"cluster": {"worker": addresses}, "task": task}) for task in tasks]


def start(core, examples, config=""):
    """Returns a process on one core."""
    return subprocess.Popen(
        [sys.executable, "-m", "benchmarks.scaling", "--worker", str(core), str(examples)],
        env={**os.environ, "TF_CONFIG": config, "TF_CPP_MIN_LOG_LEVEL": "3"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def ask(workers):
    """Returns the loss and the seconds of a step, of the slowest of some workers."""
    for worker in workers:
        worker.stdin.write("\n")
        worker.stdin.flush()
    answers = [json.loads(worker.stdout.readline()) for worker in workers]
    return answers[0]["loss"], max(each["seconds"] for each in answers)


def work(core, examples):
    """Does some steps for each line of standard input, on one core."""
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, {cores[core]})
    step, batch = prepare(examples)
    for _ in sys.stdin:
        started = time.perf_counter()
        for _ in range(STEPS):
            totals, _ = step(((batch,),), False)
        loss = float(totals.loss / totals.weight)
        seconds = (time.perf_counter() - started) / STEPS
        print(json.dumps({"loss": loss, "seconds": seconds}), flush=True)


def prepare(examples):
    """Returns the trainer's step and a batch."""
    import keras
    import tensorflow as tf

    from keras_models.frontends.padding import LENGTHS
    from pipelines import jobfile, strategies
    from pipelines.cluster import Cluster
    from pipelines.step import TrainStep

    cluster = Cluster.of_environment()
    strategy = strategies.choose("multi_worker" if cluster else "one_device", cluster)
    job = jobfile.load("g2p_transducer").job()
    keras.utils.set_random_seed(1)
    with strategy.scope():
        model = replace(job.model, dropout=0.0).build(INPUTS, OUTPUTS)
    names = ("text", "pronunciation")

    class Task:
        """What a step asks of a task."""

        def __init__(self):
            self.model = model

        def losses(self, batch, dropout_seed=None):
            columns = (batch[each] for name in names for each in (name, name + LENGTHS))
            return model.losses(*columns, dropout_seed)

        def weights(self, batch):
            return tf.ones_like(batch["text" + LENGTHS])

    random, batch = np.random.default_rng(0), {}
    for name, size in zip(names, (INPUTS, OUTPUTS), strict=True):
        lengths = random.integers(3, WIDTH + 1, examples)
        lengths[0] = WIDTH
        symbols = random.integers(1, size, (examples, WIDTH))
        batch[name] = tf.constant(symbols * (np.arange(WIDTH) < lengths[:, None]), tf.int32)
        batch[name + LENGTHS] = tf.constant(lengths, tf.int32)
    return TrainStep(Task(), job.train, strategy), batch


if __name__ == "__main__":
    main()
