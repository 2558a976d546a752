"""The proof that the served model answers as the trained one does."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from serving.client import Client

_SECONDS_TO_START, _SECONDS_TO_STOP = 120, 30


class VerificationError(Exception):
    """The served model does not answer as the trained one does."""


@contextmanager
def served(root: Path):
    """Serves the models under `root` in a process of its own, and gives the server's address."""
    with tempfile.TemporaryDirectory(prefix="transduce-") as folder:
        socket = Path(folder) / "grpc"
        command = [sys.executable, "-m", "serving.model_server", f"--model_root={root}"]
        command += ["--port=0", f"--grpc_socket_path={socket}"]
        with (Path(folder) / "log").open("w+") as log:
            server = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT)
            try:
                _wait_until_ready(server, Path(log.name))
                yield f"unix:{socket}"
            finally:
                _stop(server)


def verify(
    exported: Path,
    batches: Sequence[Mapping[str, np.ndarray]],
    expected: Sequence[Mapping[str, bytes | np.ndarray]],
) -> None:
    """Checks that the served answers are the expected ones: numbers of floats to 1e-4.

    The inputs go over gRPC to a server in a process of its own.

    Args:
        exported: The SavedModel, in `ROOT/NAME/VERSION`.
        batches: Raw inputs, some alone and some together.
        expected: All the outputs of the trained model in this process, example by example.

    Raises:
        VerificationError: If an answer differs.
    """
    name, version = exported.parent.name, int(exported.name)
    right = iter(expected)
    with served(exported.parents[1]) as address, Client(address) as client:
        for inputs in batches:
            outputs = client.predict(name, inputs, version=version)
            for row in range(len(next(iter(inputs.values())))):
                given = {name: value[row] for name, value in inputs.items()}
                _require_same({n: v[row] for n, v in outputs.items()}, next(right), given)


def _require_same(answer: Mapping, right: Mapping, given: Mapping) -> None:
    for name, expected in right.items():
        expected = expected.decode() if isinstance(expected, bytes) else np.asarray(expected)
        found = answer[name]
        if isinstance(expected, np.ndarray) and expected.dtype.kind == "f":
            same = np.allclose(found, expected, rtol=1e-4, atol=1e-4, equal_nan=True)
        else:
            same = np.array_equal(found, expected)
        if not same:
            raise VerificationError(
                f"The served model must answer as the trained one does. For {_short(given)} it "
                f"answered {name} {_short(found)}; the trained one answers {_short(expected)}."
            )


def _short(value) -> str:
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _stop(server: subprocess.Popen) -> None:
    server.terminate()
    try:
        server.wait(_SECONDS_TO_STOP)
    except subprocess.TimeoutExpired:
        server.kill()
        server.wait()


def _wait_until_ready(server: subprocess.Popen, log: Path) -> None:
    deadline = time.monotonic() + _SECONDS_TO_START
    while "Running gRPC ModelServer" not in log.read_text():
        if server.poll() is not None or time.monotonic() > deadline:
            raise VerificationError(f"The model server did not start:\n{log.read_text()}")
        time.sleep(0.1)
