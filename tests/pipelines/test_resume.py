"""A run killed at any moment, and gone on with, ends to the last bit as one that was not."""

import functools
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

STEPS = 120
EVERY = 7  # steps between checkpoints
SIZES = {
    "g2p_transducer": """
        --data.train toy.tsv --data.batch_tokens 48 --data.buckets 3
        --model.embedding_units 7 --model.encoder_units 13 --model.encoder_layers 1
        --model.predictor_units 11 --model.joint_units 17 --model.dropout 0.2
    """.split(),
    "char_lm": """
        --data.train toy.txt --data.batch_size 3 --task.chunk 8
        --model.embedding_units 7 --model.units 13 --model.dropout 0.2
    """.split(),
}
TRAIN = f"""
    --train.steps {STEPS} --train.accumulate 2 --train.ema 0.9 --train.schedule plateau
    --train.plateau_patience 1 --train.patience 100 --train.warmup_steps 4
    --train.log_every 1 --train.evaluate_every 25 --train.checkpoint_every {EVERY}
    --train.no_jit_compile --export.verify_examples 2
""".split()
COMMAND = [sys.executable, "-m", "pipelines.cli", "run"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """Where the commands run; holds a TSV and a text."""
    place = tmp_path_factory.mktemp("place")
    lines = (f"{word}\t{' '.join(word.upper())}\n" for word in words(300))
    (place / "toy.tsv").write_text("".join(lines))
    (place / "toy.txt").write_text("\n".join(words(300)) + "\n")
    return place


def start(place, job, folder, *options):
    line = [*COMMAND, job, "--folder", folder, *SIZES[job], *TRAIN, *options]
    return subprocess.Popen(line, cwd=place, stderr=subprocess.PIPE, text=True)


@pytest.fixture(scope="module")
def finish(place, read_until):
    """Runs to the end of the training, and returns the folder."""

    def run_to_the_end(job, folder, *options):
        with start(place, job, folder, *options) as run:
            read_until(run, "train: done")
            run.kill()
        return place / folder

    return run_to_the_end


@pytest.fixture(scope="module")
def uninterrupted(finish):
    """Returns the folder of a job's run that nothing has interrupted."""

    @functools.cache
    def run(job, *options):
        return finish(job, "-".join(("uninterrupted", job, *options)), *options)

    return run


@pytest.fixture(scope="module")
def kill_while_training(place, read_until):
    """Kills a run so many lines and seconds after its training began; says if it still trained."""

    def kill(job, folder, lines, seconds, *options):
        with start(place, job, folder, *options) as run:
            read_until(run, "train: on")
            for _ in range(lines):
                run.stderr.readline()
            time.sleep(seconds)
            run.kill()
        return "train" not in json.loads((place / folder / "stages.json").read_text())

    return kill


def test_sigterm_saves_and_has_an_exit_code_of_its_own(place, read_until):
    with start(place, "char_lm", "terminated", "--train.steps", "100000") as run:
        read_until(run, "step 12 ")
        run.terminate()
        told = run.stderr.read()
    assert run.returncode == 143
    (step,) = re.findall(r"stopped at step (\d+) of 100000; the same command goes on from", told)
    assert (place / "terminated" / "checkpoints" / f"ckpt-{step}.index").exists()


@pytest.mark.parametrize(
    ("job", "kills", "options"),
    [
        ("char_lm", 3, ()),
        pytest.param("g2p_transducer", 3, (), marks=pytest.mark.slow),
        pytest.param("g2p_transducer", 20, (), marks=pytest.mark.slow),
        pytest.param("g2p_transducer", 1, ("--train.jit_compile",), marks=pytest.mark.slow),
    ],
)
def test_kills_at_random_moments_change_no_bit(
    place, kill_while_training, finish, uninterrupted, job, kills, options
):
    """Counted in the lines of a run, which are the same however busy the machine is.

    The first one comes after a checkpoint, and all together before the last step.
    """
    folder, chance = f"killed-{job}-{kills}", random.Random(kills)
    most = max(STEPS // kills, EVERY + 3)
    lines = [EVERY + 3, *(chance.randrange(most) for _ in range(kills - 1))]
    for some in lines:
        assert kill_while_training(job, folder, some, chance.uniform(0, 0.03), *options)
        assert list((place / folder / "checkpoints").glob("ckpt-*.index"))
    assert_same(finish(job, folder, *options), uninterrupted(job, *options))


def test_a_service_changes_no_bit_though_its_worker_is_killed_and_then_the_run(
    place, uninterrupted, read_until
):
    """It goes on without one. The other worker ends with the run."""
    folder, metrics = "served", "metrics.jsonl"
    with start(place, "char_lm", folder, "--data.service", "2") as run:
        told = read_until(run, "step 4 of")
        assert re.search(
            r"batches by the tf.data service at localhost:\d+, workers: 2; in their order", told
        )
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text()
        killed, other = (int(pid) for pid in children.split())
        os.kill(killed, signal.SIGKILL)
        told = read_until(run, "train: tf.data service: lost data worker 0 at localhost:")
        assert "ended by SIGKILL" in told
        read_until(run, "step ")
        run.kill()
    until = time.monotonic() + 60
    while Path(f"/proc/{other}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{other}").exists()
    begun = (place / folder / metrics).read_bytes()
    assert begun.count(b"\n") > 4
    assert (uninterrupted("char_lm") / metrics).read_bytes().startswith(begun)


def assert_same(killed, whole):
    """Compares, to the last bit, what two runs have logged and saved at last."""
    name = "metrics.jsonl"
    assert (killed / name).read_bytes() == (whole / name).read_bytes()
    last = tensors(killed / "checkpoints" / f"ckpt-{STEPS}")
    right = tensors(whole / "checkpoints" / f"ckpt-{STEPS}")
    assert last.keys() == right.keys()
    differing = [key for key in right if not np.array_equal(last[key], right[key])]
    assert differing == []


def tensors(path):
    """Returns what a checkpoint holds."""
    reader = tf.train.load_checkpoint(str(path))
    types = reader.get_variable_to_dtype_map()
    keys = [key for key in types if key != "_CHECKPOINTABLE_OBJECT_GRAPH"]
    assert len(keys) > 30
    return {key: reader.get_tensor(key) for key in keys}
