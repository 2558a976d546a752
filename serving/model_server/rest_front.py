"""The REST front end: TF Serving's HTTP API over the standard library's server."""

import gzip
import http.server
import json
import logging
import re
import socket
import threading
import zlib
from collections.abc import Mapping
from typing import NamedTuple
from urllib.parse import unquote

from google.protobuf import json_format
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest, SignatureDefMap
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.model_pb2 import ModelSpec

from serving.model_server import json_request, json_response
from serving.model_server.core import ServerCore
from serving.model_server.errors import Code, ServingError, invalid
from serving.model_server.flags import Options

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
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_LARGEST_INFLATED = 100 * 2**20
_LARGEST_VERSION = 2**63 - 1
_GRACE_SECONDS = 30


class Answer(NamedTuple):
    """An HTTP answer before its headers."""

    status: int
    body: str
    kind: str = "application/json"


class RestApi:
    """HTTP requests answered by a core; knows no sockets.

    Args:
        core: Answers the questions.
        timeout_ms: Longest time for one.
    """

    def __init__(self, core: ServerCore, timeout_ms: int):
        self._core = core
        self._timeout_ms = timeout_ms

    def answer(self, method: str, path: str, body: bytes) -> Answer:
        """Returns the answer to one request; every failure becomes one."""
        if not path.lower().startswith("/v1/"):
            return Answer(404, "<html><body><h1>Not Found</h1></body></html>", "text/html")
        try:
            return Answer(200, self._route(method, path, body))
        except ServingError as error:
            return Answer(_STATUS[error.code], _error_body(error.message))
        except Exception as error:
            _LOG.exception("A request failed in the server itself")
            return Answer(500, _error_body(f"{type(error).__name__}: {error}"))

    def _route(self, method: str, path: str, body: bytes) -> str:
        if method == "POST" and (match := _POST.fullmatch(path)):
            return self._post(match["method"].lower(), _model_spec(match), body)
        if method == "GET" and (match := _GET.fullmatch(path)):
            if not match["name"]:
                raise invalid("Missing model name in request.")
            ask = self._metadata if match["metadata"] else self._model_status
            return ask(_model_spec(match))
        raise invalid(f"Malformed request: {method} {path}")

    def _post(self, method: str, spec: ModelSpec, body: bytes) -> str:
        if method != "predict":
            raise ServingError(Code.UNIMPLEMENTED, f"{method} is not served by this server.")
        document = json_request.parse(body)
        spec.signature_name = json_request.signature_name(document)
        inputs = json_request.inputs(document, self._core.signature(spec).inputs)
        outputs = self._core.predict(spec, inputs.arrays, (), self._timeout_ms).outputs
        return json_response.rows(outputs) if inputs.rows else json_response.columns(outputs)

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


class RestFront:
    """An HTTP server over a core.

    Raises:
        ServingError: The port cannot be had.
    """

    def __init__(self, core: ServerCore, options: Options):
        api = RestApi(core, options.rest_api_timeout_in_ms)
        headers = _CORS if options.rest_api_enable_cors_support else {}
        self._server = _bind(options.rest_api_port, api, headers)
        self._thread = threading.Thread(
            target=self._server.serve_forever, kwargs={"poll_interval": 0.1}, name="rest"
        )
        self.ready = f"Exporting HTTP/REST API at:localhost:{options.rest_api_port} ..."

    def start(self) -> None:
        """Begins to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Takes no new connections, and waits for the requests under way."""
        if self._thread.is_alive():
            self._server.shutdown()
            self._thread.join()
        self._server.server_close()
        self._server.wait_until_idle(_GRACE_SECONDS)


class _Server(http.server.ThreadingHTTPServer):
    allow_reuse_port = False
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, address: tuple, api: RestApi, headers: Mapping[str, str]):
        self.api = api
        self.headers = headers
        self._active = 0
        self._idle = threading.Condition()
        super().__init__(address, _Handler)

    def __enter__(self):
        with self._idle:
            self._active += 1

    def __exit__(self, *_):
        with self._idle:
            self._active -= 1
            self._idle.notify_all()

    def wait_until_idle(self, seconds: float) -> None:
        with self._idle:
            self._idle.wait_for(lambda: self._active == 0, seconds)

    def handle_error(self, request, client_address):
        _LOG.debug("The connection with %s broke", client_address, exc_info=True)


class _DualStackServer(_Server):
    address_family = socket.AF_INET6

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # Headers and body leave together.

    def answer(self):
        with self.server:
            if self.command == "OPTIONS" and self.server.headers:
                origin = self.headers.get("Origin", "")
                reply = Answer(200 if re.search("https?://", origin) else 400, "")
            else:
                reply = self.server.api.answer(self.command, self.path, self._body())
            self._send(reply)

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = answer  # noqa: N815

    def _send(self, reply: Answer) -> None:
        body = reply.body.encode("utf-8", "surrogateescape")
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)
        self.wfile.flush()

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        return _inflate(body) if "gzip" in self.headers.get("Content-Encoding", "") else body

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        chunk = self.rfile.read(size)
        self.rfile.readline()
        return chunk

    def log_message(self, *_):
        """Keeps the standard library's access log out of stderr."""


def _bind(port: int, api: RestApi, headers: Mapping[str, str]) -> _Server:
    try:
        return _DualStackServer(("::", port), api, headers)
    except (OSError, OverflowError):
        pass  # No IPv6 here, or the port is taken in both.
    try:
        return _Server(("0.0.0.0", port), api, headers)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ServingError(
            Code.UNAVAILABLE,
            f"Could not listen for REST at port {port}: {reason}. "
            "Choose another with --rest_api_port.",
        ) from None


def _model_spec(match: re.Match) -> ModelSpec:
    spec = ModelSpec(name=unquote(match["name"]))
    if match["version"]:
        if int(match["version"]) > _LARGEST_VERSION:
            raise invalid(f"Failed to convert version: {match['version']} to numeric.")
        spec.version.value = int(match["version"])
    if match["label"]:
        spec.version_label = unquote(match["label"])
    return spec


def _inflate(body: bytes) -> bytes:
    """Returns the contents of a gzip body; nothing where it is broken or too large."""
    try:
        inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        inflated = inflater.decompress(body, _LARGEST_INFLATED)
        return inflated if inflater.eof else b""
    except (gzip.BadGzipFile, zlib.error):
        return b""


def _json(message) -> str:
    return json_format.MessageToJson(
        message,
        always_print_fields_with_no_presence=True,
        preserving_proto_field_name=True,
        indent=1,
    )


def _error_body(message: str) -> str:
    return json.dumps({"error": message}, indent=4, ensure_ascii=False)
