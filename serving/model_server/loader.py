"""From a version's folder to a servable."""

import tensorflow as tf

from serving.model_server import (
    background,
    folder,
    gentle_loading,
    litert,
    session_options,
    text_ops,
    warmup,
)
from serving.model_server.batching import Batching
from serving.model_server.calls import Runner
from serving.model_server.errors import Code, ServingError, not_found
from serving.model_server.flags import Options
from serving.model_server.metrics import Metrics
from serving.model_server.servable import Servable


class Loader:
    """Loads SavedModels, each into a graph and a session of its own.

    The session loader is the one that TF Serving uses: it takes the SavedModels of TensorFlow 1
    and 2 alike, and its errors are the ones that TF Serving's users know.

    Attributes:
        gives_way: Whether requests go before loading, as they should once there are any.
    """

    def __init__(self, options: Options, metrics: Metrics, batching: Batching):
        self.gives_way = False
        self._tags = [tag for tag in options.saved_model_tags.split(",") if tag]
        self._config = session_options.of_server(options)
        self._metrics = metrics
        self._batching = batching
        self._interpreters = 0
        if options.prefer_tflite_model:
            pools = options.num_tflite_pools
            self._interpreters = pools * options.num_tflite_interpreters_per_pool
        self._iterations = max(options.num_request_iterations_for_warmup, 1)
        if not options.enable_model_warmup:
            self._iterations = 0
        self._by_signature = options.enable_signature_warmup

    def load(self, path: str, model: str) -> Runner:
        """Returns the SavedModel at `path`, a version of `model`, loaded and warmed up.

        Raises:
            ServingError: It cannot be loaded; the message holds the reason.
        """
        with self._metrics.load(path):
            servable = self._lite(path) or self._session(path)
        try:
            servable = self._batching.wrap(path, servable, model)
            if self.gives_way:
                background.run(self._warm_up, path, servable)
            else:
                self._warm_up(path, servable)
        except Exception as error:
            servable.close()
            raise _reason(error) from error
        return servable

    def _warm_up(self, path: str, servable: Runner) -> None:
        warmed = self._iterations and warmup.run(path, servable, self._iterations, self._metrics)
        if self._by_signature and not warmed:
            warmup.by_signature(path, servable)

    def _lite(self, path: str) -> litert.LiteServable | None:
        """Returns the LiteRT model in the folder, where one is wanted and there is one."""
        file = litert.file_in(path) if self._interpreters else None
        return litert.LiteServable(file, self._interpreters) if file else None

    def _session(self, path: str) -> Servable:
        config = session_options.of_version(path, self._config)
        try:
            return self._open(path, config)
        except ServingError as error:
            if not text_ops.could_help(error.message):
                raise
        return self._open(path, config)

    def _open(self, path: str, config: tf.compat.v1.ConfigProto) -> Servable:
        # The session's threads are to answer requests: they are started here, and do not give way.
        graph, load = tf.Graph, tf.compat.v1.saved_model.load
        if self.gives_way:
            graph, load = gentle_loading.Graph, gentle_loading.load
        session = tf.compat.v1.Session(graph=graph(), config=config)
        try:
            with session.graph.as_default():
                meta_graph = load(session, self._tags, path)
            return Servable(session, meta_graph, self._metrics)
        except Exception as error:
            session.close()
            raise folder.incomplete(path, error) or _reason(error) from error


def _reason(error: Exception) -> ServingError:
    if isinstance(error, ServingError):
        return error
    if isinstance(error, tf.errors.OpError):
        plain = _without_traceback(error)
        return ServingError(Code(plain.error_code), _first_line(plain.message))
    if isinstance(error, OSError | RuntimeError):  # No such SavedModel; no graph of these tags.
        return not_found(_first_line(str(error)))
    return ServingError(Code.UNKNOWN, f"{type(error).__name__}: {_first_line(str(error))}")


def _without_traceback(error: tf.errors.OpError) -> tf.errors.OpError:
    """Returns the error of the runtime, which `Session.run` wraps in one with graph tracebacks."""
    while isinstance(error.__context__, tf.errors.OpError):
        error = error.__context__
    return error


def _first_line(text: str) -> str:
    return text.strip().partition("\n")[0]
