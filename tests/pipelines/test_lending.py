"""Who lends its devices is found by connecting to it, and knows its chief in the same way."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as FutureTimeout
from contextlib import ExitStack, contextmanager

import pytest

from pipelines import lending
from pipelines.cluster import Cluster, free_ports
from pipelines.errors import LostWorker, UsageError


def socket_of(cluster):
    """Returns a socket that listens where a process is to be found."""
    return socket.create_server(("", int(cluster.address.rpartition(":")[2])))


@pytest.fixture
def cluster():
    """Returns the chief, parameter server and worker, as each sees the cluster."""
    ports = zip(("chief", "ps", "worker"), free_ports(3), strict=True)
    addresses = {role: [f"localhost:{port}"] for role, port in ports}
    return [Cluster(addresses, role, 0) for role in addresses]


def test_a_chief_finds_all_others_though_they_come_late(cluster):
    chief, server, worker = cluster
    found = threading.Thread(target=lending.find, args=(chief, 60))
    with socket_of(server):
        found.start()
        time.sleep(0.5)
        assert found.is_alive()
        with socket_of(worker):
            found.join(60)
            assert not found.is_alive()


def test_who_does_not_come_is_named(cluster):
    chief, server, worker = cluster
    with (
        socket_of(server),
        pytest.raises(LostWorker, match=f"did not come: worker 0 at {worker.address} .*refused"),
    ):
        lending.find(chief, 0.3)


def test_a_port_in_use_is_told_before_anything_is_started(cluster):
    _, server, _ = cluster
    with socket_of(server), pytest.raises(UsageError, match=f"free for ps 0, .*{server.address}: "):
        lending.lend(server, 1)


def test_a_chief_that_is_gone_is_left(cluster):
    chief, server, _ = cluster
    with socket_of(chief):
        left = threading.Thread(target=lending.stay_with_chief, args=(server,))
        left.start()
        time.sleep(2.5)
        assert left.is_alive()
    left.join(60)
    assert not left.is_alive()


@contextmanager
def silence(cluster):
    """Nobody answers where a process was: what calls a queue that is full hears nothing."""
    host, _, port = cluster.address.rpartition(":")
    with ExitStack() as sockets:
        full = sockets.enter_context(socket.create_server((host, int(port)), backlog=0))
        for _ in range(3):
            caller = sockets.enter_context(socket.socket(full.family))
            caller.setblocking(False)
            caller.connect_ex(full.getsockname())
        yield


def test_a_lender_that_does_not_answer_is_lost_but_one_that_ended_may_come_back(
    cluster, monkeypatch
):
    monkeypatch.setattr(lending, "_SILENCE", 0.6)
    monkeypatch.setattr(lending, "_LOOK", 0.1)
    chief, server, worker = cluster
    with ThreadPoolExecutor() as threads, socket_of(server):
        staying = threads.submit(lending.stay_with_lenders, chief)
        with pytest.raises(FutureTimeout):
            staying.result(1.5)
        with silence(worker):
            lost = staying.result(20)
    assert str(lost).startswith(f"was lost: worker 0 at {worker.address} has not answered for ")
    assert lost.told.endswith("; all started again go on from there")
