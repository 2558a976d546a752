"""The whole way, by the command: trained, interrupted, gone on, evaluated, exported, served, asked.

The run is done once, in processes of its own. What comes after it is done in this process where
that is all the same.
"""

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import matplotlib.image
import numpy as np
import pytest
import tensorflow as tf

from pipelines import jobfile
from pipelines.cli import main
from pipelines.cluster import free_ports
from pipelines.display import Display
from pipelines.errors import UsageError
from pipelines.folder import RunFolder
from pipelines.run import Run
from pipelines.verification import VerificationError
from serving.client import Client

JOB = "g2p_transducer"
STEPS = 30
SIZES = f"""
    --data.batch_tokens 64 --data.buckets 2
    --model.embedding_units 7 --model.encoder_units 13 --model.encoder_layers 1
    --model.predictor_units 11 --model.joint_units 17 --model.dropout 0.1
    --train.steps {STEPS} --train.learning_rate 0.03 --train.warmup_steps 4
    --train.log_every 5 --train.evaluate_every 20 --train.checkpoint_every 8
    --train.no_jit_compile --export.verify_examples 9
""".split()
COMMAND = [sys.executable, "-m", "pipelines.cli"]
STAGES = ["prepare", "train", "evaluate", "export", "verify"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """Where the commands run; holds a TSV."""
    place = tmp_path_factory.mktemp("place")
    lines = (f"{word}\t{' '.join(word.upper())}\n" for word in words(300))
    (place / "toy.tsv").write_text("".join(lines))
    return place


def run_line(folder="run", data="toy.tsv"):
    return ["run", JOB, "--folder", folder, "--data.train", data, *SIZES]


@pytest.fixture(scope="module")
def interrupted(place):
    """The first run, stopped by SIGINT once it evaluates: exit code and what it printed."""
    told, pipe = [], subprocess.PIPE
    with subprocess.Popen([*COMMAND, *run_line()], cwd=place, stderr=pipe, text=True) as run:
        for line in run.stderr:
            told.append(line)
            if "evaluating" in line:
                run.send_signal(signal.SIGINT)
    return SimpleNamespace(code=run.returncode, err="".join(told))


@pytest.fixture(scope="module")
def done(interrupted, place):
    """The same command again, to its end, with a profile of some steps."""
    line = [*COMMAND, *run_line(), "--profile", "3"]
    again = subprocess.run(line, cwd=place, capture_output=True, text=True)
    return SimpleNamespace(
        code=again.returncode,
        out=again.stdout,
        err=again.stderr,
        folder=RunFolder(place / "run"),
    )


@pytest.fixture
def call(done, place, monkeypatch, capfd):
    """Returns exit code and prints of a command in this process; the run is there."""
    monkeypatch.chdir(place)

    def run(*arguments, text=None):
        if text is not None:
            monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        capfd.readouterr()
        with pytest.raises(SystemExit) as end:
            main([str(argument) for argument in arguments])
        out, err = capfd.readouterr()
        return SimpleNamespace(code=end.value.code, out=out, err=err)

    return run


@pytest.fixture
def evaluation(done):
    return json.loads((done.folder.path / "evaluation.json").read_text())


# Interrupted, and gone on.


def test_an_interrupt_ends_training_with_exit_code_130_and_says_how_to_go_on(interrupted):
    assert interrupted.code == 130
    assert interrupted.err.endswith(
        f"transduce: stopped at step 20 of {STEPS}; the same command goes on from there\n"
    )
    assert "Traceback" not in interrupted.err


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize("stage", ["prepare", "evaluate", "verify"])
def test_a_signal_outside_training_has_its_exit_code_too(
    call, done, place, monkeypatch, stage, number, code
):
    def stopped(run):
        os.kill(os.getpid(), number)

    # What a shell starts in the background ignores Ctrl-C, and so would this process.
    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)

    stopped.__name__ = stage
    monkeypatch.setattr(Run, stage, stopped)
    shutil.copytree(done.folder.path, place / "stopped")
    stages = place / "stopped" / "stages.json"
    before = json.loads(stages.read_text())
    stages.write_text(json.dumps({n: before[n] for n in STAGES[: STAGES.index(stage)]}))
    try:
        told = call(*run_line("stopped"))
    finally:
        signal.signal(signal.SIGINT, ignored)
        shutil.rmtree(place / "stopped")
    assert told.code == code
    end = "transduce: stopped between two checkpoints; the same command goes on from there\n"
    assert told.err.endswith(end)


