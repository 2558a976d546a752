"""Which versions there should be: a folder watcher.

A model is a folder; a version is a child folder whose whole name is a number. Everything else
(hidden folders, temporary ones, files) is passed over.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import NamedTuple

from serving.model_server.errors import Code, ServingError, not_found

_LOG = logging.getLogger(__name__)
_LARGEST = 2**63 - 1
_PATIENCE_SECONDS = 10

Policy = Callable[[Collection[int]], Collection[int]]  # Versions found to versions wanted.


def latest(count: int) -> Policy:
    """Returns the policy that wants the `count` highest versions, one at least."""
    return lambda found: sorted(found)[-max(count, 1) :]


def every(found: Collection[int]) -> Collection[int]:
    """The policy that wants all versions."""
    return found


def specific(versions: Iterable[int]) -> Policy:
    """Returns the policy that wants `versions`, found or not."""
    listed = sorted(set(versions))
    return lambda found: listed


class Model(NamedTuple):
    """A model to be served: its name, its folder, which of the versions there."""

    name: str
    base_path: str
    policy: Policy = latest(1)


Aspired = Mapping[int, str]  # Version to folder.


def versions_in(base_path: str) -> dict[int, str]:
    """Returns the folder of every version under `base_path`, by number.

    Two names of the same number (`7` and `007`): the last in the order of names counts.

    Raises:
        ServingError: There is no such folder.
    """
    found: dict[int, str] = {}
    for name in _folders(base_path):
        if not (name.isascii() and name.isdigit() and int(name) <= _LARGEST):
            continue
        if int(name) in found:
            _LOG.warning("%s: two folders of version %d; %s counts", base_path, int(name), name)
        found[int(name)] = os.path.join(base_path, name)
    return found


def wanted(model: Model, found: Aspired) -> dict[int, str]:
    """Returns those of the versions found that the policy of `model` wants served."""
    return {version: found[version] for version in model.policy(found) if version in found}


def models_in(root: str) -> list[Model]:
    """Returns the models under `root`: its folders that hold a version or more."""
    paths = {name: os.path.join(root, name) for name in _folders(root)}
    return [
        Model(name, path)
        for name, path in paths.items()
        if not name.startswith(".") and versions_in(path)
    ]


def _folders(path: str) -> list[str]:
    try:
        with os.scandir(path) as entries:
            return sorted(entry.name for entry in entries if entry.is_dir())
    except OSError as error:
        raise not_found(f"Could not find base path {path}: {error.strerror}") from None


def _no_answer(model: Model) -> ServingError:
    return ServingError(Code.UNAVAILABLE, f"Base path {model.base_path} does not answer")


class Source:
    """Looks at the folders again and again, and hands on what it finds.

    Args:
        list_models: Returns the models to look at, each time anew.
        on_versions: Called with a model's name and its aspired versions.
        wait_seconds: Time between two looks; 0 looks once, below 0 never.
    """

    def __init__(
        self,
        list_models: Callable[[], list[Model]],
        on_versions: Callable[[str, Aspired], None],
        wait_seconds: float,
    ):
        self._list_models = list_models
        self._on_versions = on_versions
        self._wait_seconds = wait_seconds
        self._known: dict[str, Model] = {}
        self._looks: dict[str, threading.Thread] = {}
        self._errors: dict[str, ServingError] = {}
        self._lock = threading.Lock()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="version-source", daemon=True)

    def start(self) -> None:
        """Begins to look; the first look after one wait."""
        if self._wait_seconds > 0:
            self._thread.start()

    def stop(self) -> None:
        """Ends the looking."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join(_PATIENCE_SECONDS)

    def watch(self, list_models: Callable[[], list[Model]]) -> None:
        """Looks from now on, and now, at the models that `list_models` returns."""
        with self._lock:
            self._list_models = list_models
        if self._wait_seconds >= 0:
            self.poll()

    def models(self) -> list[Model]:
        """Returns the models that were looked at the last time."""
        return list(self._known.values())

    def error(self, name: str) -> ServingError | None:
        """Returns why the folder of a model could not be read the last time."""
        return self._errors.get(name)

    def poll(self) -> None:
        """Looks once. A folder that cannot be read leaves its model as it is.

        The models are looked at side by side, since a disk may not answer: nobody waits long for
        such a one, and it is looked at again once it has answered.
        """
        with self._lock:
            looks = self._begin_looks()
        deadline = time.monotonic() + _PATIENCE_SECONDS
        for model, look in looks:
            look.join(max(deadline - time.monotonic(), 0))
            if look.is_alive():
                self._say(model.name, _no_answer(model))

    def _begin_looks(self) -> list[tuple[Model, threading.Thread]]:
        try:
            models = self._list_models()
        except ServingError as error:
            self._say("", error)
            return []
        for name in self._known.keys() - {model.name for model in models}:
            self._on_versions(name, {})
            self._errors.pop(name, None)
        self._known = {model.name: model for model in models}
        return [(model, self._look(model)) for model in models]

    def _look(self, model: Model) -> threading.Thread:
        look = self._looks.get(model.name)
        if not look or not look.is_alive():
            look = threading.Thread(target=self._poll_model, args=[model], daemon=True)
            self._looks[model.name] = look
            look.start()
        return look

    def _poll_model(self, model: Model) -> None:
        try:
            found = versions_in(model.base_path)
            if self._stopped.is_set() or self._known.get(model.name) != model:
                return  # It took so long that something else is wanted by now.
            self._on_versions(model.name, wanted(model, found))
            if not found:
                where = f"found under base path {model.base_path}"
                raise not_found(f"No versions of servable {model.name} {where}")
            self._errors.pop(model.name, None)
        except ServingError as error:
            self._say(model.name, error)

    def _say(self, name: str, error: ServingError) -> None:
        if str(self._errors.get(name)) != str(error):
            _LOG.error("%s", error)
        self._errors[name] = error

    def _run(self) -> None:
        while not self._stopped.wait(self._wait_seconds):
            self.poll()
