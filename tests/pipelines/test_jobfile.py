from dataclasses import replace

import pydantic
import pytest

from pipelines import jobfile
from pipelines.errors import UsageError
from pipelines.job import Data, Export, Train

NAMES = jobfile.names()

FILE = '''"""Says letters.

It says nothing else, by design: nothing.

Command: transduce run mine.py
Time: no time: none
"""

from pipelines import jobfile
from pipelines.job import Data, Job, Train


def job():
    known = jobfile.load("g2p_transducer").job()
    return Job(data=Data(name="mine"), task=known.task, model=known.model, train=Train(steps=7))
'''


@pytest.fixture
def mine(tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(FILE)
    return path


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("quick", [False, True])
def test_a_job_comes_back_from_its_values(name, quick):
    file = jobfile.load(name)
    job = file.job(quick)
    assert jobfile.from_values(file.job(), jobfile.to_values(job)) == job


def test_changed_values_come_back_with_their_types(mine):
    job = jobfile.load("g2p_transducer").job()
    changed = replace(
        job,
        data=Data(train=mine, validation=mine, skip_bad_lines=True, buckets=3),
        model=replace(job.model, dropout=0.0, joint_units=17),
        train=Train(steps=5, learning_rate=1e-5, schedule="inverse_sqrt", jit_compile=False),
        export=Export(name="mine.1"),
    )
    values = jobfile.to_values(changed)
    assert values["data"]["train"] == str(mine)
    assert jobfile.from_values(job, values) == changed


def test_values_that_a_job_lacks_are_refused():
    job = jobfile.load("g2p_transducer").job()
    values = jobfile.to_values(job)
    values["train"]["stepz"] = 4
    with pytest.raises(pydantic.ValidationError, match="stepz"):
        jobfile.from_values(job, values)


def test_a_job_is_given_by_its_path(mine):
    file = jobfile.load(str(mine))
    assert (file.name, file.path) == ("mine", mine)
    assert file.job().train.steps == 7


def test_the_docstring_gives_the_facts(mine):
    assert jobfile.load(str(mine)).about() == {
        "title": "Says letters.",
        "Command": "transduce run mine.py",
        "Time": "no time: none",
    }


def test_a_job_without_a_docstring_has_no_facts(mine):
    mine.write_text(FILE.rpartition('"""')[2])
    assert jobfile.load(str(mine)).about() == {"title": ""}


def test_a_job_without_a_quick_setting_says_so(mine):
    with pytest.raises(UsageError, match=r"must have a function `quick\(\)`"):
        jobfile.load(str(mine)).job(quick=True)


def test_a_file_without_a_job_is_bad_usage(mine):
    mine.write_text("jobs = 3\n")
    with pytest.raises(UsageError, match=r"must have a function `job\(\)`"):
        jobfile.load(str(mine))


def test_a_file_that_is_not_there_is_bad_usage(tmp_path):
    with pytest.raises(UsageError, match=r"A job file must exist. Received: .*none\.py"):
        jobfile.load(str(tmp_path / "none.py"))


@pytest.mark.parametrize(
    "name", ["g2p_transduser", "g2p-transducer", "G2P_transducer", "g2p_transducers"]
)
def test_an_unknown_job_names_the_nearest(name):
    with pytest.raises(UsageError, match=r"Did you mean 'g2p_transducer'\?"):
        jobfile.load(name)


def test_a_job_like_none_names_them_all():
    with pytest.raises(UsageError) as caught:
        jobfile.load("xyzzy")
    assert "Did you mean" not in str(caught.value)
    assert all(name in str(caught.value) for name in NAMES)
