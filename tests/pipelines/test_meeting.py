import socket
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from pipelines.cluster import Cluster, free_ports
from pipelines.errors import LostWorker, UsageError
from pipelines.meeting import meet


@pytest.fixture
def cluster():
    """Returns the member of a cluster of three by its number."""
    addresses = {"worker": [f"localhost:{port}" for port in free_ports(3)]}
    return lambda index: Cluster(addresses, "worker", index)


def test_nobody_goes_on_before_all_are_there(cluster):
    with ThreadPoolExecutor() as threads:
        early = [threads.submit(meet, cluster(index), 20) for index in (2, 0)]
        time.sleep(0.6)
        assert not any(each.done() for each in early)
        threads.submit(meet, cluster(1), 20).result()
        for each in early:
            each.result()


def test_afterwards_the_ports_are_free(cluster):
    with ThreadPoolExecutor() as threads:
        for each in [threads.submit(meet, cluster(index), 20) for index in range(3)]:
            each.result()
    for address in cluster(0).addresses["worker"]:
        socket.create_server(("", int(address.rpartition(":")[2]))).close()


def test_who_does_not_come_is_named(cluster):
    with ThreadPoolExecutor() as threads:
        waiting = [threads.submit(meet, cluster(index), 2 - index / 2) for index in (0, 2)]
        missing = cluster(1)
        with pytest.raises(LostWorker, match=f"did not come: worker 1 at {missing.address}$"):
            waiting[0].result()
        with pytest.raises(LostWorker, match="did not begin in time: worker 0 at localhost:"):
            waiting[1].result()


def test_one_who_came_and_went_is_waited_for_again(cluster):
    port = int(cluster(0).address.rpartition(":")[2])
    with ThreadPoolExecutor() as threads:
        chief = threads.submit(meet, cluster(0), 20)
        gone = _connected(port)
        gone.sendall(b"worker 1\n")
        time.sleep(0.3)
        gone.close()
        threads.submit(meet, cluster(2), 20)
        time.sleep(0.6)
        assert not chief.done()
        meet(cluster(1), 20)
        chief.result()


def test_who_else_calls_is_no_matter(cluster):
    port = int(cluster(0).address.rpartition(":")[2])
    with ThreadPoolExecutor() as threads:
        chief = threads.submit(meet, cluster(0), 20)
        with _connected(port) as probe:
            probe.sendall(b"GET / HTTP/1.1\r\n\r\n")
        for each in [threads.submit(meet, cluster(index), 20) for index in (1, 2)]:
            each.result()
        chief.result()


def _connected(port):
    while True:
        try:
            return socket.create_connection(("localhost", port))
        except OSError:
            time.sleep(0.05)


@pytest.mark.parametrize("index", [0, 1])
def test_a_port_in_use_is_told(cluster, index):
    address = cluster(index).address
    with (
        socket.create_server(("", int(address.rpartition(":")[2]))),
        pytest.raises(UsageError, match=f"free for worker {index}, .*Received: {address}: "),
    ):
        meet(cluster(index), 1)
