"""Batches of a tf.data service are those of this process, whoever of its workers ends."""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from contextlib import ExitStack, closing

import numpy as np
import pytest
import tensorflow as tf

from pipelines.cluster import command
from pipelines.errors import UsageError
from pipelines.input import training_batches, write_examples
from pipelines.served import ServedBatches
from pipelines.service import SCHEME, Service, serve, started
from pipelines.store import FeatureStore

names = tf.data.experimental.service
COUNT = 100  # more than are kept ready


@pytest.fixture(scope="module")
def workers(tmp_path_factory):
    """Returns a service with workers in processes of their own, which tests may kill."""
    with ExitStack() as services:

        def start(count):
            return services.enter_context(started(count, tmp_path_factory.mktemp("logs") / "logs"))

        yield start


@pytest.fixture
def within():
    """A service whose worker is in this process."""
    dispatcher = names.DispatchServer(names.DispatcherConfig(0))
    address = dispatcher.target.removeprefix(SCHEME)
    worker = names.WorkerServer(names.WorkerConfig(address))
    yield Service(address)
    del worker


@pytest.fixture
def batches(speller, records, words, tmp_path):
    """Batches of words, changed by a random number each."""
    pairs = [(word, word.upper()) for word in words(97)]
    write_examples([records(pairs)], speller(), tmp_path / "features")

    def augmented(batch, seed):
        return batch | {"noise": tf.random.stateless_uniform([3], seed)}

    store = FeatureStore(tmp_path / "features", None)
    return training_batches(store, [[2, 2], [4, 4]], [12, 6], 5, None, augmented)


@pytest.fixture
def served():
    """Returns batches of a service, and a list of what is told of it."""
    with ExitStack() as opened:

        def open_service(batches, service, first=0, **options):
            told = []
            made = ServedBatches(batches, first, service, told.append, **options)
            return opened.enter_context(closing(made)), told

        yield open_service


def assert_next(made, batches, first, count=COUNT):
    """Checks the next batches to the last bit."""
    for right in batches.since(first).take(count):
        batch = next(made)
        assert batch.keys() == right.keys()
        for name, value in right.items():
            np.testing.assert_array_equal(batch[name], value, name)


def go_on_until_told(made, batches, first, told, lines):
    """Checks the next batches until so many lines are told; returns the number after them."""
    until = time.monotonic() + 60
    while len(told) < lines and time.monotonic() < until:
        assert_next(made, batches, first, 1)
        time.sleep(0.05)  # a training is slower than what makes its batches
        first += 1
    return first


def wait_for_batches(made, count=1):
    """Returns once so many are ready."""
    until = time.monotonic() + 60
    while len(made._ready) < count and time.monotonic() < until:
        time.sleep(0.05)


def end(service, number, how=signal.SIGKILL):
    """Sends a worker a signal; returns what it is called."""
    address, process = list(service._workers.items())[number]
    process.send_signal(how)
    if how == signal.SIGKILL:
        process.wait()
    return f"data worker {number} at {address}"


@pytest.mark.parametrize("first", [0, 37])
def test_batches_of_a_service_are_those_of_this_process_in_the_same_order(
    within, served, batches, first
):
    made, told = served(batches, within, first)
    assert_next(made, batches, first)
    (line,) = told
    assert within.address in line
    assert "workers: 1; in their order" in line


def test_workers_that_are_killed_are_named_and_batches_go_on(workers, served, batches):
    service = workers(2)
    made, told = served(batches, service)
    assert_next(made, batches, 0, 10)
    wait_for_batches(made, 64)  # so that each worker has some more
    first = end(service, 0)
    assert_next(made, batches, 10, 2 * COUNT)
    number = go_on_until_told(made, batches, 10 + 2 * COUNT, told, 2)
    assert f"lost {first}, ended by SIGKILL" in told[1]
    assert "1 other goes on" in told[1]
    second = end(service, 1)
    assert_next(made, batches, number, 2 * COUNT)
    assert f"lost {second}, ended by SIGKILL" in told[2]
    assert "made here" in told[2]
    assert len(told) == 3  # and none of them that it was waited for as long as may be
    worker = names.WorkerServer(names.WorkerConfig(service.address))
    go_on_until_told(made, batches, number + 2 * COUNT, told, 4)
    made.close()
    del worker
    assert "gives batches again" in told[3]


def test_reading_ends_though_no_worker_is_there(workers, served, batches):
    service = workers(1)
    made, _ = served(batches, service)
    assert_next(made, batches, 0, 10)
    end(service, 0)
    go_on = COUNT + 64  # more than were ready
    assert_next(made, batches, 10, go_on)
    made.close()
    assert not made._thread.is_alive()


