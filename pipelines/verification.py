"""The proof that the served model answers as the trained one does."""

from __future__ import annotations

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

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
    exported: Path, inputs: Sequence[str], expected: Sequence[str], output: str
) -> list[str]:
    """Returns the served answers, each of which is the expected one.

    The inputs go over gRPC to a server in a process of its own: some alone, the rest together.

    Args:
        exported: The SavedModel, in `ROOT/NAME/VERSION`.
        inputs: Raw inputs.
        expected: The trained model's answers in this process.
        output: Name of the answer among the model's outputs.

    Raises:
        VerificationError: If an answer differs.
    """
    alone = len(inputs) // 4
    batches = [[text] for text in inputs[:alone]] + [list(inputs[alone:])]
    name, version = exported.parent.name, int(exported.name)
    with served(exported.parents[1]) as address, Client(address) as client:
        answers = [
            str(answer)
            for batch in batches
            for answer in client.predict(name, batch, version=version)[output]
        ]
    for text, answer, right in zip(inputs, answers, expected, strict=True):
        if answer != right:
            raise VerificationError(
                f"The served model must answer as the trained one does. For {text!r} it answered "
                f"{answer!r}; the trained one answers {right!r}."
            )
    return answers


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
