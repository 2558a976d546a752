import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines import jobfile
from pipelines.errors import UsageError
from pipelines.folder import RunFolder

NAME = "g2p_transducer"


@pytest.fixture(scope="module")
def file():
    return jobfile.load(NAME)


@pytest.fixture
def started(tmp_path, file):
    """A folder in which a run was started and prepared."""
    folder = RunFolder(tmp_path / "runs" / "one")
    folder.start(file, file.job())
    folder.finish("prepare", 1.26, examples=17)
    return folder


def contents(folder):
    """Returns every file with the time it was written."""
    return {path: path.stat().st_mtime_ns for path in folder.path.rglob("*")}


def with_steps(job, steps):
    return replace(job, train=replace(job.train, steps=steps))


def test_what_is_asked_for_is_recorded_and_read_again(started, file):
    assert started.job() == (NAME, file.job())
    assert (started.path / "job.py").read_text() == file.path.read_text()
    assert json.loads((started.path / "config.json").read_text())["train"]["steps"] > 0


def test_the_surroundings_are_recorded(started):
    facts = json.loads((started.path / "environment.json").read_text())
    assert facts["seed"] == started.job()[1].train.seed
    assert re.fullmatch(r"3\.1\d\.\d+", facts["python"])
    assert facts["packages"]["tensorflow"].startswith("2.")
    assert set(facts) >= {"command", "git_revision", "platform", "processors"}


def test_starting_again_writes_nothing(started, file):
    before = contents(started)
    started.start(file, file.job())
    assert contents(started) == before


def test_another_configuration_is_refused_and_what_differs_is_named(started, file):
    before, job = contents(started), file.job()
    other = with_steps(replace(job, data=replace(job.data, train=Path("/mine.tsv"))), 123)
    with pytest.raises(UsageError) as caught:
        started.start(file, other)
    message = str(caught.value)
    assert 'data.train: null there, "/mine.tsv" asked for' in message
    assert f"train.steps: {job.train.steps} there, 123 asked for" in message
    assert len(re.findall(" asked for$", message, re.MULTILINE)) == 2
    assert str(started.path) in message
    assert contents(started) == before


def test_another_job_is_refused(started, file):
    with pytest.raises(UsageError, match=r'job: "g2p_transducer" there, "other" asked for'):
        started.start(file._replace(name="other"), file.job())


def test_the_quick_setting_is_another_configuration(started, file):
    with pytest.raises(UsageError, match=r"train\.steps"):
        started.start(file, file.job(quick=True))


def test_another_configuration_is_taken_where_nothing_is_done(tmp_path, file):
    folder = RunFolder(tmp_path)
    for steps in (5, 6):
        folder.start(file, with_steps(file.job(), steps))
        assert folder.job()[1].train.steps == steps


def test_what_a_stage_found_is_recorded_with_its_time(started):
    assert started.done("train") is None
    started.finish("train", 61.04, steps=40)
    assert started.done("prepare") == {"seconds": 1.3, "examples": 17}
    assert started.done("train") == {"seconds": 61.0, "steps": 40}
    assert RunFolder(started.path).done("train") == {"seconds": 61.0, "steps": 40}


def test_a_file_is_written_whole_or_not_at_all(started, monkeypatch):
    def fail(source, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pipelines.folder.os.replace", fail)
    with pytest.raises(OSError, match="No space"):
        started.finish("train", 2.0)
    assert started.done("train") is None
    assert started.done("prepare") == {"seconds": 1.3, "examples": 17}


def test_a_folder_that_cannot_be_made_is_bad_usage(tmp_path, file):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(UsageError, match=r"`folder` must be one that can be written to"):
            RunFolder(path).start(file, file.job())


def test_a_folder_that_cannot_be_written_to_is_bad_usage(tmp_path, file, monkeypatch):
    """Permissions do not hold for the superuser, so the refusal is made here."""

    def refuse(folder, path, content):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(RunFolder, "_write", refuse)
    with pytest.raises(UsageError, match=rf"Received: {tmp_path}: Permission denied"):
        RunFolder(tmp_path).start(file, file.job())


def test_a_folder_without_a_run_is_bad_usage(tmp_path):
    for path in (tmp_path, tmp_path / "none"):
        with pytest.raises(UsageError, match=r"must hold a config\.json"):
            RunFolder(path).job()


def test_only_one_run_at_a_time_is_in_a_folder(started):
    with started.in_use(), pytest.raises(UsageError, match="Only one process"), started.in_use():
        raise AssertionError("the second one was let in")
    with started.in_use() as folder:
        assert folder is started