def test_the_same_command_goes_on_from_there(done):
    assert done.code == 0, done.err
    assert "prepare: done before\ntrain: started\ntrain: on " in done.err
    assert "train: going on from step 20\n" in done.err
    assert "step 5 of" not in done.err
    assert f"step {STEPS} of {STEPS}: loss" in done.err


def test_a_profile_is_of_as_many_steps_as_asked_for_after_five(done, profiled):
    assert profiled(done.folder.path) == [25, 26, 27]


@pytest.fixture
def another(done, place, tmp_path, monkeypatch):
    """Returns a run like the one that was done, with other settings, its data prepared."""
    monkeypatch.chdir(place)

    def make(strategy, data=None, train=None, model=None):
        folder, file = (
            RunFolder(tmp_path / strategy),
            jobfile.load(str(done.folder.path / "job.py")),
        )
        job = done.folder.job()[1]
        parts = {"data": data or {}, "train": train or {}, "model": model or {}}
        changed = {name: replace(getattr(job, name), **part) for name, part in parts.items()}
        folder.start(file, replace(job, **changed))
        run = Run(folder, Display(), strategy)
        folder.finish("prepare", 0.0, **run.prepare())
        return run

    return make


def test_a_run_on_three_replicas_is_one_on_one(another):
    without_chance = {"model": {"dropout": 0.0}, "train": {"optimizer": "sgd", "steps": 12}}
    metrics = []
    for strategy in ("one_device", "mirrored"):
        run = another(strategy, **without_chance)
        assert run.train()["devices"].startswith(strategy)
        metrics.append((run.folder.path / "metrics.jsonl").read_text().splitlines())
    for line, other in zip(*(map(json.loads, lines) for lines in metrics), strict=True):
        assert line == pytest.approx(other, rel=1e-4)


def test_a_batch_smaller_than_the_replicas_is_refused(another):
    run = another("mirrored", data={"batch_tokens": 8})
    with pytest.raises(UsageError, match=r"Received: 3 replicas, and 2 examples.* 12 would do"):
        run.train()


def test_a_metric_that_no_evaluation_has_is_refused_before_training(another):
    run = another("one_device", train={"metric": "bleu"})
    with pytest.raises(UsageError, match=r"\['phoneme_error_rate', .*, 'loss'\]. Received: 'bleu'"):
        run.train()


def test_a_vocabulary_of_another_language_is_told_with_the_share_of_unknown_symbols(
    another, place, capfd
):
    (place / "other.tsv").write_text("abcд\tA B C D\n" * 8, encoding="utf-8")
    another("one_device", data={"validation": place / "other.tsv"})
    told = capfd.readouterr().err
    assert "25.0% of the symbols of `text` in the validation split are unknown" in told
    assert told.count("unknown") == 1


# What a run leaves.


def test_all_stages_are_recorded(done):
    stages = {stage: done.folder.done(stage) for stage in STAGES}
    assert all(stage["seconds"] > 0 for stage in stages.values())
    assert stages["prepare"]["examples"] > 200
    assert stages["prepare"]["sequences"] == ["text", "pronunciation"]
    assert stages["train"]["steps"] == STEPS
    assert stages["export"]["path"] == f"models/{JOB}/1"
    assert stages["verify"]["examples"] == 9


def test_everything_lies_where_it_should(done):
    path = done.folder.path
    for name in ("config.json", "environment.json", "job.py", "metrics.jsonl", "report.md"):
        assert (path / name).stat().st_size > 0
    assert (path / "models" / JOB / "1" / "saved_model.pb").exists()
    for name in ("text", "pronunciation"):
        symbols = (path / "assets" / f"{name}.txt").read_text().splitlines()
        assert symbols[0] == "<pad>"
        assert sorted(symbols[1:]) == list("ABCDE" if name == "pronunciation" else "abcde")
    assert len(list((path / "plots" / "examples").iterdir())) == 10
    for picture in (path / "plots").rglob("*.png"):
        assert matplotlib.image.imread(picture).size > 0


