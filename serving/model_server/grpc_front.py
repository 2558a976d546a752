"""The gRPC front end: PredictionService and ModelService."""

import functools
import logging
import socket
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import grpc
from tensorflow_serving.apis import (
    classification_pb2,
    get_model_metadata_pb2,
    get_model_status_pb2,
    inference_pb2,
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.model_server import health, profiler, protos, tensors
from serving.model_server.core import ServerCore
from serving.model_server.errors import Code, ServingError, invalid
from serving.model_server.flags import Options

_LOG = logging.getLogger(__name__)
_LONGEST_MESSAGE = 1024
_STATUS = {status.value[0]: status for status in grpc.StatusCode}
_GRACE_SECONDS = 30
_LONGEST_TIMEOUT_MS = 2**31 - 1


def _answers(method: Callable) -> Callable:
    """Turns what a method raises into the status of its call."""

    @functools.wraps(method)
    def call(self, request, context: grpc.ServicerContext):
        try:
            return method(self, request, context)
        except ServingError as error:
            failure = error
        except Exception as error:
            _LOG.exception("A request failed in the server itself")
            failure = ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}")
        context.abort(_STATUS[failure.code], _cut(failure.message))

    return call


def _counted(method: Callable) -> Callable:
    """Counts the calls of a method, by model and by how they end."""

    @functools.wraps(method)
    def call(self, request, context: grpc.ServicerContext):
        asked = request.tasks[0] if getattr(request, "tasks", None) else request
        name = asked.model_spec.name if hasattr(asked, "model_spec") else ""
        with self._core.metrics.request(name, method.__name__, "GRPC"):
            return method(self, request, context)

    return call


class PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    """tensorflow.serving.PredictionService over a core."""

    def __init__(self, core: ServerCore, as_content: bool = False):
        self._core = core
        self._as_content = as_content

    @_answers
    @_counted
    def Predict(self, request, context) -> predict_pb2.PredictResponse:  # noqa: N802
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        prediction = self._core.predict(
            request.model_spec,
            tensors.DecodedInputs(request.inputs),
            request.output_filter,
            _timeout_ms(context),
        )
        response = predict_pb2.PredictResponse(model_spec=prediction.model_spec)
        for name, array in prediction.outputs.items():
            response.outputs[name].MergeFromString(tensors.encode(array, self._as_content))
        return response

    @_answers
    def GetModelMetadata(  # noqa: N802
        self, request, context
    ) -> get_model_metadata_pb2.GetModelMetadataResponse:
        return self._core.metadata(request)

    @_answers
    @_counted
    def Classify(self, request, context) -> classification_pb2.ClassificationResponse:  # noqa: N802
        return self._core.classify(request, _timeout_ms(context))

    @_answers
    @_counted
    def Regress(self, request, context) -> regression_pb2.RegressionResponse:  # noqa: N802
        return self._core.regress(request, _timeout_ms(context))

    @_answers
    @_counted
    def MultiInference(self, request, context) -> inference_pb2.MultiInferenceResponse:  # noqa: N802
        return self._core.multi_inference(request, _timeout_ms(context))


class ModelService(model_service_pb2_grpc.ModelServiceServicer):
    """tensorflow.serving.ModelService over a core."""

    def __init__(self, core: ServerCore):
        self._core = core

    @_answers
    def GetModelStatus(  # noqa: N802
        self, request, context
    ) -> get_model_status_pb2.GetModelStatusResponse:
        return self._core.status(request)

    @_answers
    def HandleReloadConfigRequest(  # noqa: N802
        self, request, context
    ) -> model_management_pb2.ReloadConfigResponse:
        return self._core.reload_config(request)


class GrpcFront:
    """A gRPC server over a core.

    Raises:
        ServingError: A port or a socket path cannot be had.
    """

    def __init__(self, core: ServerCore, options: Options):
        self._server = grpc.server(
            ThreadPoolExecutor(options.grpc_max_threads, thread_name_prefix="grpc"),
            options=_channel_options(options.grpc_channel_arguments),
        )
        prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(
            PredictionService(core, options.enable_serialization_as_tensor_content), self._server
        )
        model_service_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(core), self._server)
        if options.enable_grpc_healthcheck_service:
            health.add_to(self._server)
        if options.enable_profiler:
            profiler.add_to(self._server)
        credentials = _credentials(options.ssl_config_file)
        addresses = " and ".join(_listen(self._server, options, credentials))
        self.ready = f"Running gRPC ModelServer at {addresses} ..."

    def start(self) -> None:
        """Begins to answer."""
        self._server.start()

    def stop(self) -> None:
        """Takes no new calls, and waits for those under way."""
        self._server.stop(_GRACE_SECONDS).wait()


def _credentials(file: str) -> grpc.ServerCredentials | None:
    """Returns what the file says of TLS; None where there is no file."""
    if not file:
        return None
    config = protos.read(file, protos.SSLConfig)
    authorities = config.custom_ca.encode() or None
    pair = (config.server_key.encode(), config.server_cert.encode())
    if config.client_verify and not authorities:
        raise invalid(f"{file}: client_verify needs a custom_ca to verify clients by")
    return grpc.ssl_server_credentials([pair], authorities, config.client_verify)


def _listen(
    server: grpc.Server, options: Options, credentials: grpc.ServerCredentials | None
) -> list[str]:
    addresses = []
    if options.port:
        address = f"0.0.0.0:{options.port}"
        _bind(server, address, credentials, lambda: _why_not(options.port), "--port")
        addresses.append(address)
    if options.grpc_socket_path:
        address = f"unix:{options.grpc_socket_path}"
        why = "no such folder, or no right to it"
        _bind(server, address, credentials, lambda: why, "--grpc_socket_path")
        addresses.append(address)
    return addresses


def _bind(
    server: grpc.Server,
    address: str,
    credentials: grpc.ServerCredentials | None,
    why: Callable[[], str],
    flag: str,
) -> None:
    try:
        if credentials:
            bound = server.add_secure_port(address, credentials)
        else:
            bound = server.add_insecure_port(address)
        if bound:
            return
    except RuntimeError:
        pass
    raise ServingError(
        Code.UNAVAILABLE,
        f"Could not listen for gRPC at {address}: {why()}. Choose another with {flag}.",
    )


def _why_not(port: int) -> str:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", port))
        except (OSError, OverflowError) as error:
            return getattr(error, "strerror", None) or str(error)
    return "the port is in use"


def _channel_options(arguments: str) -> list[tuple[str, int | str]]:
    unlimited = -1
    chosen: dict[str, int | str] = {
        "grpc.max_receive_message_length": unlimited,
        "grpc.max_send_message_length": unlimited,
        "grpc.so_reuseport": 0,  # Two servers would share a port, each answering half.
    }
    for argument in arguments.split(","):
        key, equals, value = argument.partition("=")
        if equals:
            chosen[key] = _int_or_text(value)  # In place of ours, if it is the same key.
    return list(chosen.items())


def _int_or_text(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text


def _timeout_ms(context: grpc.ServicerContext) -> int:
    remaining = context.time_remaining()
    unlimited = remaining is None or remaining * 1000 > _LONGEST_TIMEOUT_MS
    return 0 if unlimited else max(int(remaining * 1000), 1)


def _cut(message: str) -> str:
    if len(message) <= _LONGEST_MESSAGE:
        return message
    return message[:_LONGEST_MESSAGE] + "...TRUNCATED"
