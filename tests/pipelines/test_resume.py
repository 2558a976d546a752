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

STEPS = 240
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
    --train.log_every 1 --train.evaluate_every 50 --train.checkpoint_every 7
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


def finish(place, job, folder):
    """Runs to the end of the training, and returns the folder."""
    told = []
    with start(place, job, folder) as run:
        for line in run.stderr:
            told.append(line)
            if line.startswith("train: done"):
                break
        run.kill()
    assert told[-1].startswith("train: done"), told
    return place / folder


@pytest.fixture(scope="module")
def uninterrupted(place):
    """Returns the folder of a job's run that nothing has interrupted."""
    return functools.cache(lambda job: finish(place, job, f"uninterrupted-{job}"))


def kill_while_training(place, job, folder, seconds):
    """Starts the run and kills it so long after its training began; returns whether it trained."""
    with start(place, job, folder) as run:
        for line in run.stderr:
            if line.startswith("train: on"):
                break
        time.sleep(seconds)
        trained = run.poll() is None and "evaluate" not in stages(place / folder)
        run.send_signal(signal.SIGKILL)
    return trained


def stages(folder):
    return (folder / "stages.json").read_text()


def test_sigterm_saves_and_has_an_exit_code_of_its_own(place):
    with start(place, "g2p_transducer", "terminated") as run:
        for line in run.stderr:
            if line.startswith("step 12 "):
                break
        run.terminate()
        told = run.stderr.read()
    assert run.returncode == 143
    (step,) = re.findall(r"stopped at step (\d+) of 240; the same command goes on from", told)
    assert (place / "terminated" / "checkpoints" / f"ckpt-{step}.index").exists()


@pytest.mark.parametrize(
    ("job", "kills"),
    [
        ("g2p_transducer", 3),
        pytest.param("g2p_transducer", 20, marks=pytest.mark.slow),
        pytest.param("char_lm", 3, marks=pytest.mark.slow),
    ],
)
def test_kills_at_random_moments_change_no_bit(place, uninterrupted, job, kills):
    folder, chance = f"killed-{job}-{kills}", random.Random(kills)
    hits = sum(kill_while_training(place, job, folder, chance.uniform(0, 3)) for _ in range(kills))
    assert hits >= 2
    assert_same(finish(place, job, folder), uninterrupted(job))


def test_a_service_changes_no_bit_though_its_worker_is_killed_and_then_the_run(
    place, uninterrupted
):
    """It goes on without one. The other worker ends with the run."""
    folder = "served"
    with start(place, "g2p_transducer", folder, "--data.service", "2") as run:
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
        run.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while Path(f"/proc/{other}").exists() and time.monotonic() < until:
        time.sleep(0.1)
    assert not Path(f"/proc/{other}").exists()
    assert "train" not in json.loads(stages(place / folder))
    assert_same(finish(place, "g2p_transducer", folder), uninterrupted("g2p_transducer"))


def read_until(run, beginning):
    """Returns what a process says up to a line that begins so."""
    told = []
    for line in run.stderr:
        told.append(line)
        if line.startswith(beginning):
            return "".join(told)
    raise AssertionError("".join(told))


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
    """Returns what a checkpoint holds, but for the number of saves."""
    reader = tf.train.load_checkpoint(str(path))
    types = reader.get_variable_to_dtype_map()
    left_out = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE")
    keys = [key for key in types if key not in left_out]
    assert len(keys) > 30
    return {key: reader.get_tensor(key) for key in keys}
