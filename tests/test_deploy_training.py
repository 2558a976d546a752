"""What `deploy/training` makes of a cluster is what `transduce run` takes."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml

from pipelines.cluster import Cluster
from pipelines.errors import FAILURE, LOST, TERMINATED, USAGE

TRAINING = Path(__file__).resolve().parents[1] / "deploy" / "training"
WORKERS = yaml.safe_load((TRAINING / "jobset.yaml").read_text())["spec"]["replicatedJobs"][0]
JOB = WORKERS["template"]["spec"]
POD = JOB["template"]["spec"]


@pytest.fixture
def commands(tmp_path, monkeypatch):
    """Puts commands before all others; the cluster's `transduce` says how it was called."""

    def of(**scripts):
        for name, script in scripts.items():
            (tmp_path / name).write_text(f"#!/bin/bash\n{script}\n")
            (tmp_path / name).chmod(0o755)
        monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")

    return of


def call(monkeypatch, *command, **environment):
    """Returns how a command called `transduce`, and with which cluster."""
    done = subprocess.run(
        command, env={**os.environ, **environment}, capture_output=True, text=True, check=True
    )
    line, config = done.stdout.split("\n", 1)
    monkeypatch.setenv("TF_CONFIG", config)
    return line, Cluster.of_environment()


TELL = 'echo "$@"; echo "$TF_CONFIG"'


def test_each_pod_of_the_job_set_is_a_worker(commands, monkeypatch):
    (container,) = POD["containers"]
    commands(transduce=TELL)
    for index in range(JOB["completions"]):
        line, cluster = call(
            monkeypatch,
            *(*container["command"], *container["args"]),
            JOB_COMPLETION_INDEX=str(index),
        )
        assert line == "run g2p_transducer --strategy multi_worker --folder /runs/g2p"
        port = container["ports"][0]["containerPort"]
        assert cluster.address == f"transduce-workers-0-{index}.transduce:{port}"
        assert (cluster.index, cluster.workers) == (index, JOB["parallelism"])
    assert container["volumeMounts"][0]["mountPath"] == "/runs"


def test_the_job_set_fails_for_good_where_a_restart_mends_nothing():
    (rule,) = JOB["podFailurePolicy"]["rules"]
    assert rule["onExitCodes"]["values"] == [FAILURE, USAGE]
    assert rule["onExitCodes"]["containerName"] == POD["containers"][0]["name"]
    assert (JOB["backoffLimit"], POD["restartPolicy"]) == (0, "Never")


def test_each_task_of_slurm_is_a_worker(commands, monkeypatch):
    commands(transduce=TELL, scontrol="printf 'a\\nb\\n'", srun='shift; SLURM_PROCID=1 "$@"')
    line, cluster = call(monkeypatch, "bash", str(TRAINING / "slurm.sh"), HOME="/home/me")
    assert line == "run g2p_transducer --strategy multi_worker --folder /home/me/runs/g2p"
    assert (cluster.name, cluster.address, cluster.workers) == ("worker 1", "b:2222", 2)


AGAIN = [
    (0, 0, False),
    (FAILURE, 0, False),
    (LOST, 0, True),
    (TERMINATED, 5, True),
    (LOST, 100, False),
]


@pytest.mark.parametrize(("code", "count", "again"), AGAIN)
def test_slurm_runs_the_job_again_where_that_mends_something(commands, code, count, again):
    commands(srun=f"exit {code}", scontrol='echo "$@"')
    done = subprocess.run(
        ["bash", str(TRAINING / "slurm.sh")],
        env={**os.environ, "SLURM_JOB_ID": "17", "SLURM_RESTART_COUNT": str(count)},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout) == (code, "requeue 17\n" if again else "")
