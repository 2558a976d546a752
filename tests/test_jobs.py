"""What every job has, found by being there."""

import dataclasses
import json
import shlex

import pytest

from pipelines import jobfile
from pipelines.job import Job

NAMES = jobfile.names()
FACTS = ("Command", "Data", "Time", "Result")


@pytest.fixture(params=NAMES)
def file(request):
    return jobfile.load(request.param)


def parts(job):
    return [getattr(job, field.name) for field in dataclasses.fields(job)]


def test_there_are_jobs():
    assert NAMES


def test_a_job_says_what_it_does_and_with_what_result(file):
    about = file.about()
    assert about["title"].endswith(".")
    assert all(about.get(fact, "").strip() for fact in FACTS)


def test_its_command_runs_it(file):
    assert shlex.split(file.about()["Command"])[:3] == ["transduce", "run", file.name]


@pytest.mark.parametrize("quick", [False, True])
def test_it_is_a_job_that_cannot_be_changed(file, quick):
    job = file.job(quick)
    assert isinstance(job, Job)
    for part in (job, *parts(job)):
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(part, dataclasses.fields(part)[0].name, None)


def test_it_is_the_same_job_every_time(file):
    assert file.job() == file.job()
    assert file.job(quick=True) == file.job(quick=True)


def test_its_quick_setting_is_made_of_the_same_parts_and_has_fewer_steps(file):
    full, quick = file.job(), file.job(quick=True)
    assert quick.train.steps < full.train.steps
    assert [type(part) for part in parts(quick)] == [type(part) for part in parts(full)]


def test_it_evaluates_before_it_ends(file):
    for job in (file.job(), file.job(quick=True)):
        assert job.train.evaluate_every <= job.train.steps
        assert job.train.warmup_steps < job.train.steps


def test_it_can_be_recorded_as_json(file):
    assert json.loads(json.dumps(jobfile.to_values(file.job()))) == jobfile.to_values(file.job())
