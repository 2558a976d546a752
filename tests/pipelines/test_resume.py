"""A run killed at any moment, and gone on with, ends to the last bit as one that was not."""

import random
import re
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

STEPS = 240
SIZES = f"""
    --data.batch_tokens 48 --data.buckets 3
    --model.embedding_units 7 --model.encoder_units 13 --model.encoder_layers 1
    --model.predictor_units 11 --model.joint_units 17 --model.dropout 0.2
    --train.steps {STEPS} --train.accumulate 2 --train.ema 0.9 --train.schedule plateau
    --train.plateau_patience 1 --train.patience 100 --train.warmup_steps 4
    --train.log_every 1 --train.evaluate_every 50 --train.checkpoint_every 7
    --train.no_jit_compile --export.verify_examples 2
""".split()
COMMAND = [sys.executable, "-m", "pipelines.cli", "run", "g2p_transducer"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """Where the commands run; holds a TSV."""
    place = tmp_path_factory.mktemp("place")
    lines = (f"{word}\t{' '.join(word.upper())}\n" for word in words(300))
    (place / "toy.tsv").write_text("".join(lines))
    return place


def start(place, folder):
    line = [*COMMAND, "--folder", folder, "--data.train", "toy.tsv", *SIZES]
    return subprocess.Popen(line, cwd=place, stderr=subprocess.PIPE, text=True)


def finish(place, folder):
    """Runs to the end of the training, and returns the folder."""
    told = []
    with start(place, folder) as run:
        for line in run.stderr:
            told.append(line)
            if line.startswith("train: done"):
                break
        run.kill()
    assert told[-1].startswith("train: done"), told
    return place / folder


@pytest.fixture(scope="module")
def uninterrupted(place):
    return finish(place, "uninterrupted")


def kill_while_training(place, folder, seconds):
    """Starts the run and kills it so long after its training began; returns whether it trained."""
    with start(place, folder) as run:
        for line in run.stderr:
            if line.startswith("train: on"):
                break
        time.sleep(seconds)
        trained = run.poll() is None and "evaluate" not in stages(place / folder)
        run.send_signal(signal.SIGKILL)
    return trained


def stages(folder):
    return (folder / "stages.json").read_text()


def test_sigterm_saves_and_has_an_exit_code_of_its_own(place, uninterrupted):
    with start(place, "terminated") as run:
        for line in run.stderr:
            if line.startswith("step 12 "):
                break
        run.terminate()
        told = run.stderr.read()
    assert run.returncode == 143
    (step,) = re.findall(r"stopped at step (\d+) of 240; the same command goes on from", told)
    assert (place / "terminated" / "checkpoints" / f"ckpt-{step}.index").exists()


@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_kills_at_random_moments_change_no_bit(place, uninterrupted, kills):
    folder, chance = f"killed-{kills}", random.Random(kills)
    hits = sum(kill_while_training(place, folder, chance.uniform(0, 3)) for _ in range(kills))
    assert hits >= 2
    killed = finish(place, folder)
    name = "metrics.jsonl"
    assert (killed / name).read_bytes() == (uninterrupted / name).read_bytes()
    last = tensors(killed / "checkpoints" / f"ckpt-{STEPS}")
    right = tensors(uninterrupted / "checkpoints" / f"ckpt-{STEPS}")
    assert last.keys() == right.keys()
    differing = [key for key in right if not np.array_equal(last[key], right[key])]
    assert differing == []


def tensors(path):
    """Returns what a checkpoint holds, but for the number of saves and the iterator's variants."""
    reader = tf.train.load_checkpoint(str(path))
    types = reader.get_variable_to_dtype_map()
    left_out = ("_CHECKPOINTABLE_OBJECT_GRAPH", "save_counter/.ATTRIBUTES/VARIABLE_VALUE")
    keys = [key for key in types if types[key] != tf.variant and key not in left_out]
    assert len(keys) > 30
    return {key: reader.get_tensor(key) for key in keys}
