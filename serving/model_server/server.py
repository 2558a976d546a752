"""The server put together: source → manager → core → front ends."""

import functools
import logging
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager

from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving.model_server import config, mlmd
from serving.model_server.access_log import AccessLog
from serving.model_server.admin import Admin
from serving.model_server.auth import Tokens
from serving.model_server.batching import Batching
from serving.model_server.core import ServerCore
from serving.model_server.errors import ServingError
from serving.model_server.flags import Options
from serving.model_server.grpc_front import GrpcFront
from serving.model_server.journal import Journal
from serving.model_server.labels import Labels
from serving.model_server.loader import Loader
from serving.model_server.manager import Manager, Retry
from serving.model_server.metrics import Metrics
from serving.model_server.reload import ConfigFile, Configuration, not_available
from serving.model_server.request_log import RequestLogs
from serving.model_server.rest_front import RestFront
from serving.model_server.sequences import Sequences
from serving.model_server.source import Source, models_in
from serving.model_server.tracing import Tracing

_LOG = logging.getLogger(__name__)
_THREADS = 4 * (os.cpu_count() or 1)


class Server:
    """A model server, as its options describe it.

    ```python
    with Server(Options(model_root="models")) as server:
        ...
    ```

    Args:
        options: What to serve, and where.
    """

    def __init__(self, options: Options):
        self._options = options
        self._metrics = Metrics()
        self._batching = Batching(options, self._metrics)
        self._request_logs = RequestLogs(self._metrics)
        self._tokens = Tokens(options.auth_token_file) if options.auth_token_file else None
        self._listeners = _listeners(options)
        self._loader = Loader(options, self._metrics, self._batching)
        self._manager = Manager(
            self._loader.load,
            threads=options.num_load_threads or _THREADS,
            retry=Retry(options.max_num_load_retries, options.load_retry_interval_micros / 1e6),
            unload_threads=options.num_unload_threads or _THREADS,
            on_loaded=self._note_loaded,
            on_unloaded=self._metrics.forget,
        )
        self._sequences = Sequences(
            options.max_sequence_number, options.sequence_idle_seconds, self._metrics
        )
        self._labels = Labels(
            self._manager.is_available, options.allow_version_labels_for_unavailable_models
        )
        self._admin: Admin | None = None
        self._grpc: GrpcFront | None = None
        self._parts: list[Source | ConfigFile | GrpcFront | RestFront] = []

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_) -> None:
        self.stop()

    def start(self) -> None:
        """Loads the models, then opens the sockets.

        Raises:
            ServingError: No model could be loaded, or a socket could not be opened.
        """
        try:
            self._start()
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Says not to be ready, closes the sockets, lets requests end, and unloads the models."""
        if self._admin and not self._admin.is_stopping:
            self._admin.stopping()
            if self._grpc:
                self._grpc.stopping()
            time.sleep(self._options.shutdown_delay_seconds)
        for part in reversed(self._parts):
            part.stop()
        self._parts.clear()
        self._sequences.close()
        self._manager.close(self._options.shutdown_grace_seconds)
        self._batching.close()
        self._request_logs.stop()
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    def _start(self) -> None:
        self._load_models()
        self._loader.gives_way = True
        core = ServerCore(
            self._manager,
            self._labels,
            self._configuration.reload,
            self._metrics,
            self._sequences,
            Journal(self._listeners),
            self._request_logs,
            self._options.enable_signature_method_name_check,
            self._options.max_tensor_bytes,
        )
        self._admin = Admin(self._manager, self._labels, self._configuration)
        for front in self._fronts(core):
            front.start()
            print(front.ready, flush=True)

    def _fronts(self, core: ServerCore) -> list[GrpcFront | RestFront]:
        """Opens every socket before the first of them answers."""
        self._grpc = GrpcFront(core, self._options, self._tokens)
        fronts: list[GrpcFront | RestFront] = [self._grpc]
        self._parts += fronts
        if self._options.rest_api_port and self._options.rest_api_port == self._options.port:
            _LOG.error("--rest_api_port cannot be same as --port. REST is not served.")
        elif self._options.rest_api_port:
            fronts.append(RestFront(core, self._admin, self._options, self._tokens))
            self._parts.append(fronts[-1])
        return fronts

    def _load_models(self) -> None:
        options = self._options
        first = config.from_flags(options)
        wait = options.file_system_poll_wait_seconds
        source = Source(lambda: [], self._manager.aspire, wait)
        fixed = bool(options.model_root and not options.model_config_file)
        if fixed:
            source.watch(functools.partial(models_in, options.model_root))
            self._manager.wait_until_settled()
        self._configuration = Configuration(
            source, self._manager, self._labels, self._request_logs, fixed
        )
        self._configuration.begin(first)
        self._check_something_loaded(first)
        again = options.model_config_file_poll_wait_seconds
        for part in (source, ConfigFile(options.model_config_file, self._configuration, again)):
            self._parts.append(part)
            part.start()

    def _note_loaded(self, name: str, version: int, path: str) -> None:
        if uuid := mlmd.uuid_in(path):
            self._metrics.mlmd_map.set(name, str(version), uuid, to=1)

    def _check_something_loaded(self, first: ModelServerConfig) -> None:
        self._manager.wait_until_something_is_loaded()
        configured = [model.name for model in first.model_config_list.config]
        failures = [self._configuration.failures(n) for n in configured or self._manager.names()]
        if failures and all(failures):
            raise not_available("servable(s)", [each for some in failures for each in some])


def _listeners(options: Options) -> list[AccessLog | Tracing]:
    listeners: list[AccessLog | Tracing] = []
    if options.access_log:
        listeners.append(AccessLog(options.access_log))
    if options.enable_tracing:
        listeners.append(Tracing())
    return listeners


def run(options: Options) -> int:
    """Serves until SIGTERM or SIGINT; returns the exit code."""
    stopped = threading.Event()
    try:
        with Server(options):
            _on_signals(stopped.set)
            stopped.wait()
    except ServingError as error:
        print(f"Failed to start server. Error: {error}", flush=True)
        return 255
    return 0


def _on_signals(stop) -> None:
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: stop())


@contextmanager
def log_to_stderr():
    """Writes this package's log, and only this package's, as plain lines, inside this context."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    package = logging.getLogger(__package__)
    package.addHandler(handler)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(handler)
