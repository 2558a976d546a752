"""TF Serving's REST API: from a path and a body to an answer, without sockets."""

import json
import logging
import math
import re
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

from google.protobuf import json_format
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, SignatureDefMap
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.regression_pb2 import RegressionRequest

from serving.model_server import (
    calls,
    journal,
    json_examples,
    json_request,
    json_response,
    sequences,
    tensors,
)
from serving.model_server.calls import Call, now
from serving.model_server.core import ServerCore
from serving.model_server.errors import Code, ServingError, invalid, not_found
from serving.model_server.flags import Options
from serving.model_server.http_messages import Request

_LOG = logging.getLogger(__name__)
_WHICH = r"(?:(?:/versions/(?P<version>\d+))|(?:/labels/(?P<label>[^/:]+)))?"
_POST = re.compile(
    rf"(?i)/v1/models/(?P<name>[^/:]+){_WHICH}:(?P<method>classify|regress|predict)", re.ASCII
)
_GET = re.compile(rf"(?i)/v1/models(?:/(?P<name>[^/:]+))?{_WHICH}(?:/(?P<metadata>metadata))?")
_STATUS = {
    Code.OK: 200,
    Code.CANCELLED: 499,
    Code.UNKNOWN: 500,
    Code.INVALID_ARGUMENT: 400,
    Code.DEADLINE_EXCEEDED: 504,
    Code.NOT_FOUND: 404,
    Code.ALREADY_EXISTS: 409,
    Code.PERMISSION_DENIED: 403,
    Code.RESOURCE_EXHAUSTED: 429,
    Code.FAILED_PRECONDITION: 400,
    Code.ABORTED: 409,
    Code.OUT_OF_RANGE: 400,
    Code.UNIMPLEMENTED: 501,
    Code.INTERNAL: 500,
    Code.UNAVAILABLE: 503,
    Code.DATA_LOSS: 500,
    Code.UNAUTHENTICATED: 401,
}
_LARGEST_VERSION = 2**63 - 1
_NOT_FOUND = "<html><body><h1>Not Found</h1></body></html>"
_HELD = {
    sequences.ID: TensorInfo(dtype=types_pb2.DT_UINT64),
    sequences.CONTROL: TensorInfo(dtype=types_pb2.DT_UINT32),
}


class Answer(NamedTuple):
    """An HTTP answer; with the error that it tells of, if it is one."""

    status: int
    body: str
    kind: str = "application/json"
    headers: Mapping[str, str] = {}
    error: ServingError | None = None


