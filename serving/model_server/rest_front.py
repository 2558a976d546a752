"""The REST front end: the API over HTTP, with or without TLS."""

import os
import re
import ssl
import tempfile
import threading
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

from serving.model_server import metrics, protos
from serving.model_server.admin import Admin
from serving.model_server.auth import Tokens
from serving.model_server.calls import PULSE
from serving.model_server.core import ServerCore
from serving.model_server.errors import ServingError, caller_gone, invalid
from serving.model_server.flags import Options
from serving.model_server.http_messages import Request, Response
from serving.model_server.http_server import HttpServer
from serving.model_server.journal import Entry
from serving.model_server.rest_api import Answer, RestApi, refusal

_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_LARGEST_INFLATED = 100 * 2**20
_ARRIVAL_SECONDS = 30  # Where a call may take any time, its request may not.


class RestFront:
    """An HTTP server over a core.

    Args:
        core: Answers.
        admin: Tells of the server itself.
        options: The flags.
        tokens: What callers must show; None where everybody may ask.

    Raises:
        ServingError: The port cannot be had, or a file does not hold what it should.
    """

    def __init__(self, core: ServerCore, admin: Admin, options: Options, tokens: Tokens | None):
        metrics_path = _metrics_path(options.monitoring_config_file)
        self._api = RestApi(core, options, metrics_path)
        self._journal = core.journal
        self._admin = admin
        self._tokens = tokens
        self._headers = _CORS if options.rest_api_enable_cors_support else {}
        self._turns = threading.Semaphore(max(options.rest_api_num_threads, 1))
        self._largest_body = options.max_request_bytes
        self._grace_seconds = options.shutdown_grace_seconds
        self._server = HttpServer(
            options.rest_api_port,
            self._answer,
            max(options.rest_api_timeout_in_ms, 0) / 1000 or _ARRIVAL_SECONDS,
            options.max_request_bytes,
            _tls(options.rest_api_ssl_config_file),
        )
        self.ready = f"Exporting HTTP/REST API at:localhost:{options.rest_api_port} ..."

    def start(self) -> None:
        """Begins to answer."""
        self._server.start()

    def stop(self) -> None:
        """Takes no new connections, and waits for the requests under way."""
        self._server.stop(self._grace_seconds)

    def _answer(self, request: Request) -> Response:
        if not self._journal.heard:
            return self._response(request, None)
        with self._journal.answering(
            "REST", f"{request.method} {request.path}", request.headers, request.peer
        ) as entry:
            return self._response(request, entry)

    def _response(self, request: Request, entry: Entry | None) -> Response:
        try:
            answer = self._reply(request)
        except ServingError as error:
            answer = refusal(error)
        headers = {"Content-Type": answer.kind, **self._headers, **answer.headers}
        body = answer.body.encode("utf-8", "surrogateescape")
        if entry:
            headers["X-Request-Id"] = entry.id
            entry.bytes_in, entry.bytes_out = len(request.body), len(body)
            if answer.error:
                entry.fail(answer.error)
        return Response(answer.status, body, headers)

    def _reply(self, request: Request) -> Answer:
        preflight = request.method == "OPTIONS" and request.path.lower().startswith("/v1/")
        if preflight and self._headers:
            origin = request.headers.get("origin", "")
            return Answer(200 if re.search("https?://", origin) else 400, "")
        if probed := self._admin.probe(request.method, request.path):
            return probed
        if self._tokens:
            self._tokens.check(request.headers.get("authorization", ""))
        if told := self._admin.answer(request.method, request.path):
            return told
        request = request._replace(body=self._contents(request))
        with self._turn(request):
            return self._api.answer(request)

    @contextmanager
    def _turn(self, request: Request) -> Iterator[None]:
        """Waits until one more request may be answered."""
        while not self._turns.acquire(timeout=PULSE):
            if request.is_gone():
                raise caller_gone()
        try:
            yield
        finally:
            self._turns.release()

    def _contents(self, request: Request) -> bytes:
        if "gzip" not in request.headers.get("content-encoding", ""):
            return request.body
        return _inflate(request.body, self._largest_body or _LARGEST_INFLATED)


def _metrics_path(file: str) -> str:
    config = protos.read(file, protos.MonitoringConfig) if file else protos.MonitoringConfig()
    if not config.prometheus_config.enable:
        return ""
    return config.prometheus_config.path or metrics.DEFAULT_PATH


def _tls(file: str) -> ssl.SSLContext | None:
    """Returns what the file says of TLS; None where there is no file."""
    if not file:
        return None
    config = protos.read(file, protos.SSLConfig)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    try:
        with tempfile.TemporaryDirectory() as folder:  # Python takes certificates from files only.
            paths = [os.path.join(folder, name) for name in ("certificate", "key")]
            for path, text in zip(paths, (config.server_cert, config.server_key), strict=True):
                with open(path, "w", opener=_for_me_alone) as opened:
                    opened.write(text)
            context.load_cert_chain(*paths)
        if config.custom_ca:
            context.load_verify_locations(cadata=config.custom_ca)
    except ssl.SSLError as error:
        raise invalid(f"{file}: {error}") from None
    if config.client_verify:
        if not config.custom_ca:
            raise invalid(f"{file}: client_verify needs a custom_ca to verify clients by")
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def _for_me_alone(path: str, flags: int) -> int:
    return os.open(path, flags, mode=0o600)


def _inflate(body: bytes, largest: int) -> bytes:
    """Returns the contents of a gzip body; nothing where it is broken or too large."""
    try:
        inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        inflated = inflater.decompress(body, largest + 1)
        return inflated if inflater.eof and len(inflated) <= largest else b""
    except zlib.error:
        return b""
