"""What the command refuses and answers before it imports TensorFlow: here it has none."""

import json
import os
import re
import subprocess
import sys
from types import SimpleNamespace

import pytest

from pipelines import jobfile

JOB = "g2p_transducer"
HEAVY = ["grpc", "keras", "matplotlib", "tensorflow", "tensorflow_datasets"]

# Runs each command line, and tells its exit code, what it printed and what was imported by then.
PROGRAM = f"""
import contextlib, io, json, sys

sys.modules.update(dict.fromkeys(["keras", "tensorflow", "tensorflow_datasets"]))
sys.argv = ["transduce"]

from pipelines.cli import main

for arguments in json.load(sys.stdin):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main(arguments)
        except SystemExit as end:
            code = end.code
    heavy = [name for name in {HEAVY} if sys.modules.get(name)]
    print(json.dumps([code or 0, out.getvalue(), err.getvalue(), heavy]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Where the commands run: holds a job file, a folder that is no run, and one not trained."""
    folder = tmp_path_factory.mktemp("cli")
    (folder / "nothing.py").write_text('"""Is no job."""\n')
    (folder / "broken.py").write_text("def job(:\n")
    (folder / "models").mkdir()
    (folder / "untrained").mkdir()
    job = jobfile.load(JOB)
    (folder / "untrained" / "job.py").write_text(job.path.read_text())
    values = {"job": JOB, **jobfile.to_values(job.job())}
    (folder / "untrained" / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="module")
def call(folder):
    """Returns what a command line did; lines given together share a process."""

    def run(lines):
        done = subprocess.run(
            [sys.executable, "-c", PROGRAM],
            input=json.dumps([line.split() for line in lines]),
            cwd=folder,
            env={**os.environ, "COLUMNS": "200"},
            capture_output=True,
            text=True,
            check=True,
        )
        keys = ("code", "out", "err", "heavy")
        told = (json.loads(line) for line in done.stdout.splitlines())
        return [SimpleNamespace(**dict(zip(keys, each, strict=True))) for each in told]

    return run


REFUSED = {
    # An unknown job, file or command.
    "run g2p_transduser": "Did you mean 'g2p_transducer'?",
    "run": "JOB comes first: one of",
    "run --quick g2p_transducer": "JOB comes first",
    "run none.py": "A job file must exist. Received: none.py",
    "run nothing.py": "must have a function `job()`. Received: nothing.py",
    "runn g2p_transducer": "Available subcommands: run, prepare, jobs, evaluate, explain, export, ",
    # A misspelt field names the nearest.
    f"run {JOB} --train.stepz 4": "--train.steps INT",
    f"run {JOB} --model.encoder_unit 4": "--model.encoder_units INT",
    f"run {JOB} --steps 4": "--train.steps INT",
    f"run {JOB} --quik": "Unrecognized options: --quik",
    # Types, ranges, choices.
    f"run {JOB} --train.steps many": "--train.steps",
    f"run {JOB} --train.steps 1.5": "--train.steps",
    f"run {JOB} --train.steps -4": "steps Input should be greater than 0",
    f"run {JOB} --train.steps 0": "steps Input should be greater than 0",
    f"run {JOB} --train.learning_rate 0": "learning_rate Input should be greater than 0",
    f"run {JOB} --train.weight_decay -0.1": "weight_decay Input should be greater than or equal",
    f"run {JOB} --model.dropout 1": "dropout Input should be less than 1",
    f"run {JOB} --train.schedule cosin": "('constant', 'cosine', 'inverse_sqrt', 'plateau')",
    f"run {JOB} --task.input.unit word": "('character', 'token', 'subword')",
    f"run {JOB} --data.batch_tokens auto --data.batch_size 9": "`batch_tokens` must be a number",
    f"run {JOB} --export.name a/b": "name String should match pattern",
    f"run {JOB} --data.validation mine.tsv": "`validation` and `test` go with a `train` file",
    f"run {JOB} --train.steps": "--train.steps",
    # Strategies.
    f"run {JOB} --workers 2": "`workers` goes with the strategies 'multi_worker' and 'para",
    f"run {JOB} --strategy multi_worker --workers 2 --servers 2": "`servers` goes with the strat",
    f"run {JOB} --strategy parameter_server": "must have 1 or more workers: --workers 2 starts",
    f"run {JOB} --strategy parameter_server --workers 2 --profile 9": "`profile` must go with anot",
    f"run {JOB} --strategy parameter_server --workers 2 --train.precision float16": (
        "must have --train.precision float32 or bfloat16"
    ),
    f"run {JOB} --strategy multi_worker": "--workers 2 starts them on this machine",
    f"run {JOB} --strategy multi_worker --workers 1": "Received: --workers 1, and no TF_CONFIG",
    f"run {JOB} --data.service two": "a number in 1 … 99, of processes to start, or grpc://HOST",
    f"run {JOB} --data.service 0": "Received: '0'",
    f"run {JOB} --data.service grpc://here:65536": "Received: 'grpc://here:65536'",
    f"run {JOB} --profile -1": "profile: Input should be greater than or equal to 0. Received: -1",
    f"run {JOB} --worker_timeout nan": "worker_timeout: Input should be a finite number",
    "serve_data --join somewhere:5050": "`join` must be grpc://HOST:PORT",
    "serve_data --port 70000": "`port` must be in 0 … 65535",
    f"run {JOB} --strategy tpu": "must have batches of fixed shapes: --train.static_shapes",
    # The other commands.
    "evaluate": "The run's folder. (required)",
    "evaluate none": "must hold a config.json. Received: none",
    "evaluate models": "must hold a config.json. Received: models",
    "evaluate untrained": "untrained holds a run that has not trained",
    "evaluate untrained --split tset": "('train', 'validation', 'test')",
    "evaluate untrained --beam wide": "--beam",
    "evaluate untrained --beam 0": "beam: Input should be greater than 0",
    "evaluate untrained --length_normalization 2": "length_normalization: Input should be less",
    "export untrained --to models --length_normalization 2": "length_normalization: Input",
    "evaluate untrained --search wide": "'frame', 'alignment' or 'adaptive'",
    "explain untrained": "(required)",
    "explain untrained text": "untrained holds a run that has not trained",
    "explain untrained text --to picture.jpg": "must be a .png file in a folder that exists",
    "explain untrained text --to none/picture.png": "must be a .png file in a folder that exists",
    "export untrained": "--to PATH",
    "export untrained --to models": "untrained holds a run that has not trained",
    "export untrained --to models --version 0": "`version` must be positive. Received: 0",
    "serve": "Folder of MODEL/VERSION. (required)",
    "serve models --port many": "--port",
    "serve models --port 65536": "`port` must be in 0 … 65535. Received: 65536",
    "serve models --rest_api_port -1": "`rest_api_port` must be in 0 … 65535. Received: -1",
    "query": "The model's name. (required)",
    "query model text --timeout soon": "--timeout",
    "query model text --n-best 0": "`n_best` must be at least 1. Received: 0",
    "query model text --signature x --timestamps": "`signature` goes without `n_best` and",
}


