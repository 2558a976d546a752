"""The tf.data service: a dispatcher and workers, in processes of this machine or of others."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import grpc
import tensorflow as tf
from google.protobuf.empty_pb2 import Empty
from google.protobuf.unknown_fields import UnknownFieldSet

from pipelines.cluster import SUPERVISED, command, free_ports
from pipelines.errors import UsageError

SCHEME = "grpc://"
_GET_WORKERS = "/tensorflow.data.DispatcherService/GetWorkers"
_ANSWER = 5.0  # seconds that a dispatcher has to answer
_CALL = 1.0  # seconds that a worker has to take a call
_START = 60.0  # seconds until the workers of a service are there
_PAUSE = 0.1  # seconds between two looks
_LINES_TOLD = 20


class WorkerFailed(RuntimeError):
    """A worker of this machine ended before it could begin."""


class Service:
    """A tf.data service.

    Args:
        address: HOST:PORT of its dispatcher.
    """

    def __init__(self, address: str):
        self.address = address

    def workers(self) -> set[str]:
        """Returns HOST:PORT of each worker that takes calls.

        Raises:
            OSError: If the dispatcher does not answer.
        """
        known = self._known()
        with ThreadPoolExecutor() as threads:
            calls = threads.map(_takes_calls, known)
            return {worker for worker, taken in zip(known, calls, strict=True) if taken}

    def described(self, worker: str) -> str:
        """Returns who is at HOST:PORT."""
        return f"the worker at {worker}"

    def require_workers(self) -> set[str]:
        """Returns HOST:PORT of the workers, once there are some.

        Raises:
            UsageError: If there are none, or no dispatcher.
        """
        until = time.monotonic() + _START
        while True:
            try:
                workers = self.workers()
            except OSError as error:
                raise UsageError(
                    "`data.service` must name the dispatcher of a tf.data service that runs. "
                    f"Received: {SCHEME}{self.address}: {error}"
                ) from None
            if self._complete(workers):
                return workers
            if time.monotonic() > until:
                raise UsageError(
                    "A tf.data service must have a worker: `transduce serve_data --join "
                    f"{SCHEME}{self.address}` starts one. Received: none within {_START:.0f} s"
                )
            time.sleep(_PAUSE)

    def _complete(self, workers: set[str]) -> bool:
        return bool(workers)

    def _known(self) -> list[str]:
        """Returns HOST:PORT of every worker that the dispatcher has seen."""
        # TensorFlow has this call without a Python function for it.
        with grpc.insecure_channel(self.address) as channel:
            try:
                answer = channel.unary_unary(_GET_WORKERS)(b"", timeout=_ANSWER)
            except grpc.RpcError as error:
                raise ConnectionError(error.details()) from None
        infos = [info for _, info in _fields(answer)]
        return [value.decode() for info in infos for number, value in _fields(info) if number == 1]


class LocalService(Service):
    """A dispatcher in this process and workers in processes of their own, which end with it.

    Args:
        address: HOST:PORT of the dispatcher.
        workers: The workers by HOST:PORT.
        logs: What each prints, likewise.
    """

    def __init__(self, address: str, workers: dict[str, subprocess.Popen], logs: dict[str, Path]):
        super().__init__(address)
        self._workers, self._logs = workers, logs

    def workers(self) -> set[str]:
        return super().workers() & self._workers.keys()

    def described(self, worker: str) -> str:
        number, code = list(self._workers).index(worker), self._workers[worker].poll()
        ended = "" if code is None else f", ended by {_named(code)}"
        return f"data worker {number} at {worker}{ended} (it printed to {self._logs[worker]})"

    def _complete(self, workers: set[str]) -> bool:
        for address, process in self._workers.items():
            if process.poll() is not None:
                lines = self._logs[address].read_text(errors="replace").splitlines()[-_LINES_TOLD:]
                told = "\n".join(f"  {line}" for line in lines)
                raise WorkerFailed(f"{self.described(address)}, and has said:\n{told}")
        return workers >= self._workers.keys()


@contextmanager
def started(count: int, logs: Path) -> Iterator[LocalService]:
    """Gives a service of this process, with so many workers that use no GPU.

    Args:
        count: Of workers.
        logs: A folder for what they print.
    """
    # A terminal's Ctrl-C reaches this process alone; where it is killed, they see their standard
    # input end.
    environment = {**os.environ, SUPERVISED: "1", "CUDA_VISIBLE_DEVICES": "", "TF_CONFIG": ""}
    dispatcher = tf.data.experimental.service.DispatchServer(
        tf.data.experimental.service.DispatcherConfig(port=0)
    )
    target = dispatcher.target
    logs.mkdir(parents=True, exist_ok=True)
    workers, files = {}, {}
    with ExitStack() as processes:
        for number, port in enumerate(free_ports(count)):
            address, file = f"localhost:{port}", logs / f"worker-{number}.log"
            output = processes.enter_context(file.open("ab"))
            workers[address] = subprocess.Popen(
                command(["serve_data", "--join", target, "--port", str(port)]),
                env=environment,
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            processes.enter_context(workers[address])  # waits
            processes.callback(workers[address].kill)
            files[address] = file
        yield LocalService(target.removeprefix(SCHEME), workers, files)


def serve(join: str, host: str, port: int) -> None:
    """Takes part in a tf.data service until this process is ended.

    Args:
        join: grpc://HOST:PORT of the dispatcher that this process is to work for; empty: it is one.
        host: What others reach this machine by.
        port: Where this process listens; 0: at any that is free.

    Raises:
        UsageError: If the port is in use.
    """
    try:
        socket.create_server(("", port)).close()
    except OSError as error:
        raise UsageError(f"`port` must be one that is free. Received: {port}: {error}") from None
    service = tf.data.experimental.service
    if join:
        port = port or free_ports(1)[0]
        _wait_for_dispatcher(join)
        config = service.WorkerConfig(join.removeprefix(SCHEME), f"{host}:{port}", port)
        server = service.WorkerServer(config)
        print(f"{host}:{port} works for {join}", flush=True)
    else:
        server = service.DispatchServer(service.DispatcherConfig(port))
        port = server.target.rpartition(":")[2]
        print(f"workers may --join, and runs use --data.service, {SCHEME}{host}:{port}", flush=True)
    signal.pause()


def _wait_for_dispatcher(address: str) -> None:
    """Returns once grpc://HOST:PORT answers: TensorFlow would wait without a word, or an ear."""
    told = False
    while True:
        try:
            Service(address.removeprefix(SCHEME)).workers()
            return
        except OSError as error:
            if not told:
                print(f"{address} does not answer yet: {error}", file=sys.stderr, flush=True)
            told = True
            time.sleep(_PAUSE)


def _named(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _takes_calls(address: str) -> bool:
    host, _, port = address.rpartition(":")
    with suppress(OSError), socket.create_connection((host.strip("[]"), int(port)), _CALL):
        return True
    return False


def _fields(message: bytes) -> list[tuple[int, bytes]]:
    """Returns numbers and values of the fields of a serialised message."""
    unknown = Empty.FromString(message)
    return [(field.field_number, field.data) for field in UnknownFieldSet(unknown)]