def test_the_end_of_a_run_says_how_good_it_is_and_how_to_use_it(done, evaluation):
    assert re.search(r"^test PER \d+\.\d\d%$", done.out, re.MULTILINE)
    assert len(re.findall(r"^│ [a-e]+ +│ [A-E ]* │", done.out, re.MULTILINE)) == 10
    for name, what in [("model", f"run/models/{JOB}/1"), ("report", "run/report.md")]:
        assert re.search(rf"^{name} +{what}$", done.out, re.MULTILINE)
    assert re.search(r"^serve +transduce serve run/models$", done.out, re.MULTILINE)
    assert re.search(rf"^query +transduce query {JOB} [a-e]+$", done.out, re.MULTILINE)


def test_a_word_of_the_test_split_is_in_no_other(done, evaluation):
    def texts(split):
        batches = Run(done.folder, Display())._source.splits[split].as_numpy_iterator()
        return {text.decode() for batch in batches for text in batch["text"]}

    assert set(evaluation["inputs"]) == texts("test")
    assert texts("test").isdisjoint(texts("train") | texts("validation"))


def test_run_again_each_stage_is_done_before(call, done):
    before = (done.folder.path / "metrics.jsonl").stat().st_mtime_ns
    again = call(*run_line())
    assert again.code == 0
    assert again.err.splitlines() == [f"{stage}: done before" for stage in STAGES]
    assert again.out == done.out
    assert (done.folder.path / "metrics.jsonl").stat().st_mtime_ns == before


def test_another_configuration_is_refused_with_what_differs(call):
    refused = call(*run_line(), "--train.steps", STEPS + 1)
    assert refused.code == 2
    assert f"train.steps: {STEPS} there, {STEPS + 1} asked for" in refused.err
    assert refused.err.count("asked for") == 1


def test_a_served_answer_that_differs_fails_the_run(done, place, monkeypatch):
    monkeypatch.chdir(place)
    run = Run(done.folder, Display())
    for weights in run._task.model.variables:
        weights.assign(weights + 1.0)
    monkeypatch.setattr("pipelines.run.restore_best", lambda weights, folder: [])
    with pytest.raises(VerificationError, match="must answer as the trained one does"):
        run.verify()


# Evaluate, export.


def test_evaluate_measures_as_the_run_did(call, evaluation):
    told = call("evaluate", "run")
    assert told.code == 0
    rate = f"test PER {evaluation['numbers']['phoneme_error_rate']:.2%}"
    assert told.out.splitlines()[0] == rate


def test_what_became_of_the_users_file_makes_no_difference(call, evaluation, place):
    (place / "toy.tsv").rename(place / "gone.tsv")
    try:
        told = call("evaluate", "run")
    finally:
        (place / "gone.tsv").rename(place / "toy.tsv")
    assert told.code == 0
    assert f"test PER {evaluation['numbers']['phoneme_error_rate']:.2%}" in told.out


def test_evaluate_takes_another_split(call):
    told = call("evaluate", "run", "--split", "validation")
    assert told.code == 0
    assert re.fullmatch(
        r"validation PER .*%\nvalidation WER .*%\nvalidation loss \d+\.\d{4}\n", told.out
    )


def test_a_beam_is_measured_and_exported_without_training_again(call, evaluation):
    told = call("evaluate", "run", "--beam", 3, "--search", "alignment")
    assert told.code == 0
    assert f"test loss {evaluation['numbers']['loss']:.4f}" in told.out
    assert call("export", "run", "--to", "beams", "--beam", 3, "--n-best", 2).code == 0
    signatures = tf.saved_model.load(f"beams/{JOB}/1").signatures
    best, answer = (signatures[name](tf.constant(["abc"])) for name in ("n_best", "timestamps"))
    assert best["pronunciation"].shape == (1, 2)
    np.testing.assert_array_equal(best["pronunciation"][:, 0], answer["pronunciation"])
    np.testing.assert_allclose(best["log_probability"][:, 0], answer["log_probability"], rtol=1e-5)


def test_a_version_is_exported_once(call, place):
    first, named, again = (
        call("export", "run", "--to", "more", *rest)
        for rest in (["--version", 7], ["--name", "mine"], ["--version", 7])
    )
    assert (first.code, first.out) == (0, f"more/{JOB}/7\n")
    assert (named.code, named.out) == (0, "more/mine/1\n")
    assert (again.code, again.out) == (1, "")
    assert f"versions are never overwritten. Received: more/{JOB}/7" in again.err
    assert "The next free one is 8" in again.err
    assert sorted(path.name for path in (place / "more" / JOB).iterdir()) == ["7"]


# Explain.


