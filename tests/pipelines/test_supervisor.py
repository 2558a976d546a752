"""Processes without TensorFlow, each doing what the test says."""

import os
import signal
import subprocess
import sys
import textwrap
import time
from types import SimpleNamespace

import pytest

# Runs a supervisor of two workers whose program is given, and the role that is replaced, if any.
SUPERVISOR = """
import sys
from pathlib import Path
from pipelines.folder import RunFolder
from pipelines.supervisor import supervise

with RunFolder(Path("run")).in_use() as folder:
    sys.exit(supervise([sys.executable, "-c", sys.argv[1]], folder, {"worker": 2}, *sys.argv[2:]))
"""
# What the programs begin with: `me`, how often it was `started`, `checkpoint()`.
BEGINNING = """
import json, os, pathlib, signal, sys, time
me = json.loads(os.environ["TF_CONFIG"])["task"]["index"]
counter = pathlib.Path(f"started-{me}")
started = int(counter.read_text()) + 1 if counter.exists() else 1
counter.write_text(str(started))
other = pathlib.Path(f"started-{1 - me}")
def checkpoint(step):
    folder = pathlib.Path("run/checkpoints")
    folder.mkdir(exist_ok=True)
    (folder / f"ckpt-{step}.index").touch()
def wait_until(holds):
    while not holds():
        time.sleep(0.01)
def wait_for_ever():
    wait_until(lambda: False)
def runs(number):  # until the supervisor knows that it does not
    try:
        os.kill(number, 0)
        return True
    except ProcessLookupError:
        return False
def die():
    os.kill(os.getpid(), signal.SIGKILL)
wait_until(lambda: other.exists() and other.read_text() == counter.read_text())
"""


@pytest.fixture
def start(tmp_path):
    """Returns a supervisor's process; its workers run this program."""
    running = []

    def of(program, *replaced):
        program = BEGINNING + textwrap.dedent(program)
        running.append(
            subprocess.Popen(
                [sys.executable, "-c", SUPERVISOR, program, *replaced],
                cwd=tmp_path,
                env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
            )
        )
        return running[-1]

    yield of
    for process in running:
        process.kill()
        process.communicate()


@pytest.fixture
def supervised(start, tmp_path):
    """Returns what became of it."""

    def of(program, *replaced):
        process = start(program, *replaced)
        out, err = process.communicate(timeout=60)
        counts = [int((tmp_path / f"started-{index}").read_text()) for index in (0, 1)]
        return SimpleNamespace(code=process.returncode, out=out, err=err, starts=counts)

    return of


def test_the_chief_speaks_here_and_the_others_in_logs(supervised, tmp_path):
    done = supervised("""
        print("I am", me, flush=True)
        if me == 1: wait_for_ever()
        wait_until(pathlib.Path("run/logs/worker-1.log").read_text)
    """)
    assert (done.code, done.out, done.err) == (0, "I am 0\n", "")
    assert (tmp_path / "run" / "logs" / "worker-1.log").read_text() == "I am 1\n"


@pytest.mark.parametrize("lost", [0, 1])
@pytest.mark.parametrize("how", ["die()", "sys.exit(75)"])
def test_when_one_is_lost_all_start_again(supervised, lost, how):
    done = supervised(f"""
        if started == 2: sys.exit(0)
        if me == {lost}: {how}
        wait_for_ever()
    """)
    assert (done.code, done.starts) == (0, [2, 2])
    how = "was ended by SIGKILL" if how == "die()" else "missed another process"
    told = f"transduce: worker {lost} {how}; starting all again from the last checkpoint\n"
    assert done.err == told


