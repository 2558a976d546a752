"""`transduce prepare`: the data of a job alone, made by Beam where that is asked for."""

import importlib.util
import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import tensorflow_datasets as tfds

from keras_models.configs.records import Field
from pipelines.job import Data
from pipelines.sources import open_source

SIZES = """
    --data.batch_tokens 64 --data.buckets 2 --model.embedding_units 7 --model.encoder_units 13
    --model.encoder_layers 1 --model.predictor_units 11 --model.joint_units 17 --train.steps 3
    --train.warmup_steps 1 --train.evaluate_every 3 --train.no_jit_compile
""".split()

# A data set that Beam makes, and a job on it.
BUILDER = '''
import tensorflow_datasets as tfds

class Spelled(tfds.core.BeamBasedBuilder):
    """Words of letters."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {name: tfds.features.Text() for name in ("text", "pronunciation")}
        features = tfds.features.FeaturesDict(features)
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        names = ("train", "validation", "test")
        return {name: self._generate_examples(n) for n, name in enumerate(names)}

    def _generate_examples(self, start):
        import apache_beam as beam

        def example(number):
            word = "".join("abcdefghij"[int(digit)] for digit in str(number))
            return word, {"text": word, "pronunciation": " ".join(word.upper())}

        numbers = range(start, 900, 3)
        return f"numbers {start}" >> beam.Create(numbers) | f"say {start}" >> beam.Map(example)
'''
JOB = '''"""Spelling to sounds."""
import dataclasses
import spelled
from pipelines import jobfile

def job():
    full = jobfile.load("g2p_transducer").job()
    return dataclasses.replace(full, data=dataclasses.replace(full.data, name="spelled", config=""))
'''


def process(place, *arguments):
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.cli", *arguments],
        cwd=place,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(place), *sys.path])},
        stderr=subprocess.PIPE,
        text=True,
    )


def start(place, *arguments):
    """Returns what a command tells until it trains, which is as far as it goes."""
    with process(place, *arguments) as run:
        told = ""
        for line in run.stderr:
            told += line
            if line.startswith("train: on"):
                break
        run.kill()
    return told


@pytest.fixture
def call(tmp_path):
    """Returns exit code and messages of a command in a process of its own."""

    def run(*arguments):
        with process(tmp_path, *arguments) as done:
            told = done.stderr.read()
        return SimpleNamespace(code=done.returncode, err=told)

    return run


def test_prepare_does_the_first_stage_and_run_goes_on_from_it(call, tmp_path, words):
    lines = "".join(f"{word}\t{' '.join(word.upper())}\n" for word in words(300))
    (tmp_path / "toy.tsv").write_text(lines)
    given = ["g2p_transducer", "--folder", "run", "--data.train", "toy.tsv", *SIZES]
    prepared = call("prepare", *given)
    assert prepared.code == 0, prepared.err
    assert "prepare: done in" in prepared.err
    assert "train" not in prepared.err
    assert (tmp_path / "run" / "features" / "store.json").exists()
    (tmp_path / "toy.tsv").unlink()
    assert "prepare: done before\ntrain: started\n" in start(tmp_path, "run", *given)


def test_a_runner_is_for_data_sets_of_tfds(call, tmp_path):
    (tmp_path / "toy.tsv").write_text("a\tA\n")
    told = call("prepare", "g2p_transducer", "--data.train", "toy.tsv", "--runner", "DirectRunner")
    assert told.code == 2
    assert "`runner` goes with data sets of TFDS" in told.err


@pytest.mark.skipif(
    importlib.util.find_spec("apache_beam") is not None, reason="Beam is installed here"
)
def test_without_beam_a_runner_is_refused_with_how_to_install_it(call):
    told = call("prepare", "g2p_transducer", "--runner", "DirectRunner")
    assert told.code == 2
    assert "pip install 'transduce[beam]'" in told.err


@pytest.mark.skipif(importlib.util.find_spec("apache_beam") is None, reason="Beam is not installed")
def test_beam_prepares_what_a_job_then_reads(call, tmp_path):
    (tmp_path / "spelled.py").write_text(BUILDER)
    (tmp_path / "job.py").write_text(JOB)
    options = ["--folder", "run", "--data.dir", "prepared", *SIZES]
    told = call("prepare", "job.py", "--runner", "DirectRunner", *options)
    assert told.code == 0, told.err
    assert "prepare: done in" in told.err
    assert (tmp_path / "prepared" / "spelled" / "1.0.0" / "dataset_info.json").exists()
    builder = tfds.builder("spelled", data_dir=tmp_path / "prepared")
    assert builder.info.splits["train"].num_examples == 300
    fields = [Field("text"), Field("pronunciation")]
    data = Data(name="spelled", dir=tmp_path / "prepared")
    source = open_source(data, fields, tmp_path / "data")
    for record in source.splits["train"].unbatch().as_numpy_iterator():
        assert record["pronunciation"] == b" ".join(bytes([b]) for b in record["text"].upper())
