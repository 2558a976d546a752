"""How long the faults last, and models that are told apart by their answers.

The default run has a few seconds of each fault. `TRANSDUCE_FAULTS=1 pytest -m slow
tests/serving/faults` has all of them in full; a number below 1 has that share.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serving.client import Client

SHARE = float(os.environ.get("TRANSDUCE_FAULTS", "0.05"))


@pytest.fixture(scope="session")
def full():
    """Returns the share, that was asked for, of a number that is for a run in full."""
    return lambda number: type(number)(number * SHARE)


class Shelf:
    """Versions ready to be put in place: a model's version adds `code * 1000 + version % 6`."""

    KINDS = 6

    def __init__(self, folder: Path, save):
        self._folder = folder
        self._save = save

    def added(self, code: int, version: int) -> int:
        return code * 1000 + version % self.KINDS

    def put(self, code: int, version: int, target: Path) -> None:
        """Puts a version in place at once."""
        kept = self._folder / f"{code}-{version % self.KINDS}"
        if not kept.exists():
            self._save(kept, float(self.added(code, version)))
        copy = target.parent / f".{target.name}.new"
        shutil.copytree(kept, copy)
        copy.rename(target)

    def put_slowly(self, code: int, version: int, target: Path) -> None:
        """Copies a version file by file, and each in two halves."""
        self.put(code, version, target.parent / f".{target.name}.whole")
        whole = target.parent / f".{target.name}.whole"
        for file in sorted(path for path in whole.rglob("*") if path.is_file()):
            place = target / file.relative_to(whole)
            place.parent.mkdir(parents=True, exist_ok=True)
            content = file.read_bytes()
            place.write_bytes(content[: len(content) // 2])
            time.sleep(0.05)
            place.write_bytes(content)
        shutil.rmtree(whole)


@pytest.fixture(scope="session")
def shelf(tmp_path_factory, save_half_plus):
    return Shelf(tmp_path_factory.mktemp("shelf"), save_half_plus)


class Process:
    """The server as a process of its own."""

    def __init__(self, port: int, rest_port: int, *flags: str):
        self.port, self.rest_port = port, rest_port
        self._command = [sys.executable, "-m", "serving.model_server", f"--port={port}"]
        self._command += [f"--rest_api_port={rest_port}", *flags]
        self._process = None

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        for line in self._process.stdout:
            if line.startswith("Exporting"):
                return
        raise AssertionError("the server did not start")

    def kill(self, number: signal.Signals = signal.SIGKILL) -> int:
        """Ends the process; returns how it ended."""
        self._process.send_signal(number)
        code = self._process.wait(60)
        self._process.stdout.close()
        return code

    def is_running(self) -> bool:
        return self._process.poll() is None

    def memory(self) -> int:
        """Returns the bytes of memory that it has."""
        pages = Path(f"/proc/{self._process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGESIZE")

    def threads(self) -> int:
        return len(os.listdir(f"/proc/{self._process.pid}/task"))

    def client(self) -> Client:
        return Client(f"localhost:{self.port}")


@pytest.fixture
def process(free_port):
    """Starts servers as processes, and ends them."""
    running = []

    def start(*flags):
        running.append(Process(free_port(), free_port(), *flags))
        running[-1].start()
        return running[-1]

    yield start
    for each in running:
        if each.is_running():
            each.kill()
