"""Which versions are loaded: brings what is there to what there should be.

Of each model one step is taken at a time; models step side by side.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

from serving.model_server import lifecycle
from serving.model_server.calls import Runner
from serving.model_server.errors import ServingError, not_found
from serving.model_server.lifecycle import Model, State, Version, VersionStatus

_LOG = logging.getLogger(__name__)


class Retry(NamedTuple):
    """How often, and after how many seconds, a failed load is tried again."""

    count: int = 5
    seconds: float = 60.0


class Manager:
    """Loads and unloads versions, and lends them to requests.

    Args:
        load: Returns the servable in a folder, of a model, or raises a `ServingError`.
        threads: Models that may load at the same time.
        retry: What to do after a failed load.
    """

    def __init__(self, load: Callable[[str, str], Runner], threads: int, retry: Retry):
        self._load = load
        self._retry = retry
        self._models: dict[str, Model] = {}
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="version-manager")
        self._closed = False

    def aspire(self, name: str, versions: Mapping[int, str]) -> None:
        """Sets which versions model `name` should have, by number, each with its folder."""
        with self._changed:
            model = self._models.setdefault(name, Model(name))
            lifecycle.note_aspired(model, versions)
            self._begin(model)

    def wait_until_settled(self) -> None:
        """Blocks until every model has taken every step that it can take now."""
        with self._changed:
            self._changed.wait_for(lambda: not any(m.busy for m in self._models.values()))

    def wait_until_loaded(self, names: Collection[str]) -> None:
        """Blocks until no version that those models should have is still to be loaded."""
        with self._changed:
            models = [self._models[name] for name in names if name in self._models]
            self._changed.wait_for(lambda: not any(map(lifecycle.is_loading, models)))

    def is_available(self, name: str, version: int) -> bool:
        """Tells whether a version can be used."""
        return any(
            status.version == version and status.state is State.AVAILABLE
            for status in self.status(name)
        )

    @contextmanager
    def use(self, name: str, version: int | None = None) -> Iterator[tuple[int, Runner]]:
        """Lends a version, the highest by default; it stays loaded until it is given back.

        Yields:
            Its number and its servable.

        Raises:
            ServingError: No such version is available.
        """
        with self._changed:
            entry = self._find(name, version)
            entry.users += 1
        try:
            yield entry.number, entry.servable
        finally:
            with self._changed:
                entry.users -= 1
                self._changed.notify_all()

    def status(self, name: str) -> list[VersionStatus]:
        """Returns what is known of the versions of `name`, highest first."""
        with self._changed:
            model = self._models.get(name)
            versions = model.versions if model else {}
            return [
                VersionStatus(number, versions[number].state, versions[number].error)
                for number in sorted(versions, reverse=True)
            ]

    def names(self) -> list[str]:
        """Returns the names of all models that there have been."""
        with self._changed:
            return sorted(self._models)

    def close(self) -> None:
        """Lets requests end, unloads everything, and takes nothing on any more."""
        for name in self.names():
            self.aspire(name, {})
        self.wait_until_settled()
        self._closed = True
        self._pool.shutdown()

    def _find(self, name: str, number: int | None) -> Version:
        model = self._models.get(name)
        versions = model.versions.values() if model else ()
        ready = {v.number: v for v in versions if v.state is State.AVAILABLE}
        if number is None and ready:
            return ready[max(ready)]
        if number in ready:
            return ready[number]
        which = f"Latest({name})" if number is None else f"Specific({name}, {number})"
        raise not_found(f"Servable not found for request: {which}")

    def _begin(self, model: Model) -> None:
        if model.busy or self._closed or lifecycle.next_step(model) is None:
            return
        model.busy = True
        self._pool.submit(self._settle, model).add_done_callback(_log_failure)

    def _settle(self, model: Model) -> None:
        while True:
            with self._changed:
                step = lifecycle.next_step(model)
                if step is None:
                    model.busy = False
                    self._changed.notify_all()
                    return
                version, state = step
                version.state = state
            if state is State.LOADING:
                self._load_version(model, version)
            else:
                self._unload_version(model, version)

    def _load_version(self, model: Model, version: Version) -> None:
        try:
            servable = self._load(version.path, model.name)
        except ServingError as error:
            return self._load_failed(model, version, error)
        with self._changed:
            version.servable, version.error, version.state = servable, None, State.AVAILABLE
            self._changed.notify_all()
        _LOG.info("Loaded model %s version %d from %s", model.name, version.number, version.path)

    def _load_failed(self, model: Model, version: Version, error: ServingError) -> None:
        _LOG.error(
            "Could not load model %s version %d from %s: %s",
            *(model.name, version.number, version.path, error),
        )
        with self._changed:
            version.error, version.state = error, State.END
            version.failures += 1
            self._changed.notify_all()
        if version.failures <= self._retry.count:
            self._try_again_later(model, version)

    def _try_again_later(self, model: Model, version: Version) -> None:
        def again():
            with self._changed:
                if model.versions.get(version.number) is version and version.state is State.END:
                    version.state = State.START
                    self._begin(model)

        timer = threading.Timer(self._retry.seconds, again)
        timer.daemon = True
        timer.start()

    def _unload_version(self, model: Model, version: Version) -> None:
        with self._changed:
            self._changed.wait_for(lambda: version.users == 0)
            servable, version.servable = version.servable, None
        if servable:
            servable.close()
        with self._changed:
            version.state = State.END
        _LOG.info("Unloaded model %s version %d", model.name, version.number)


def _log_failure(future: Future) -> None:
    if error := future.exception():
        _LOG.critical("The version manager failed", exc_info=error)
