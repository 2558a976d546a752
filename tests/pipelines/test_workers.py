"""Workers in processes of their own do what one process does, whatever ends them."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from pipelines import jobfile
from pipelines.cluster import free_ports, tf_config
from pipelines.display import Display
from pipelines.folder import RunFolder
from pipelines.run import Run

JOB = "g2p_transducer"
STEPS = 40
FIELDS = {
    "data": {"batch_tokens": 56, "buckets": 2},
    "model": {
        "embedding_units": 7,
        "encoder_units": 13,
        "encoder_layers": 1,
        "predictor_units": 11,
        "joint_units": 17,
        "dropout": 0.0,
    },
    "train": {
        "steps": STEPS,
        "optimizer": "sgd",
        "beta_1": 0.0,
        "learning_rate": 0.2,
        "warmup_steps": 4,
        "log_every": 1,
        "evaluate_every": 100,
        "checkpoint_every": 4,
    },
    "export": {"verify_examples": 2},
}
SIZES = [f"--{part}.{name}={x}" for part, fields in FIELDS.items() for name, x in fields.items()]
LINE = [JOB, "--data.train", "toy.tsv", "--train.no_jit_compile", *SIZES]
COMMAND = [sys.executable, "-m", "pipelines.cli", "run", *LINE]
TWO = ["--strategy", "multi_worker", "--workers", "2"]
SERVED = ["--strategy", "parameter_server"]


@pytest.fixture(scope="module")
def place(tmp_path_factory, words):
    """Where the commands run; holds a TSV."""
    place = tmp_path_factory.mktemp("place")
    lines = (f"{word}\t{' '.join(word.upper())}\n" for word in words(300))
    (place / "toy.tsv").write_text("".join(lines))
    return place


def start(place, folder, *options, on=(), **environment):
    return subprocess.Popen(
        [*on, *COMMAND, "--folder", folder, *options],
        cwd=place,
        env={**os.environ, **environment},
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.fixture(scope="module")
def alone(place):
    """The folder of a run that was trained by one process."""
    folder, file = RunFolder(place / "alone"), jobfile.load(JOB)
    job = file.job()
    changed = {part: replace(getattr(job, part), **fields) for part, fields in FIELDS.items()}
    changed["data"] = replace(changed["data"], train=place / "toy.tsv")
    changed["train"] = replace(changed["train"], jit_compile=False)
    folder.start(file, replace(job, **changed))
    run = Run(folder, Display(), "one_device")
    folder.finish("prepare", 0.0, **run.prepare())
    run.train()
    return folder.path


def weights(folder, step=STEPS):
    reader = tf.train.load_checkpoint(str(folder / "checkpoints" / f"ckpt-{step}"))
    names = [
        name
        for name in reader.get_variable_to_shape_map()
        if name.startswith(("weights/", "carried/"))
    ]
    assert len(names) >= 10
    return {name: reader.get_tensor(name) for name in names}


def assert_same(folder, other):
    """Compares final weights, to float32 rounding, and what was logged."""
    right = weights(other)
    for name, value in weights(folder).items():
        assert np.linalg.norm(value - right[name]) <= 2e-6 * np.linalg.norm(right[name]), name
    lines, rights = (
        [json.loads(line) for line in (path / "metrics.jsonl").read_text().splitlines()]
        for path in (folder, other)
    )
    assert [line["step"] for line in lines] == [line["step"] for line in rights]
    for line, line_of_one in zip(lines, rights, strict=True):
        assert line == pytest.approx(line_of_one, rel=1e-5)


def workers(run):
    """Returns the processes that a supervisor has started, in their order."""
    children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def test_workers_do_what_one_process_does_though_one_is_killed(read_until, place, alone):
    with start(place, "two", *TWO) as run:
        read_until(run, "step 10 of")
        os.kill(workers(run)[1], signal.SIGKILL)
        told = read_until(run, "train: going on from step")
        read_until(run, "train: done")
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=120)
    assert "worker 1 was ended by SIGKILL; starting all again from the last checkpoint" in told
    assert run.returncode == 130
    assert_same(place / "two", alone)


@pytest.mark.slow
@pytest.mark.parametrize("joined", [True, False])
def test_workers_with_a_service_do_what_one_process_does(read_until, place, alone, joined):
    """They share the batches of one that they join, or each has its own."""
    service = [sys.executable, "-m", "pipelines.cli", "serve_data"]
    folder, given = f"served-{joined}", "1"
    with ExitStack() as processes:
        if joined:
            dispatcher = processes.enter_context(running(service))
            given = re.search(r"grpc://\S+", dispatcher.stdout.readline()).group()
            processes.enter_context(running([*service, "--join", given])).stdout.readline()
        with start(place, folder, *TWO, "--data.service", given) as run:
            told = read_until(run, "train: done")
            run.kill()
    assert "workers: 1; in their order" in told
    assert_same(place / folder, alone)
    log = (place / folder / "logs" / "worker-1.log").read_text()
    assert "workers: 1; in their order" in log
    assert "made here" not in told + log


@contextmanager
def running(command):
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        yield process
        process.kill()


@pytest.fixture
def prepared(place, alone):
    """Returns the name of a folder in which only the first stage is done."""

    def folder(name):
        shutil.copytree(alone, place / name, ignore=shutil.ignore_patterns("checkpoints", "best"))
        stages = json.loads((alone / "stages.json").read_text())
        (place / name / "stages.json").write_text(json.dumps({"prepare": stages["prepare"]}))
        return name

    return folder


@pytest.fixture
def cluster():
    """Returns TF_CONFIG of a worker by its number, of two on this machine."""
    addresses = {"worker": [f"localhost:{port}" for port in free_ports(2)]}
    return lambda index: tf_config(addresses, "worker", index)


def contents(folder):
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in files}


@pytest.mark.slow
def test_in_a_cluster_only_the_chief_writes_and_who_loses_it_says_so(
    read_until, place, prepared, cluster
):
    """The worker has a copy of the folder, which is to stay as it is."""
    options = ["--strategy", "multi_worker"]
    copy = place / prepared("copy")
    before = contents(copy)
    with (
        start(place, prepared("cluster"), *options, TF_CONFIG=cluster(0)) as chief,
        start(place, "copy", *options, TF_CONFIG=cluster(1)) as worker,
    ):
        read_until(chief, "step 10 of")
        chief.kill()
        told = worker.communicate(timeout=120)[1]
    assert worker.returncode == 75, told
    lines = [line for line in told.splitlines() if line.startswith("transduce: ")]
    assert re.fullmatch("transduce: another process was lost: .* go on from there", lines[0])
    assert "Detected at node" not in told
    assert contents(copy) == before
    assert (place / "cluster" / "checkpoints" / "checkpoint").exists()


RANDOM = "--model.dropout 0.2 --train.ema 0.9 --train.accumulate 2 --train.optimizer adamw".split()


@pytest.mark.slow
@pytest.mark.parametrize("index", [0, 1])
def test_a_killed_worker_changes_no_bit_and_costs_seconds(read_until, place, index):
    undisturbed, killed = f"undisturbed-{index}", f"killed-{index}"
    with start(place, undisturbed, *TWO, *RANDOM) as run:
        run.communicate()
    assert run.returncode == 0
    with start(place, killed, *TWO, *RANDOM) as run:
        read_until(run, "step 10 of")
        os.kill(workers(run)[index], signal.SIGKILL)
        started = time.monotonic()
        read_until(run, "train: going on from step")
        seconds = time.monotonic() - started
        run.communicate()
    assert run.returncode == 0
    assert seconds < 30
    files = [
        {
            name: (place / folder / name).read_bytes()
            for name in ("metrics.jsonl", "evaluation.json")
        }
        for folder in (undisturbed, killed)
    ]
    assert files[0] == files[1]
    right = weights(place / undisturbed)
    for name, value in weights(place / killed).items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


@pytest.mark.slow
def test_sigterm_saves_at_the_same_step_of_all_workers(read_until, place):
    with start(place, "terminated", *TWO) as run:
        read_until(run, "step 10 of")
        run.terminate()
        told = run.communicate()[1]
    assert run.returncode == 143
    (step,) = re.findall(r"stopped at step (\d+) of 40; the same command goes on from", told)
    assert f"stopped at step {step} of 40" in (place / "terminated/logs/worker-1.log").read_text()
    with start(place, "terminated", *TWO) as run:
        assert f"train: going on from step {step}\n" in run.communicate()[1]
    assert run.returncode == 0


@pytest.mark.slow
def test_a_killed_supervisor_leaves_workers_that_save_and_end(read_until, place):
    with start(place, "orphans", *TWO) as run:
        read_until(run, "step 10 of")
        run.kill()
        told = run.stderr.read()  # until the chief has ended
    assert re.search(r"stopped at step \d+ of 40; the same command goes on from there", told)


@pytest.mark.slow
def test_workers_compile(read_until, place, alone):
    with start(place, "compiled", *TWO, "--train.jit_compile") as run:
        read_until(
            run, "train: on multi_worker, 2 replicas on CPU, global batch 56 tokens, float32, XLA"
        )
        run.communicate()
    assert run.returncode == 0
    assert_same(place / "compiled", alone)


@pytest.mark.slow
def test_a_worker_of_another_configuration_fails_all(place, prepared, cluster):
    options = ["--strategy", "multi_worker"]
    with (
        start(place, prepared("one"), *options, TF_CONFIG=cluster(0)) as chief,
        start(place, "one", *options, "--train.seed", "7", TF_CONFIG=cluster(1)) as worker,
    ):
        told = worker.communicate(timeout=120)[1]
        chief.kill()
    assert worker.returncode == 2
    assert "train.seed: 1 there, 7 asked for" in told


CHUNKED = """char_lm --data.train text.txt --data.batch_size 7 --task.chunk 8 --model.units 11
    --model.layers 2 --model.embedding_units 5 --model.dropout 0 --train.steps 40
    --train.optimizer sgd --train.beta_1 0 --train.warmup_steps 4 --train.learning_rate 0.2
    --train.log_every 1 --train.evaluate_every 100 --train.checkpoint_every 4
    --train.no_jit_compile""".split()


@pytest.mark.slow
def test_workers_carry_a_state_from_chunk_to_chunk_as_one_process_does(read_until, place):
    """Each its part of seven rows, also after all were started again."""
    (place / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 50)
    command = [sys.executable, "-m", "pipelines.cli", "run", *CHUNKED]
    for folder, options in (("rows", ["--strategy", "one_device"]), ("rows-of-two", TWO)):
        with subprocess.Popen(
            [*command, "--folder", folder, *options], cwd=place, stderr=subprocess.PIPE, text=True
        ) as run:
            if options is TWO:
                read_until(run, "step 10 of")
                os.kill(workers(run)[1], signal.SIGKILL)
                read_until(run, "train: going on from step")
            read_until(run, "train: done")
            run.send_signal(signal.SIGINT)
            run.communicate(timeout=120)
    assert_same(place / "rows-of-two", place / "rows")


@pytest.mark.slow
def test_one_worker_with_parameter_servers_does_what_one_process_does(read_until, place, alone):
    options = [*SERVED, "--workers", "1", "--servers", "2", "--train.jit_compile"]
    with start(place, "one-served", *options) as run:
        told = "train: on parameter_server, 1 worker and 2 servers, global batch 56 tokens, float32"
        read_until(run, f"{told}, XLA")
        read_until(run, "train: done")
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=120)
    assert_same(place / "one-served", alone)


@pytest.mark.slow
def test_a_service_makes_the_batches_of_parameter_servers(read_until, place, alone):
    options = [*SERVED, "--workers", "1", "--data.service", "2"]
    with start(place, "served-served", *options) as run:
        told = read_until(run, "train: done")
        run.send_signal(signal.SIGINT)
        run.communicate(timeout=60)
    assert "workers: 2; in their order" in told
    assert "made here" not in told
    assert_same(place / "served-served", alone)


def losses(folder):
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    return [line["loss"] for line in lines if "loss" in line]


@pytest.mark.slow
def test_a_killed_worker_of_parameter_servers_is_replaced_and_the_other_goes_on(read_until, place):
    with start(place, "replaced", *SERVED, "--workers", "2") as run:
        read_until(run, "step 10 of")
        os.kill(workers(run)[2], signal.SIGKILL)
        told = run.communicate()[1]
    assert run.returncode == 0, told
    assert "worker 0 was ended by SIGKILL; starting it again" in told
    assert "going on from step" not in told
    found = losses(place / "replaced")
    assert len(found) == STEPS
    assert sum(found[-5:]) < 0.9 * sum(found[:5])


@pytest.mark.slow
@pytest.mark.parametrize(("index", "name"), [(0, "chief 0"), (1, "ps 0")])
def test_a_killed_server_or_chief_restarts_all_from_the_last_checkpoint(
    read_until, place, index, name
):
    folder = name.replace(" ", "-")
    with start(place, folder, *SERVED, "--workers", "2") as run:
        read_until(run, "step 10 of")
        os.kill(workers(run)[index], signal.SIGKILL)
        told = run.communicate()[1]
    assert run.returncode == 0, told
    assert f"{name} was ended by SIGKILL; starting all again from the last checkpoint" in told
    assert re.search(r"train: going on from step (8|12)\n", told)


@pytest.mark.slow
def test_sigterm_saves_what_parameter_servers_hold(read_until, place):
    with start(place, "served-terminated", *SERVED, "--workers", "2") as run:
        read_until(run, "step 10 of")
        run.terminate()
        told = run.communicate()[1]
    assert run.returncode == 143, told
    (step,) = re.findall(r"stopped at step (\d+) of 40; the same command goes on from", told)
    with start(place, "served-terminated", "--strategy", "one_device") as run:
        assert f"train: going on from step {step}\n" in run.communicate()[1]
    assert run.returncode == 0


@pytest.fixture
def served():
    """Returns TF_CONFIG of a chief, parameter server or worker, of one each on this machine."""
    ports = zip(("chief", "ps", "worker"), free_ports(3), strict=True)
    addresses = {role: [f"localhost:{port}"] for role, port in ports}
    return lambda role: tf_config(addresses, role, 0)


@pytest.mark.slow
def test_who_lends_a_chief_its_devices_needs_no_folder_and_ends_when_the_chief_does(
    place, prepared, served, tmp_path
):
    (tmp_path / "toy.tsv").touch()
    with (
        start(tmp_path, "none", *SERVED, TF_CONFIG=served("ps")) as server,
        start(tmp_path, "none", *SERVED, TF_CONFIG=served("worker")) as worker,
        start(place, prepared("led"), *SERVED, TF_CONFIG=served("chief")) as chief,
    ):
        told = chief.communicate()[1]
        assert chief.returncode == 0, told
        for lender in (server, worker):
            told = lender.communicate(timeout=120)[1]
            assert lender.returncode == 0, told
    assert [path.name for path in tmp_path.iterdir()] == ["toy.tsv"]


@pytest.mark.slow
def test_a_chief_that_loses_its_server_says_so(read_until, place, prepared, served):
    with (
        start(place, "left", *SERVED, TF_CONFIG=served("ps")) as server,
        start(place, "left", *SERVED, TF_CONFIG=served("worker")) as worker,
        start(place, prepared("left"), *SERVED, TF_CONFIG=served("chief")) as chief,
    ):
        read_until(chief, "step 10 of")
        server.kill()
        told = chief.communicate(timeout=120)[1]
        assert chief.returncode == 75, told
        assert "transduce: another process was lost: " in told
        assert worker.wait(120) == 0


@pytest.mark.slow
def test_parameter_servers_refuse_to_carry_a_state_from_chunk_to_chunk(place):
    (place / "text.txt").write_text("the quick brown fox jumps over the lazy dog\n" * 300)
    line = "run char_lm --quick --data.train text.txt --strategy parameter_server --workers 1"
    done = subprocess.run(
        [sys.executable, "-m", "pipelines.cli", *line.split(), "--folder", "chunks"],
        cwd=place,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2, done.stderr
    assert "must have examples by themselves" in done.stderr


class Hosts:
    """Three hosts 10.77.0.1 … 3 on a switch: network namespaces of this machine.

    Attributes:
        on: What a command begins with that is to run on each of them.
    """

    def __init__(self, name):
        self._switch, hosts = f"{name}-switch", [f"{name}-{n}" for n in range(3)]
        self.namespaces = [self._switch, *hosts]
        self.on = [["ip", "netns", "exec", host] for host in hosts]
        for namespace in self.namespaces:
            ip("netns", "add", namespace)
        ip("-n", self._switch, "link", "add", "bridge", "type", "bridge")
        ip("-n", self._switch, "link", "set", "bridge", "up")
        for n, host in enumerate(hosts):
            port = ("-n", self._switch, "link", "set", f"port{n}")
            ip("-n", self._switch, "link", "add", f"port{n}", "type", "veth", "peer", "eth0")
            ip("-n", self._switch, "link", "set", "eth0", "netns", host)
            ip(*port, "master", "bridge", "up")
            ip("-n", host, "address", "add", f"10.77.0.{n + 1}/24", "dev", "eth0")
            ip("-n", host, "link", "set", "eth0", "up")
            ip("-n", host, "link", "set", "lo", "up")

    def cut(self, number):
        """Takes a host off the switch."""
        ip("-n", self._switch, "link", "set", f"port{number}", "down")


def ip(*arguments):
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.fixture
def hosts():
    name = f"transduce-{os.getpid()}"
    try:
        ip("netns", "add", f"{name}-probe")
        ip("netns", "delete", f"{name}-probe")
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"hosts must be network namespaces, which cannot be made here: {error}")
    made = Hosts(name)
    yield made
    for namespace in made.namespaces:
        ip("netns", "delete", namespace)


def addresses(*roles):
    """Returns TF_CONFIG of each process: of these roles, each on the next host."""
    cluster, tasks = {}, []
    for n, role in enumerate(roles):
        of_role = cluster.setdefault(role, [])
        tasks.append((role, len(of_role)))
        of_role.append(f"10.77.0.{n + 1}:2222")
    return [tf_config(cluster, *task) for task in tasks]


@pytest.mark.slow
def test_workers_on_two_hosts_do_what_one_process_does(read_until, place, alone, prepared, hosts):
    prepared("hosts")
    options = ["--strategy", "multi_worker"]
    with ExitStack() as processes:
        chief, worker = (
            processes.enter_context(start(place, "hosts", *options, on=on, TF_CONFIG=config))
            for on, config in zip(hosts.on, addresses("worker", "worker"), strict=False)
        )
        read_until(chief, "train: done")
        assert worker.wait(60) == 0
        chief.kill()
    assert_same(place / "hosts", alone)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("strategy", "roles", "cut", "codes"),
    [
        ("multi_worker", ["worker", "worker", "worker"], 0, [75, 75, 75]),
        ("multi_worker", ["worker", "worker", "worker"], 2, [75, 75, 75]),
        ("parameter_server", ["chief", "ps", "worker"], 1, [75, 0, 0]),
        ("parameter_server", ["chief", "ps", "worker"], 2, [75, 0, 0]),
    ],
)
def test_a_host_whose_link_is_cut_ends_all_within_a_minute(
    read_until, place, hosts, strategy, roles, cut, codes
):
    options = ["--strategy", strategy, "--train.steps", "100000"]
    with ExitStack() as processes:
        runs = [
            processes.enter_context(
                start(place, f"{strategy}-cut-{cut}", *options, on=on, TF_CONFIG=config)
            )
            for on, config in zip(hosts.on, addresses(*roles), strict=True)
        ]
        read_until(runs[0], "step 10 of")
        hosts.cut(cut)
        until = time.monotonic() + 60
        for run in runs:
            processes.callback(run.kill)
        told = [run.communicate(timeout=max(1, until - time.monotonic()))[1] for run in runs]
    assert [run.returncode for run in runs] == codes, told
    assert "transduce: another process was lost: " in told[0]
