"""The configuration that is being served, and how another takes its place."""

import logging
import threading
from collections.abc import Iterable

from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving.model_server import config, protos
from serving.model_server.errors import Code, ServingError
from serving.model_server.labels import Labels
from serving.model_server.lifecycle import State
from serving.model_server.manager import Manager
from serving.model_server.request_log import RequestLogs
from serving.model_server.source import Source

_LOG = logging.getLogger(__name__)
_OVERTAKEN = "Another configuration has taken the place of this one before its models were loaded"


class Configuration:
    """The models that are to be served; every change goes through here.

    Args:
        source: Watches the folders of the models.
        manager: Loads them.
        labels: Names their versions.
        request_logs: Keeps requests of the models that are to be logged.
        fixed: The models are those of a folder, and no request can change them.
    """

    def __init__(
        self,
        source: Source,
        manager: Manager,
        labels: Labels,
        request_logs: RequestLogs,
        fixed: bool = False,
    ):
        self._source = source
        self._manager = manager
        self._labels = labels
        self._request_logs = request_logs
        self._fixed = fixed
        self._current = ModelServerConfig()
        self._lock = threading.Lock()

    def begin(self, first: ModelServerConfig) -> None:
        """Loads the first configuration; what cannot be loaded is logged, and the rest served."""
        config.check(first, self._current)
        try:
            self._load(first)
        except ServingError as error:
            _LOG.error("%s", error)

    def reload(self, new: ModelServerConfig) -> None:
        """Takes `new` in place of the present configuration.

        Returns once the models that it adds, and the versions that it labels, are loaded.

        Another may take the place of `new` while its models load: no load can keep the server
        from being given something else to do.

        Raises:
            ServingError: It is not sound, and nothing has changed; or something in it could not
                be loaded or labelled, and everything else has been; or another configuration
                has taken its place before its models were loaded.
        """
        if self._fixed:
            raise ServingError(Code.FAILED_PRECONDITION, config.NO_TRANSITION)
        self._load(new)

    def current(self) -> ModelServerConfig:
        """Returns what is being served; nobody changes it."""
        return config.of_models(self._source.models()) if self._fixed else self._current

    def _load(self, new: ModelServerConfig) -> None:
        labels = config.labels(new)
        with self._lock:
            config.check(new, self._current)
            added = _names(new) - _names(self._current)
            self._current = new
            self._request_logs.configure(new)
            if not self._fixed:
                models = config.models(new)
                self._source.watch(lambda: models)
        self._manager.wait_until_loaded(added | {name for name in labels if labels[name]})
        failure = self._failure(added)
        with self._lock:
            if self._current is not new:
                raise ServingError(Code.ABORTED, _OVERTAKEN)
            self._labels.assign(labels)
        if failure:
            raise failure

    def _failure(self, names: Iterable[str]) -> ServingError | None:
        failures = [each for name in sorted(names) for each in self.failures(name)]
        return not_available("model(s)", failures) if failures else None

    def failures(self, name: str) -> list[str]:
        """Returns why there is no version of model `name` to use; nothing where there is one."""
        statuses = self._manager.status(name)
        if any(status.state is State.AVAILABLE for status in statuses):
            return []
        reasons = [
            f"{{name: {name} version: {status.version}}}{_due_to(status.error)}"
            for status in statuses
        ]
        missing = self._source.error(name)
        return reasons or ([f"{{name: {name}}}{_due_to(missing)}"] if missing else [])


def not_available(kind: str, failures: list[str]) -> ServingError:
    """Returns the error of models that could not be loaded."""
    each = "".join(f"{failure}}}, " for failure in failures)
    return ServingError(
        Code.UNKNOWN, f"{len(failures)} {kind} did not become available: {{{each}}}"
    )


class ConfigFile:
    """Reads a configuration file again and again, and takes what is new in it.

    Args:
        path: The file.
        configuration: What to change.
        wait_seconds: Time between two readings; 0 for none.
    """

    def __init__(self, path: str, configuration: Configuration, wait_seconds: float):
        self._path = path
        self._configuration = configuration
        self._wait_seconds = wait_seconds
        self._said = ""
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="config-file", daemon=True)

    def start(self) -> None:
        """Begins to read; the first time after one wait."""
        if self._path and self._wait_seconds > 0:
            self._thread.start()

    def stop(self) -> None:
        """Ends the reading."""
        self._stopped.set()
        if self._thread.is_alive():
            self._thread.join()

    def _run(self) -> None:
        while not self._stopped.wait(self._wait_seconds):
            try:
                self._configuration.reload(protos.read(self._path, ModelServerConfig))
                self._said = ""
            except ServingError as error:
                if self._said != str(error):
                    _LOG.error("%s: %s", self._path, error)
                self._said = str(error)


def _due_to(error: ServingError | None) -> str:
    return f" due to error: {error}" if error else ""


def _names(given: ModelServerConfig) -> set[str]:
    return {model.name for model in given.model_config_list.config}