def test_an_answer_is_explained_symbol_by_symbol_and_drawn(call, evaluation):
    text, answer = evaluation["inputs"][0], evaluation["answers"][0]
    told = call("explain", "run", text)
    assert told.code == 0, told.err
    said, *lines, picture = told.out.splitlines()
    assert said == answer
    assert [line.split("\t")[0] for line in lines] == list(text)
    symbols = re.findall(r"([A-E]) \d\.\d\d", " ".join(lines))
    assert symbols == answer.split()
    assert picture == f"run/plots/explain-{text}.png"
    assert matplotlib.image.imread(picture).std() > 0.01


def test_any_answer_may_be_explained_and_drawn_anywhere(call, place):
    told = call("explain", "run", "ab/c", "--answer", "E A E", "--to", "picture.png")
    assert told.code == 0, told.err
    assert told.out.splitlines()[0] == "E A E"
    assert [line[0] for line in told.out.splitlines()[1:-1]] == list("abc")
    assert matplotlib.image.imread(place / "picture.png").std() > 0.01
    assert call("explain", "run", "ab/c").out.endswith("run/plots/explain-ab-c.png\n")


def test_what_cannot_be_explained_is_told(call):
    told = call("explain", "run", "漢")
    assert (told.code, told.out) == (1, "")
    assert "must have a known symbol" in told.err
    told = call("explain", "run", "a" * 300)
    assert (told.code, told.out) == (2, "")
    assert "must be one that the model answers" in told.err


# Serve, query.


@pytest.fixture(scope="module")
def port():
    return free_ports(1)[0]