def test_one_whom_the_others_go_on_without_is_replaced_alone(supervised):
    """Where it was: it has the same configuration."""
    done = supervised(
        """
        mine = pathlib.Path(f"config-{me}")
        if started == 1:
            mine.write_text(os.environ["TF_CONFIG"])
        elif mine.read_text() != os.environ["TF_CONFIG"]:
            sys.exit(1)
        if me == 1 and started == 1: die()
        if me == 1: wait_for_ever()
        print("started", flush=True)
        wait_until(lambda: other.read_text() == "2")
        counter.write_text("2")
        time.sleep(0.5)
        """,
        "worker",
    )
    assert (done.code, done.starts, done.out) == (0, [2, 2], "started\n")
    assert done.err == "transduce: worker 1 was ended by SIGKILL; starting it again\n"


def test_losses_without_a_new_checkpoint_are_limited_and_told_with_the_last_lines(supervised):
    done = supervised("""
        if started == 1: checkpoint(8)
        print("line of", me, flush=True)
        if me == 1: die()
        wait_for_ever()
    """)
    assert (done.code, done.starts) == (1, [3, 3])
    assert "3 losses without a new checkpoint between" in done.err
    assert "worker-1.log ends with:\n  line of 1\n" in done.err


def test_losses_with_new_checkpoints_between_are_not(supervised):
    done = supervised("""
        if me == 0:
            checkpoint(started)
            if started == 6: sys.exit(0)
        elif started < 6:
            wait_until(pathlib.Path(f"run/checkpoints/ckpt-{started}.index").exists)
            die()
        wait_for_ever()
    """)
    assert (done.code, done.starts) == (0, [6, 6])


def test_a_failure_of_a_worker_ends_all_with_its_code_and_last_lines(supervised):
    done = supervised("""
        failing = pathlib.Path("failing")
        if me == 1:
            print("this is wrong", flush=True)
            failing.write_text(str(os.getpid()))
            sys.exit(3)
        wait_until(lambda: failing.exists() and failing.read_text())
        number = int(failing.read_text())
        wait_until(lambda: not runs(number))
        sys.exit(75)
    """)
    assert (done.code, done.starts) == (3, [1, 1])
    assert "transduce: worker 1 failed. run/logs/worker-1.log ends with:" in done.err
    assert done.err.endswith("  this is wrong\n")


def test_a_failure_that_all_share_is_told_once(supervised):
    done = supervised("""
        if me == 0: time.sleep(0.5)
        print("wrong", file=sys.stderr)
        sys.exit(1)
    """)
    assert (done.code, done.err, done.starts) == (1, "wrong\n", [1, 1])


SAVING = """
    def save(number, frame):
        print("saved", me, number, flush=True)
        sys.exit(128 + number)
    for each in (signal.SIGINT, signal.SIGTERM):
        signal.signal(each, save)
    print("ready", flush=True)
    wait_for_ever()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_reaches_all_and_its_code_comes_back(start, tmp_path, number):
    process = start(SAVING)
    assert process.stdout.readline() == "ready\n"
    log = tmp_path / "run" / "logs" / "worker-1.log"
    until(lambda: log.read_text() == "ready\n")
    process.send_signal(number)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out, err) == (128 + number, f"saved 0 {number}\n", "")
    assert log.read_text() == f"ready\nsaved 1 {number}\n"


def test_a_third_signal_ends_what_does_not_hear(start):
    process = start("""
        signal.signal(signal.SIGTERM, lambda number, frame: print("heard", flush=True))
        print("ready", flush=True)
        wait_for_ever()
    """)
    assert process.stdout.readline() == "ready\n"
    for _ in range(2):
        process.terminate()
        assert process.stdout.readline() == "heard\n"
    process.terminate()
    process.communicate(timeout=60)
    assert process.returncode == 143


def test_a_killed_supervisor_leaves_its_lock_to_its_processes(start, tmp_path):
    """Their standard input ends, by which they know."""
    process = start("""
        print(os.getpid(), flush=True)
        os.read(0, 1)
        wait_until(pathlib.Path("refused").exists)
    """)
    process.stdout.readline()
    process.kill()
    process.wait()
    refused = start("").communicate()[1]
    (tmp_path / "refused").touch()
    assert "Only one process may run in a folder" in refused


def until(holds):
    while not holds():
        time.sleep(0.05)
