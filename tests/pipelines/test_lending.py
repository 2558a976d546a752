"""Who lends its devices is found by connecting to it, and knows its chief in the same way."""

import socket
import threading
import time

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
        pytest.raises(LostWorker, match=f"did not come: worker 0 at {worker.address}$"),
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
