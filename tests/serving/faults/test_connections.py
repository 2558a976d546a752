"""Callers that stall, break off, or come in great number."""

import socket
import threading
import time

import numpy as np
import pytest

from serving.client import Client
from serving.model_server.server import Server

HTTP2 = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\x00\x00\x00\x04\x00\x00\x00\x00\x00"
STALLED = [b"", b"G", b"GET /v1/models/half HTTP/1.1\r\nHost", HTTP2[:20], HTTP2, b"\x16\x03\x01"]


@pytest.fixture
def served(model_root, options, free_port):
    """A server of half_plus that waits a second for a request to arrive."""
    chosen = options(
        model_base_path=str(model_root / "half_plus"),
        model_name="half",
        rest_api_port=free_port(),
        rest_api_timeout_in_ms=1000,
    )
    with Server(chosen):
        yield chosen


def connect(port, count, first=b""):
    connections = []
    for _ in range(count):
        connections.append(socket.create_connection(("localhost", port), timeout=30))
        connections[-1].sendall(first)
    return connections


def close(connections):
    for connection in connections:
        connection.close()


def over_rest(connection):
    """Returns the status of a request over an open connection."""
    connection.sendall(b"GET /v1/models/half HTTP/1.1\r\n\r\n")
    return int(connection.recv(65536).split()[1])


def answers(chosen):
    with Client(f"localhost:{chosen.port}") as client:
        predicted = client.predict("half", {"x": np.float32([0])}, timeout=30)["y"].tolist()
    (connection,) = connect(chosen.rest_api_port, 1)
    status = over_rest(connection)
    connection.close()
    return predicted == [3.0] and status == 200


def test_stalled_callers_keep_nobody_from_being_answered(served):
    stalled = [
        connection
        for port in (served.port, served.rest_api_port)
        for beginning in STALLED
        for connection in connect(port, 20, beginning)
    ]
    assert answers(served)
    close(stalled)
    assert answers(served)


def test_connections_whose_other_end_has_gone_are_given_up(served):
    before = threading.active_count()
    connections = connect(served.rest_api_port, 50, b"POST /v1/models/half:predict HTTP/1.1\r\n")
    deadline = time.monotonic() + 10
    while threading.active_count() < before + 50:
        assert time.monotonic() < deadline
    while threading.active_count() > before:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    close(connections)


@pytest.mark.slow
def test_a_thousand_connections_are_served(served):
    connections = connect(served.rest_api_port, 1000)
    others = connect(served.port, 1000, HTTP2)
    assert answers(served)
    assert {over_rest(connection) for connection in connections} == {200}
    assert {len(connection.recv(9)) for connection in others} == {9}, "the server's settings"
    assert answers(served)
    close(connections + others)
