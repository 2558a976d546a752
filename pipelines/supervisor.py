"""Processes of a run on this machine: started together, and started again when one is lost."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from pipelines.cluster import SUPERVISED, Role, free_ports, tf_config
from pipelines.errors import FAILURE, LOST
from pipelines.folder import RunFolder

_MOST_LOSSES = 3
_PAUSE = 0.1  # seconds between two looks
_GRACE = 10.0  # seconds to end by oneself
_LINES_TOLD = 20
_SIGNALS_TO_KILL = 3  # the first one saves, the second one does not
_SIGNALLED = 128  # more than the number of a signal, as in a shell


def supervise(
    command: Sequence[str],
    folder: RunFolder,
    sizes: Mapping[Role, int],
    replaced: Role | None = None,
) -> int:
    """Runs a command in several processes with TF_CONFIG, until the chief is done.

    The chief's output is this process's; that of others goes to the folder's `logs`. Where one is
    lost, by a signal or for want of another one, all are ended and started again; where one fails,
    all are ended. SIGINT and SIGTERM are passed on.

    Args:
        command: What each process runs; it goes on from the folder's last checkpoint.
        folder: The run's, in use by this process.
        sizes: How many processes of each role, the chief's first.
        replaced: The role, if any, that the others go on without: where one of it is lost, it
            alone is started again.

    Returns:
        The exit code of the run.
    """
    losses, progress = 0, folder.progress
    everyone = _Processes(command, folder.path / "logs", sizes, replaced)
    with _signals() as received, everyone as processes:
        while True:
            processes.wait(received)
            lost = processes.lost
            if not lost or received:
                return processes.code(received)
            before, progress = progress, folder.progress
            losses = losses + 1 if progress == before else 1
            if losses == _MOST_LOSSES:
                _say(f"{lost}: {losses} losses without a new checkpoint between.{processes.told}")
                return FAILURE
            if processes.others_go_on:
                _say(f"{lost}; starting it again")
                processes.replace_lost()
            else:
                _say(f"{lost}; starting all again from the last checkpoint")
                processes.replace_all()


class _Processes:
    """Processes that live and die together, inside a context."""

    def __init__(
        self,
        command: Sequence[str],
        logs: Path,
        sizes: Mapping[Role, int],
        replaced: Role | None = None,
    ):
        self._command, self._logs, self._sizes = list(command), logs, sizes
        self._replaced = replaced
        self._chief = f"{next(iter(sizes))} 0"
        self._configs: dict[str, str] = {}
        self._processes: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> _Processes:
        self._logs.mkdir(exist_ok=True)
        self._start_all()
        return self

    def __exit__(self, *error) -> None:
        for process in self._processes.values():
            with process:  # waits
                process.kill()

    def _start_all(self) -> None:
        ports = iter(free_ports(sum(self._sizes.values())))
        addresses = {
            role: [f"localhost:{next(ports)}" for _ in range(size)]
            for role, size in self._sizes.items()
        }
        names = [(role, index) for role, size in self._sizes.items() for index in range(size)]
        self._configs = {f"{role} {i}": tf_config(addresses, role, i) for role, i in names}
        for name in self._configs:
            self._processes[name] = self._start(name)

    def _start(self, name: str) -> subprocess.Popen:
        chief = name == self._chief
        with nullcontext() if chief else self._log(name).open("ab") as output:
            # A terminal's Ctrl-C reaches the supervisor alone; where that is killed, they see
            # their standard input end, and keep the folder's lock until they have ended.
            return subprocess.Popen(
                self._command,
                env={**os.environ, "TF_CONFIG": self._configs[name], SUPERVISED: "1"},
                stdin=subprocess.PIPE,
                stdout=output,
                stderr=output,
                start_new_session=True,
                close_fds=False,
            )

    @property
    def others_go_on(self) -> bool:
        """Whether none was lost but of the role that is replaced."""
        return all(name.partition(" ")[0] == self._replaced for name in self._lost)

    def replace_lost(self) -> None:
        """Starts those again that were lost, where they were."""
        for name in self._lost:
            self._processes[name].stdin.close()
            self._processes[name] = self._start(name)

    def replace_all(self) -> None:
        """Ends all, and starts all again."""
        self.__exit__()
        self._start_all()

    def wait(self, received: list[int]) -> None:
        """Returns when the chief is done, when one has failed or is lost, or at a third signal.

        Args:
            received: Signals to be passed on; more may come.
        """
        passed_on = 0
        while self._codes[self._chief] is None and len(received) < _SIGNALS_TO_KILL:
            for number in received[passed_on:]:
                self._send(number)
                passed_on += 1
            if not received and any(self._codes.values()):
                break
            time.sleep(_PAUSE)
        until = time.monotonic() + (_GRACE if received or self._failed else 0)
        while None in self._codes.values() and len(received) < _SIGNALS_TO_KILL:
            if time.monotonic() >= until:
                break
            time.sleep(_PAUSE)  # they end by themselves, and say why

    def code(self, received: list[int]) -> int:
        """Returns the chief's exit code, or that of the one whose failure ended the chief."""
        code = self._codes[self._chief]
        if code is not None and not _is_loss(code):
            return code
        if self._failed:
            _say(f"{self._failed[0]} failed.{self.told}")
            return self._codes[self._failed[0]]
        return _SIGNALLED + received[0]

    @property
    def lost(self) -> str:
        """Who was lost and how; empty if nobody was, or the others because one failed."""
        for name, code in self._codes.items():
            if code is not None and code < 0:
                return f"{name} was ended by {signal.Signals(-code).name}"
        missing = [name for name, code in self._codes.items() if code == LOST]
        return f"{missing[0]} missed another process" if missing and not self._failed else ""

    @property
    def told(self) -> str:
        """The last lines of the log of one that has ended with an error, if it has a log."""
        ended = [name for name, code in self._codes.items() if code and name != self._chief]
        if not ended:
            return ""
        log = self._log((*self._failed, *ended)[0])
        lines = log.read_text(errors="replace").splitlines()[-_LINES_TOLD:]
        return f" {log} ends with:\n" + "\n".join(f"  {line}" for line in lines)

    @property
    def _lost(self) -> list[str]:
        """Those who ended by a signal, or for want of another one."""
        return [name for name, code in self._codes.items() if code is not None and _is_loss(code)]

    @property
    def _failed(self) -> list[str]:
        """Those who ended with an error of their own."""
        return [name for name, code in self._codes.items() if code and not _is_loss(code)]

    @property
    def _codes(self) -> dict[str, int | None]:
        """Exit codes, negative for a signal; None of those that run."""
        return {name: process.poll() for name, process in self._processes.items()}

    def _send(self, number: int) -> None:
        for process in self._processes.values():
            process.send_signal(number)

    def _log(self, name: str) -> Path:
        return self._logs / f"{name.replace(' ', '-')}.log"


def _is_loss(code: int) -> bool:
    return code < 0 or code == LOST


@contextmanager
def _signals():
    """Gives a list that gets each SIGINT or SIGTERM that comes."""
    received = []
    signals = (signal.SIGINT, signal.SIGTERM)
    before = [
        signal.signal(each, lambda number, frame: received.append(number)) for each in signals
    ]
    try:
        yield received
    finally:
        for each, handler in zip(signals, before, strict=True):
            signal.signal(each, handler)


def _say(message: str) -> None:
    print(f"transduce: {message}", file=sys.stderr, flush=True)