@pytest.fixture(scope="module")
def server(done, place, port):
    """`transduce serve`, ready; interrupted at the end, which is no failure."""
    line = [*COMMAND, "serve", "run/models", "--port", str(port), "--rest_api_port", "0"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
    with subprocess.Popen(line, cwd=place, text=True, **pipes) as process:
        told = []
        while "Running gRPC ModelServer" not in "".join(told[-1:]):
            told.append(process.stdout.readline())
            assert told[-1], "".join(told)
        yield f"localhost:{port}"
        process.send_signal(signal.SIGINT)
    assert process.returncode == 0


def test_arguments_are_answered_one_a_line_as_the_run_answered(call, server, evaluation):
    texts = evaluation["inputs"]
    told = call("query", JOB, *texts, "--address", server)
    assert (told.code, told.err) == (0, "")
    assert told.out.splitlines() == evaluation["answers"]


def test_lines_of_standard_input_are_answered_one_a_line(server, evaluation):
    """In a process of its own, as in a pipe of the shell; an empty line is answered too."""
    lines = [*evaluation["inputs"], ""]
    told = subprocess.run(
        [*COMMAND, "query", JOB, "--address", server],
        input="".join(f"{line}\n" for line in lines),
        capture_output=True,
        text=True,
        check=True,
    )
    assert told.stdout.split("\n")[:-1] == [*evaluation["answers"], told.stdout.split("\n")[-2]]
    assert len(told.stdout.split("\n")) == len(lines) + 1


def test_more_lines_than_a_request_holds_are_answered_in_order(call, server, evaluation):
    texts = evaluation["inputs"] * 20
    assert len(texts) > 2 * 64
    told = call("query", JOB, "--address", server, text="\n".join(texts))
    assert told.out.splitlines() == evaluation["answers"] * 20


def test_json_has_all_outputs_one_object_a_line(call, server, evaluation):
    texts, answers = evaluation["inputs"][:3], evaluation["answers"][:3]
    told = call("query", JOB, *texts, "--json", "--address", server)
    objects = [json.loads(line) for line in told.out.splitlines()]
    assert [each["pronunciation"] for each in objects] == answers
    assert all(each["log_probability"] <= 0 for each in objects)


def test_the_best_answers_are_lines_of_text_log_probability_and_answer(call, server):
    told = call("query", JOB, "abc", "de", "--n-best", 3, "--address", server)
    lines = [line.split("\t") for line in told.out.splitlines()]
    assert [line[0] for line in lines] == ["abc"] * 3 + ["de"] * 3
    scores = [float(line[1]) for line in lines]
    assert scores[:3] == sorted(scores[:3], reverse=True)
    assert len({line[2] for line in lines[:3]}) == 3
    told = call("query", JOB, "abc", "de", "--n-best", 3, "--json", "--address", server)
    objects = [json.loads(line) for line in told.out.splitlines()]
    answers = [answer for each in objects for answer in each["pronunciation"]]
    assert answers == [line[2] for line in lines]


def test_each_token_has_its_timestamp(call, server, evaluation):
    texts, answers = evaluation["inputs"][:9], evaluation["answers"][:9]
    assert any(answers)
    told = call("query", JOB, *texts, "--timestamps", "--address", server)
    objects = [
        json.loads(line)
        for line in call(
            "query", JOB, *texts, "--timestamps", "--json", "--address", server
        ).out.splitlines()
    ]
    for line, answer, each in zip(told.out.split("\n"), answers, objects, strict=False):
        assert each["tokens"] == answer.split()
        stamped = [f"{t}@{n}" for t, n in zip(each["tokens"], each["frames"], strict=True)]
        assert line.split() == stamped
    told = call("query", JOB, texts[0], "--timestamps", "--n-best", 1, "--address", server)
    assert told.out.split("\t")[2].count("@") == len(told.out.split("\t")[2].split())


def test_more_answers_than_there_are_are_refused(call, server):
    told = call("query", JOB, "abc", "--n-best", 11, "--address", server)
    assert told.code == 2
    assert "`n_best` must be at most 10" in told.err


def test_what_the_server_lacks_is_told(call, server):
    model = call("query", "nothing", "abc", "--address", server)
    signature = call("query", JOB, "abc", "--signature", "other", "--address", server)
    assert (model.code, signature.code) == (1, 1)
    assert "nothing" in model.err
    assert "It has: n_best, serving_default, timestamps" in signature.err


def test_text_that_is_too_long_is_told(call, server):
    told = call("query", JOB, "a" * 300, "--address", server)
    assert told.code == 1
    assert "`text` must have at most 256 symbols. Received more, in symbols:" in told.err
    assert "300" in told.err


def test_the_model_says_what_it_takes(server):
    with Client(server) as client:
        known = client.metadata(JOB)["signatures"]["serving_default"]
    assert known["inputs"] == {"text": {"dtype": "string", "shape": [None]}}
    assert set(known["outputs"]) == {"pronunciation", "log_probability"}


def test_a_port_in_use_is_told_with_its_number(call, server, port):
    told = call("serve", "run/models", "--port", port, "--rest_api_port", 0)
    assert told.code == 1
    assert str(port) in told.out + told.err


def test_a_folder_without_models_is_told_with_its_name(call, tmp_path):
    told = call("serve", tmp_path)
    assert told.code == 1
    assert f"No model under --model_root={tmp_path}" in told.out + told.err
    told = call("serve", tmp_path / "none")
    assert told.code == 1
    assert f"{tmp_path / 'none'}: No such file or directory" in told.out + told.err


# Data that is no use.

BAD = {
    "missing": (None, "The train file bad.tsv does not exist."),
    "empty": (b"", "The train file bad.tsv is empty."),
    "one column": (b"ab\tA B\nabc\n", "bad.tsv:2: 1 column, not 2 with a tab between them"),
    "not UTF-8": (b"ab\tA B\nc\tC\nd\xff\tD\n", "bad.tsv:3: not UTF-8: byte 0xff at position 2"),
    "too long to be answered": (
        b"".join(b"%s\tA\n" % (b"ab" * n) for n in range(1, 300)),
        "longer than --task.max_length, which is 256",
    ),
    "too short": (b"ab\tA B\n", "bad.tsv is too short to be split"),
}


@pytest.mark.parametrize("kind", BAD)
def test_data_that_is_no_use_is_told_with_its_place(call, place, kind):
    content, message = BAD[kind]
    if content is not None:
        (place / "bad.tsv").write_bytes(content)
    told = call(*run_line("bad", "bad.tsv"))
    (place / "bad.tsv").unlink(missing_ok=True)
    shutil.rmtree(place / "bad")
    assert told.code == 1
    assert message in told.err.replace(f"{place}/", "")
    assert "Traceback" not in told.err


def test_after_a_mistyped_file_name_another_one_is_taken(call, place):
    for name in ("toi.tsv", "tyo.tsv"):
        told = call(*run_line("mistyped", name))
        assert told.code == 1
        assert f"The train file {place / name} does not exist" in told.err


def test_an_unknown_data_set_is_told(call):
    told = call("run", JOB, "--folder", "unknown", "--data.name", "cmudikt")
    assert told.code == 1
    assert "There is no data set 'cmudikt/plain'" in told.err