def test_a_worker_that_does_nothing_is_waited_for_so_long_and_taken_back(workers, served, batches):
    service = workers(1)
    made, told = served(batches, service, patience=1.0)
    assert_next(made, batches, 0, 10)
    end(service, 0, signal.SIGSTOP)
    assert_next(made, batches, 10, 3 * COUNT)
    assert "no batch has come for 1 s" in told[1]
    end(service, 0, signal.SIGCONT)
    go_on_until_told(made, batches, 10 + 3 * COUNT, told, 3)
    assert "gives batches again" in told[2]


@pytest.mark.slow
def test_a_dispatcher_that_is_killed_is_named_and_batches_go_on(served, batches):
    with ExitStack() as processes:

        def run(*options):
            line = command(["serve_data", *options])
            process = processes.enter_context(subprocess.Popen(line, stdout=-1, text=True))
            processes.callback(process.kill)
            return process, process.stdout.readline()

        dispatcher, told = run()
        (address,) = re.findall(rf"{SCHEME}(\S+)", told)
        run("--join", SCHEME + address)
        made, told = served(batches, Service(address))
        assert_next(made, batches, 0, 10)
        dispatcher.kill()
        begun = time.monotonic()
        assert_next(made, batches, 10, 2 * COUNT)
        assert time.monotonic() - begun < 30
        assert f"the dispatcher at {address} does not answer" in told[1]
        run("--port", address.rpartition(":")[2])  # which knows nothing of this
        go_on_until_told(made, batches, 10 + 2 * COUNT, told, 3)
        assert "failed: " in told[2]


@pytest.mark.slow
def test_who_joins_a_dispatcher_that_is_not_there_says_so_and_can_be_stopped():
    line = command(["serve_data", "--join", f"{SCHEME}localhost:9"])
    with subprocess.Popen(line, stderr=subprocess.PIPE, text=True) as worker:
        told = next(line for line in worker.stderr if line.startswith(SCHEME))
        worker.send_signal(signal.SIGINT)
        worker.communicate(timeout=20)
    assert told.startswith(f"{SCHEME}localhost:9 does not answer yet: ")
    assert worker.returncode == 130


def test_readers_that_share_a_name_each_take_every_batch(within, served, batches):
    several = [served(batches, within, job="shared", reader=name)[0] for name in "ab"]
    for first in range(0, COUNT, 20):
        for made in several:
            assert_next(made, batches, first, 20)


def test_a_dispatcher_that_does_not_answer_is_told_in_seconds(served, batches):
    begun = time.monotonic()
    with pytest.raises(UsageError, match=r"Received: grpc://localhost:9: "):
        served(batches, Service("localhost:9"))
    assert time.monotonic() - begun < 30  # as long as it is waited for a batch


def test_a_port_in_use_is_told_before_anything_is_started():
    with socket.create_server(("", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UsageError, match=f"`port` must be one that is free. Received: {port}:"):
            serve("", "localhost", port)


def test_workers_that_do_not_see_the_features_are_refused(within, served, batches, tmp_path):
    shutil.rmtree(tmp_path / "features")
    made, _ = served(batches, within)
    with pytest.raises(UsageError, match=r"must see the files .* Received: .*features"):
        next(made)


@pytest.fixture
def floats(speller, records, words, tmp_path):
    """Batches of one number each word, in the same place."""

    class Sizes(speller):
        def features(self, records):
            return {"size": tf.cast(tf.strings.length(records["text"]), tf.float32)}

        def feasible(self, features):
            return features["size"] > 0

    pairs = [(word, "A") for word in words(97)]
    write_examples([records(pairs)], Sizes(), tmp_path / "features")
    return training_batches(FeatureStore(tmp_path / "features", None), [[]], [7], 5)


def change(file, times):
    """Gives who opens a file from now on other numbers than who has opened it."""
    values = np.fromfile(file, np.float32)
    os.remove(file)
    (values * np.float32(times)).tofile(file)


def test_workers_that_see_other_features_are_refused(within, served, floats, tmp_path):
    made, _ = served(floats, within)
    wait_for_batches(made)
    change(tmp_path / "features" / "size.values", 1.01)
    with pytest.raises(UsageError, match="`size` of batch 0 is not that of this process"):
        next(made)


def test_it_is_told_where_batches_are_the_same_but_for_rounding(within, served, floats, tmp_path):
    made, told = served(floats, within)
    wait_for_batches(made)
    change(tmp_path / "features" / "size.values", 1 + 1e-6)
    next(made)
    assert "`size` of batch 0 is not that of this process to the last bit" in told[1]
