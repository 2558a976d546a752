"""All workers of a cluster wait for one another, and tell who does not come."""

from __future__ import annotations

import socket
import time
from contextlib import ExitStack, suppress

from pipelines.cluster import Cluster
from pipelines.errors import LostWorker, UsageError

_GO = b"go\n"
_PAUSE = 0.2  # seconds between two attempts
_GREETING = 5.0  # seconds that one who calls has to say who it is


def meet(cluster: Cluster, timeout: float) -> None:
    """Returns once every worker has called the chief; TensorFlow, which knows no names, comes next.

    Each process uses the port that TensorFlow will take, and leaves it free.

    Args:
        cluster: Whom to wait for.
        timeout: Seconds to wait.

    Raises:
        UsageError: If this process's port is in use.
        LostWorker: If somebody did not come; names who.
    """
    deadline = time.monotonic() + timeout
    with listener(cluster) as own:
        if cluster.is_chief:
            _wait_for_all(cluster, own, deadline)
            return
    _call_the_chief(cluster, deadline)


def listener(cluster: Cluster) -> socket.socket:
    """Returns a socket that listens on this process's port.

    Raises:
        UsageError: If that is in use.
    """
    port = int(cluster.address.rpartition(":")[2])
    both = socket.has_dualstack_ipv6()
    family = socket.AF_INET6 if both else socket.AF_INET
    try:
        return socket.create_server(("", port), family=family, dualstack_ipv6=both)
    except (OSError, OverflowError) as error:
        raise UsageError(
            f"TF_CONFIG must name a port that is free for {cluster.name}, which is this process. "
            f"Received: {cluster.address}: {error}"
        ) from None


def _wait_for_all(cluster: Cluster, own: socket.socket, deadline: float) -> None:
    here: dict[str, socket.socket] = {}
    with ExitStack() as connections:
        while missing := {n: a for n, a in cluster.others.items() if n not in here}:
            own.settimeout(max(_PAUSE, deadline - time.monotonic()))
            try:
                connection = connections.enter_context(own.accept()[0])
            except TimeoutError:
                who = ", ".join(f"{name} at {address}" for name, address in missing.items())
                raise LostWorker(f"did not come: {who}") from None
            here = {name: each for name, each in here.items() if not _gone(each)}
            here[_greeting(connection)] = connection
        for connection in here.values():
            with suppress(OSError):
                connection.sendall(_GO)


def _greeting(connection: socket.socket) -> str:
    """Returns who has called."""
    connection.settimeout(_GREETING)
    try:
        return connection.recv(100).decode(errors="replace").strip()
    except OSError:
        return ""


def _gone(connection: socket.socket) -> bool:
    """Returns whether one who has called waits no more."""
    connection.setblocking(False)
    try:
        return connection.recv(1) == b""
    except BlockingIOError:
        return False
    except OSError:
        return True


def _call_the_chief(cluster: Cluster, deadline: float) -> None:
    address = cluster.others[cluster.chief]
    host, _, port = address.rpartition(":")
    why = "it waits for others"
    while (left := deadline - time.monotonic()) > 0:
        try:
            with socket.create_connection((host.strip("[]"), int(port)), left) as connection:
                connection.sendall(f"{cluster.name}\n".encode())
                connection.settimeout(left)
                if connection.recv(len(_GO)) == _GO:
                    return
        except OSError as error:
            why = str(error)
        time.sleep(_PAUSE)
    raise LostWorker(f"did not begin in time: {cluster.chief} at {address} ({why})")
