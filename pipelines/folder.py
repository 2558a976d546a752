"""A run's folder: what was asked, what was done, and where everything lies."""

from __future__ import annotations

import fcntl
import json
import os
import platform
import shutil
import subprocess
import sys
from contextlib import contextmanager
from importlib import metadata
from pathlib import Path

from pipelines import jobfile
from pipelines.errors import UsageError
from pipelines.job import Job
from pipelines.jobfile import JobFile

_PACKAGES = ("transduce", "tensorflow", "keras", "tensorflow-datasets", "numpy", "protobuf")


class RunFolder:
    """The files of one run.

        job.py, config.json     the job file, and the resolved configuration
        environment.json        versions, git revision, seed
        stages.json             the stages done, with their seconds and results
        data/, assets/          normalised copies of the user's own files; vocabularies
        features/               those of the training examples
        checkpoints/, best/     to go on from; the best weights
        metrics.jsonl, events/  numbers by step
        evaluation.json         answers and references on the test split
        models/NAME/VERSION     the exported model
        logs/                   what other processes than the chief print
        plots/, report.md       for people

    Args:
        path: The folder, which need not exist yet.
    """

    def __init__(self, path: Path):
        self.path = path

    @contextmanager
    def in_use(self):
        """Keeps other processes from running in this folder, inside this context.

        Those that are started inside it with `close_fds=False` do so, too, until they end.

        Raises:
            UsageError: If another process does, or the folder cannot be written to.
        """
        with self._refusals():
            self.path.mkdir(parents=True, exist_ok=True)
            lock = (self.path / ".lock").open("w")
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise UsageError(
                    f"Only one process may run in a folder. Another one does in {self.path}."
                ) from None
            os.set_inheritable(lock.fileno(), True)  # for processes that outlive this one
            yield self

    def start(self, file: JobFile, job: Job) -> None:
        """Records what is asked for, or checks that it is what was asked for before.

        While no stage is done nothing depends on the configuration, and another one replaces it:
        a file's name, say, that was mistyped.

        Raises:
            UsageError: If the folder holds a run of another configuration, or cannot be written.
        """
        if self._config.exists() and self._stages():
            self.check(file, job)
            return
        with self._refusals():
            self.path.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file.path, self.path / "job.py")
            self._write(self.path / "environment.json", environment(job))
            self._write(self._config, _values(file, job))

    def check(self, file: JobFile, job: Job) -> None:
        """Raises UsageError unless the folder holds a run of this configuration."""
        self.job()
        differing = _differences(self._read(self._config), _values(file, job))
        if differing:
            raise UsageError(
                f"{self.path} holds a run of another configuration, which differs in:\n"
                + "\n".join(f"  {line}" for line in differing)
                + "\nGive another --folder, or delete this one."
            )

    @property
    def progress(self) -> tuple[str, ...]:
        """What a run that is started again goes on from: stages done, checkpoints."""
        checkpoints = (self.path / "checkpoints").glob("*.index")
        return (*self._stages(), *sorted(path.name for path in checkpoints))

    def job(self) -> tuple[str, Job]:
        """Returns the name and the configuration of the run in this folder.

        Raises:
            UsageError: If the folder holds no run.
        """
        if not self._config.exists():
            raise UsageError(
                f"A run's folder must hold a config.json. Received: {self.path}, which does not."
            )
        values = self._read(self._config)
        name = values.pop("job")
        default = jobfile.load(str(self.path / "job.py")).job()
        return name, jobfile.from_values(default, values)

    def done(self, stage: str) -> dict | None:
        """Returns what a stage recorded, or None if it was not done."""
        return self._stages().get(stage)

    def finish(self, stage: str, seconds: float, **results) -> None:
        """Records that a stage is done."""
        record = {"seconds": round(seconds, 1), **results}
        self._write(self.path / "stages.json", self._stages() | {stage: record})

    @property
    def _config(self) -> Path:
        return self.path / "config.json"

    def _stages(self) -> dict:
        path = self.path / "stages.json"
        return self._read(path) if path.exists() else {}

    @contextmanager
    def _refusals(self):
        """Tells of a folder that cannot be written to, inside this context, as of bad usage."""
        try:
            yield
        except OSError as error:
            raise UsageError(
                f"`folder` must be one that can be written to. Received: {self.path}: "
                f"{error.strerror}"
            ) from error

    def _read(self, path: Path) -> dict:
        return json.loads(path.read_text(encoding="utf-8"))

    def _write(self, path: Path, content: dict) -> None:
        """Writes a file whole or not at all."""
        partial = path.with_suffix(".partial")
        text = json.dumps(content, indent=2, ensure_ascii=False) + "\n"
        partial.write_text(text, encoding="utf-8")
        os.replace(partial, path)


def _values(file: JobFile, job: Job) -> dict:
    return {"job": file.name, **jobfile.to_values(job)}


def environment(job: Job) -> dict:
    """Returns what a result may depend on beside the configuration."""
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "command": sys.argv,
        "packages": {name: _version(name) for name in _PACKAGES},
        "git_revision": _git_revision(),
        "seed": job.train.seed,
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _git_revision() -> str | None:
    """Returns the revision of the checkout that this code runs from, if it runs from one."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        return None
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def _differences(before: dict, now: dict, prefix: str = "") -> list[str]:
    lines = []
    for name in sorted(before.keys() | now.keys()):
        old, new = before.get(name), now.get(name)
        if isinstance(old, dict) and isinstance(new, dict):
            lines += _differences(old, new, f"{prefix}{name}.")
        elif old != new:
            lines.append(f"{prefix}{name}: {json.dumps(old)} there, {json.dumps(new)} asked for")
    return lines
