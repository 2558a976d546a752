"""Which versions are loaded: brings what is there to what there should be.

Of each model one step is taken at a time; models step side by side.
"""

import logging
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import NamedTuple

from serving.model_server import folder, lifecycle
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
        unload_threads: Versions that may unload at the same time.
        on_loaded: Called with the model's name, the version's number and its folder.
        on_unloaded: Called with the model's name and the version's number.
    """

    def __init__(
        self,
        load: Callable[[str, str], Runner],
        threads: int,
        retry: Retry,
        unload_threads: int = 1,
        on_loaded: Callable[[str, int, str], None] = lambda *_: None,
        on_unloaded: Callable[[str, int], None] = lambda *_: None,
    ):
        self._load = load
        self._retry = retry
        self._on_loaded = on_loaded
        self._on_unloaded = on_unloaded
        self._models: dict[str, Model] = {}
        self._changed = threading.Condition()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="version-manager")
        self._unloaders = ThreadPoolExecutor(unload_threads, thread_name_prefix="unload")
        self._closed = False

    def aspire(self, name: str, versions: Mapping[int, str]) -> None:
        """Sets which versions model `name` should have, by number, each with its folder.

        One of them that could not be loaded is tried again if its folder has changed since.
        """
        with self._changed:
            model = self._models.setdefault(name, Model(name))
            lifecycle.note_aspired(model, versions)
            failed = lifecycle.failed(model)
            self._begin(model)
        for version in failed:
            if version.has_settled_anew():
                self._try_again(model, version, failures=0)

    def wait_until_settled(self) -> None:
        """Blocks until every model has taken every step that it can take now."""
        self._wait_until_settled()

    def wait_until_loaded(self, names: Collection[str]) -> None:
        """Blocks until no version that those models should have is still to be loaded."""
        with self._changed:
            models = [self._models[name] for name in names if name in self._models]
            self._changed.wait_for(lambda: not any(map(lifecycle.is_loading, models)))

    def wait_until_something_is_loaded(self) -> None:
        """Blocks until a version can be used, or the last try to load the last one has failed."""
        with self._changed:
            models = self._models.values()
            self._changed.wait_for(
                lambda: (
                    any(v.state is State.AVAILABLE for m in models for v in m.versions.values())
                    or all(map(lifecycle.has_given_up, models))
                )
            )

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
            model, lent = self._find(name, version)
            lent.users += 1
        try:
            yield lent.number, lent.servable
        finally:
            with self._changed:
                lent.users -= 1
                if lent.state is State.UNLOADING:
                    self._unload_if_unused(model, lent)

    def status(self, name: str) -> list[VersionStatus]:
        """Returns what is known of the versions of `name`, highest first."""
        with self._changed:
            model = self._models.get(name)
            versions = model.versions if model else {}
            return [
                VersionStatus(number, lifecycle.told_state(model, version), version.error)
                for number, version in sorted(versions.items(), reverse=True)
            ]

    def names(self) -> list[str]:
        """Returns the names of all models that there have been."""
        with self._changed:
            return sorted(self._models)

    def close(self, grace_seconds: float | None = None) -> None:
        """Lets requests end, unloads everything, and takes nothing on any more.

        Args:
            grace_seconds: How long requests may take; those that take longer are cancelled.
        """
        for name in self.names():
            self.aspire(name, {})
        settled = self._wait_until_settled(grace_seconds)
        if not settled:
            self._cancel_requests()
            settled = self._wait_until_settled(grace_seconds)
        self._closed = True
        for pool in (self._pool, self._unloaders):
            pool.shutdown(wait=settled)  # A load that hangs would be waited for without end.

    def _wait_until_settled(self, seconds: float | None = None) -> bool:
        with self._changed:
            return self._changed.wait_for(
                lambda: not any(m.busy or m.unloading for m in self._models.values()), seconds
            )

    def _cancel_requests(self) -> None:
        with self._changed:
            versions = [v for m in self._models.values() for v in m.versions.values()]
            going = [(v, v.servable) for v in versions if v.state is State.UNLOADING]
        for version, servable in going:
            if servable:
                _LOG.warning("Cancelling the requests of %s", version.path)
                servable.cancel()

    def _find(self, name: str, number: int | None) -> tuple[Model, Version]:
        model = self._models.get(name)
        versions = model.versions.values() if model else ()
        ready = {v.number: v for v in versions if v.state is State.AVAILABLE}
        if number is None and ready:
            return model, ready[max(ready)]
        if number in ready:
            return model, ready[number]
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
                version, version.state = step
                if version.state is State.UNLOADING:
                    model.unloading += 1
                    self._unload_if_unused(model, version)
                    continue
            self._load_version(model, version)

    def _load_version(self, model: Model, version: Version) -> None:
        version.note_try()
        try:
            servable = self._load(version.path, model.name)
            if not version.is_as_tried():
                servable.close()
                raise folder.changed_meanwhile(version.path)
        except ServingError as error:
            return self._load_failed(model, version, error)
        with self._changed:
            version.servable, version.error, version.state = servable, None, State.AVAILABLE
            self._changed.notify_all()
        _LOG.info("Loaded model %s version %d from %s", model.name, version.number, version.path)
        self._on_loaded(model.name, version.number, version.path)

    def _load_failed(self, model: Model, version: Version, error: ServingError) -> None:
        with self._changed:
            version.error, version.state = error, State.END
            version.failures += 1
            left = self._retry.count - version.failures + 1
            version.is_tried_again = left > 0
            self._changed.notify_all()
        rest = f"; {left} more tries, the next in {self._retry.seconds:g} s" if left > 0 else ""
        _LOG.error(
            "Could not load model %s version %d from %s: %s%s",
            *(model.name, version.number, version.path, error, rest),
        )
        if left > 0:
            self._try_again_later(model, version)

    def _try_again_later(self, model: Model, version: Version) -> None:
        timer = threading.Timer(
            self._retry.seconds, self._try_again, (model, version, version.failures)
        )
        timer.daemon = True
        timer.start()

    def _try_again(self, model: Model, version: Version, failures: int) -> None:
        with self._changed:
            if lifecycle.begin_anew(model, version):
                version.failures = failures
                self._begin(model)

    def _unload_if_unused(self, model: Model, version: Version) -> None:
        """Unloads a version, now or when its last user gives it back."""
        if not version.users:
            unloading = self._unloaders.submit(self._unload_version, model, version)
            unloading.add_done_callback(_log_failure)

    def _unload_version(self, model: Model, version: Version) -> None:
        version.servable.close()
        _LOG.info("Unloaded model %s version %d", model.name, version.number)
        self._on_unloaded(model.name, version.number)
        with self._changed:
            version.servable = None
            lifecycle.note_unloaded(model, version)
            model.unloading -= 1
            self._begin(model)
            self._changed.notify_all()


def _log_failure(future: Future) -> None:
    if error := future.exception():
        _LOG.critical("The version manager failed", exc_info=error)