@pytest.fixture(scope="module")
def refused(call):
    return dict(zip(REFUSED, call(REFUSED), strict=True))


@pytest.mark.parametrize("line", REFUSED)
def test_bad_usage_is_told_without_tensorflow_and_with_exit_code_2(refused, line):
    done = refused[line]
    assert done.code == 2, done.err
    assert done.out == ""
    assert REFUSED[line] in " ".join(re.sub("[│─╭╮╰╯]", " ", done.err).split())
    assert "Traceback" not in done.err
    assert set(done.heavy) <= {"grpc"}


def test_what_is_refused_leaves_nothing_behind(refused, folder):
    left = {path.name for path in folder.iterdir()} - {"__pycache__"}
    assert left == {"nothing.py", "broken.py", "models", "untrained"}


def test_help_is_light(call):
    for done in call(["--help", ""]):
        assert (done.code, done.heavy) == (0, [])
        assert "transduce run JOB" in done.out
        assert all(name in done.out for name in ("jobs", "evaluate", "export", "serve", "query"))


def test_help_of_a_job_has_its_fields_with_their_defaults(call):
    (done,) = call([f"run {JOB} --help"])
    assert (done.code, done.heavy) == (0, [])
    text = done.out
    assert f"Optimizer steps. (default: {jobfile.load(JOB).job().train.steps})" in text
    for field in (
        "--train.steps INT",
        "--data.train",
        "--model.dropout",
        "--task.input.field",
        "--export.name",
    ):
        assert field in text
    assert "--folder" in text
    assert "--quick" in text


def test_help_of_a_job_has_the_fields_of_the_kind_of_input_that_it_has(call):
    (done,) = call(["run series_lstm --help"])
    assert done.code == 0
    assert "--task.input.max_length" in done.out
    assert "--task.input.height" not in done.out
    assert "subcommands" not in done.out


def test_help_of_a_quick_job_has_the_quick_defaults(call):
    (done,) = call([f"run {JOB} --quick --help"])
    steps = jobfile.load(JOB).job(quick=True).train.steps
    assert f"(default: {steps})" in done.out


def test_jobs_are_listed_with_what_they_reach(call):
    (done,) = call(["jobs"])
    assert (done.code, done.heavy) == (0, [])
    for name in jobfile.names():
        assert name in done.out
    assert all(title in done.out for title in ("task", "data", "result", "time"))


def test_a_job_file_that_is_no_python_is_told_with_its_line(call):
    (done,) = call(["run broken.py"])
    assert done.code == 1
    assert "broken.py, line 1" in done.err


def test_a_signal_has_an_exit_code_of_its_own(call, tmp_path):
    for name, sent in [("terminated", "SIGTERM"), ("interrupted", "SIGINT")]:
        # What a shell starts in the background would ignore Ctrl-C.
        heed = "import os, signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)\n"
        text = f"{heed}os.kill(os.getpid(), signal.{sent})\n"
        (tmp_path / f"{name}.py").write_text(text)
    terminated, interrupted = call(
        [f"run {tmp_path}/terminated.py", f"prepare {tmp_path}/interrupted.py"]
    )
    assert (terminated.code, terminated.err) == (143, "transduce: terminated\n")
    assert (interrupted.code, interrupted.err) == (130, "transduce: interrupted\n")


def test_a_server_that_does_not_run_is_told_with_its_address(call):
    (done,) = call(["query model abc --address localhost:1 --timeout 20"])
    assert (done.code, done.out) == (1, "")
    assert "No server answers at localhost:1. Start one with `transduce serve MODELS`" in done.err
