"""Workers and parameter servers lend a chief their devices, as long as it is there."""

from __future__ import annotations

import signal
import socket
import time

from pipelines.cluster import Cluster
from pipelines.errors import LostWorker
from pipelines.meeting import listener
from serving.model_server.quiet import import_tensorflow

_PAUSE = 0.2  # seconds between two attempts to find others
_LOOK = 1.0  # seconds between two looks at a chief that is there
_SILENCE = 30.0  # seconds after which one who does not answer is taken for gone


def find(cluster: Cluster, timeout: float) -> None:
    """Returns once every process of `cluster.others` listens.

    Args:
        cluster: As the chief sees it.
        timeout: Seconds to wait.

    Raises:
        LostWorker: If somebody does not listen; names who.
    """
    _wait_for(cluster.others, timeout)


def stay_with_lenders(cluster: Cluster) -> LostWorker:
    """Returns how somebody was lost, once one of `cluster.others`, all of whom were there, is.

    That is one who does not answer, as behind a network that is cut: TensorFlow would wait for
    ever. A process that has ended on a machine that is there is TensorFlow's to notice, and may
    come back.

    Args:
        cluster: As the chief sees it.
    """
    heard = dict.fromkeys(cluster.others, time.monotonic())
    while True:
        time.sleep(_LOOK)
        for name, address in cluster.others.items():
            try:
                _connect(address)
            except (ConnectionRefusedError, socket.gaierror):
                pass  # its machine answers, or is known to be none
            except OSError as error:
                if time.monotonic() - heard[name] > _SILENCE:
                    why = f"{name} at {address} has not answered for {_SILENCE:.0f} s"
                    return LostWorker(f"was lost: {why}: {error}")
                continue
            heard[name] = time.monotonic()


def lend(cluster: Cluster, timeout: float) -> None:
    """Does what the chief asks for, until the chief ends.

    Args:
        cluster: As a worker or a parameter server sees it.
        timeout: Seconds to wait for the chief.

    Raises:
        UsageError: If this process's port is in use, or there are too few GPUs.
        LostWorker: If the chief does not come.
    """
    listener(cluster).close()
    import_tensorflow()
    from pipelines.strategies import serve

    server = serve(cluster)  # as long as it is held
    _wait_for({cluster.chief: cluster.others[cluster.chief]}, timeout)
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the chief may need this process to save
    stay_with_chief(cluster)
    del server


def _wait_for(others: dict[str, str], timeout: float) -> None:
    deadline = time.monotonic() + timeout
    while missing := {name: why for name, at in others.items() if (why := _unheard(at))}:
        if time.monotonic() >= deadline:
            who = ", ".join(f"{name} at {others[name]} ({why})" for name, why in missing.items())
            raise LostWorker(f"did not come: {who}")
        time.sleep(_PAUSE)


def stay_with_chief(cluster: Cluster) -> None:
    """Returns when the chief, which was there, is gone."""
    address = cluster.others[cluster.chief]
    heard, refused = time.monotonic(), False
    while time.monotonic() - heard < _SILENCE:
        time.sleep(_LOOK)
        try:
            _connect(address)
            heard, refused = time.monotonic(), False
        except ConnectionRefusedError:
            if refused:  # by a machine without that process
                return
            refused = True
        except OSError:
            refused = False


def _unheard(address: str) -> str:
    """Returns why nobody can be reached there; empty if somebody can."""
    try:
        _connect(address)
        return ""
    except OSError as error:
        return str(error)


def _connect(address: str) -> None:
    host, _, port = address.rpartition(":")
    socket.create_connection((host.strip("[]"), int(port)), _SILENCE / 3).close()