class RestApi:
    """HTTP requests answered by a core; knows no sockets.

    Args:
        core: Answers the questions.
        options: The flags.
        metrics_path: Where the page of metrics is; nothing for nowhere.
    """

    def __init__(self, core: ServerCore, options: Options, metrics_path: str = ""):
        self._core = core
        self._timeout_ms = max(options.rest_api_timeout_in_ms, 0)
        self._deepest = options.max_json_depth
        self._largest_tensor = options.max_tensor_bytes
        self._metrics_path = metrics_path
        self._methods = {
            "classify": self._classify,
            "regress": self._regress,
            "predict": self._predict,
        }

    def answer(self, request: Request) -> Answer:
        """Returns the answer to one request, its body decoded; every failure becomes one."""
        method, path = request.method, request.path
        if path == self._metrics_path:
            return Answer(200, self._core.metrics.page(), "text/plain")
        if not path.lower().startswith("/v1/"):
            return Answer(404, _NOT_FOUND, "text/html", error=not_found("Not Found"))
        try:
            urgency = calls.urgency(request.headers.get("priority", ""))
            call = Call(self._timeout_ms, urgency, is_gone=request.is_gone)
            return Answer(200, self._route(method, path, request.body, call))
        except ServingError as error:
            return refusal(error)
        except Exception as error:
            _LOG.exception("A request failed in the server itself")
            return refusal(ServingError(Code.INTERNAL, f"{type(error).__name__}: {error}"))

    def _route(self, method: str, path: str, body: bytes, call: Call) -> str:
        pattern = {"POST": _POST, "GET": _GET}.get(method)
        match = pattern.fullmatch(path) if pattern else None
        parts = match.groupdict() if match else {}
        api = (parts.get("method") or "").lower()
        with self._core.metrics.request(unquote(parts.get("name") or ""), api, "REST"):
            if not match:
                raise invalid(f"Malformed request: {method} {path}")
            return self._post(api, _model_spec(match), body, call) if api else self._get(match)

    def _get(self, match: re.Match) -> str:
        if not match["name"]:
            raise invalid("Missing model name in request.")
        ask = self._metadata if match["metadata"] else self._model_status
        return ask(_model_spec(match))

    def _post(self, method: str, spec: ModelSpec, body: bytes, call: Call) -> str:
        with journal.part("parse"):
            document = json_request.parse(body, self._deepest)
        spec.signature_name = json_request.signature_name(document)
        return self._methods[method](spec, document, call)

    def _classify(self, spec: ModelSpec, document: dict, call: Call) -> str:
        request = ClassificationRequest(model_spec=spec, input=json_examples.parse(document))
        response = now(self._core.classify(request, call))
        return json_response.classifications(response.result)

    def _regress(self, spec: ModelSpec, document: dict, call: Call) -> str:
        request = RegressionRequest(model_spec=spec, input=json_examples.parse(document))
        response = now(self._core.regress(request, call))
        return json_response.regressions(response.result)

    def _predict(self, spec: ModelSpec, document: dict, call: Call) -> str:
        infos, paddings = self._infos(spec, document), self._core.paddings(spec)
        with journal.part("parse"):
            inputs = json_request.inputs(document, infos, paddings)
        for name, array in inputs.arrays.items():
            tensors.check_size(name, array, self._largest_tensor)
        outputs = now(self._core.predict(spec, inputs.arrays, (), call)).outputs
        with journal.part("write"):
            return json_response.rows(outputs) if inputs.rows else json_response.columns(outputs)

    def _infos(self, spec: ModelSpec, document: dict) -> Mapping[str, TensorInfo]:
        """Returns what inputs there must be."""
        given = json_request.names(document)
        if sequences.is_asked(given) and self._core.is_stream(spec):
            spec.signature_name = sequences.STEP
            infos = self._core.signature(spec).inputs
            return {name: info for name, info in {**infos, **_HELD}.items() if name in given}
        return self._core.signature(spec).inputs

    def _model_status(self, spec: ModelSpec) -> str:
        return _json(self._core.status(GetModelStatusRequest(model_spec=spec))) + "\n"

    def _metadata(self, spec: ModelSpec) -> str:
        request = GetModelMetadataRequest(model_spec=spec, metadata_field=["signature_def"])
        response = self._core.metadata(request)
        signatures = SignatureDefMap()
        response.metadata["signature_def"].Unpack(signatures)
        return (
            f'{{\n"model_spec":{_json(response.model_spec)},\n'
            f'"metadata": {{"signature_def": {_json(signatures)}\n}}\n}}\n'
        )


def refusal(error: ServingError) -> Answer:
    """Returns the answer to a request that failed."""
    body = json.dumps({"error": error.message}, indent=4, ensure_ascii=False)
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(math.ceil(error.retry_after))
    if error.code is Code.UNAUTHENTICATED:
        headers["WWW-Authenticate"] = "Bearer"
    return Answer(_STATUS[error.code], body, headers=headers, error=error)


def _model_spec(match: re.Match) -> ModelSpec:
    spec = ModelSpec(name=unquote(match["name"]))
    if match["version"]:
        if int(match["version"]) > _LARGEST_VERSION:
            raise invalid(f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = int(match["version"])
    if match["label"]:
        spec.version_label = unquote(match["label"])
    return spec


def _json(message) -> str:
    return json_format.MessageToJson(
        message,
        always_print_fields_with_no_presence=True,
        preserving_proto_field_name=True,
        indent=1,
    )
