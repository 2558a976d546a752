"""Job files: where they are, what they say of themselves, and how their jobs are loaded."""

from __future__ import annotations

import difflib
import importlib.util
import json
import pkgutil
import re
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from pydantic import TypeAdapter

from pipelines import jobs
from pipelines.errors import UsageError
from pipelines.job import MODEL_NAME, Job


class JobFile(NamedTuple):
    """A file with a `job()` and perhaps a `quick()`."""

    name: str
    path: Path
    module: ModuleType

    def job(self, quick: bool = False) -> Job:
        """Returns the full job, or its quick setting."""
        if quick and not hasattr(self.module, "quick"):
            raise UsageError(f"{self.path} must have a function `quick()` to be run with --quick.")
        return self.module.quick() if quick else self.module.job()

    def about(self) -> dict[str, str]:
        """Returns the docstring's first line as `title`, and its `Key: value` lines."""
        text = (self.module.__doc__ or "").strip()
        lines = dict(re.findall(r"^(\w+): (.+)$", text, re.MULTILINE))
        return {"title": text.partition("\n")[0], **lines}


def names() -> list[str]:
    """Returns the names of the jobs that come with the package."""
    return sorted(module.name for module in pkgutil.iter_modules(jobs.__path__))


def load(name_or_path: str) -> JobFile:
    """Returns a job of the package by name, or any job file by path.

    Raises:
        UsageError: If there is no such job, or the file has no `job()`.
    """
    path = Path(name_or_path)
    if path.suffix != ".py":
        path = Path(next(iter(jobs.__path__))) / f"{name_or_path}.py"
        if name_or_path not in names():
            raise UsageError(_unknown(name_or_path))
    if not path.is_file():
        raise UsageError(f"A job file must exist. Received: {path}")
    if not re.fullmatch(MODEL_NAME, path.stem):
        raise UsageError(
            "A job file's name must be of letters, digits, '_', '.' and '-': it names the model. "
            f"Received: {path.name!r}"
        )
    spec = importlib.util.spec_from_file_location(f"job_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    if not hasattr(module, "job"):
        raise UsageError(f"A job file must have a function `job()`. Received: {path}")
    return JobFile(path.stem, path.resolve(), module)


def _unknown(name: str) -> str:
    near = difflib.get_close_matches(name, names(), n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"There is no job {name!r}.{hint} The jobs are: {', '.join(names())}; or give a file."


def to_values(job: Job) -> dict:
    """Returns a job as JSON's types."""
    return TypeAdapter(Job).dump_python(job, mode="json")


def from_values(default: Job, values: dict) -> Job:
    """Returns the job with these values; the types of its parts are those of `default`."""
    parts = {
        name: TypeAdapter(type(getattr(default, name))).validate_json(json.dumps(part))
        for name, part in values.items()
    }
    return Job(**parts)
