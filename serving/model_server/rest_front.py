"""The REST front end: the API over the standard library's HTTP server."""

import http.server
import logging
import math
import re
import socket
import threading
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from serving.model_server import metrics, protos
from serving.model_server.core import ServerCore
from serving.model_server.errors import Code, ServingError
from serving.model_server.flags import Options
from serving.model_server.rest_api import Answer, RestApi

_LOG = logging.getLogger(__name__)
_CORS = {
    "Access-Control-Allow-Origin": "*",
    "Access-Control-Allow-Methods": "POST, GET",
    "Access-Control-Allow-Headers": "Content-Type",
}
_LARGEST_INFLATED = 100 * 2**20
_GRACE_SECONDS = 30


class RestFront:
    """An HTTP server over a core.

    Raises:
        ServingError: The port cannot be had.
    """

    def __init__(self, core: ServerCore, options: Options):
        metrics_path = _metrics_path(options.monitoring_config_file)
        api = RestApi(core, options.rest_api_timeout_in_ms, metrics_path)
        headers = _CORS if options.rest_api_enable_cors_support else {}
        turns = threading.Semaphore(max(options.rest_api_num_threads, 1))
        self._server = _bind(options.rest_api_port, api, headers, turns)
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

    def __init__(
        self, address: tuple, api: RestApi, headers: Mapping[str, str], turns: threading.Semaphore
    ):
        self.api = api
        self.turns = turns  # Only so many requests are answered at the same time.
        self.headers = headers
        self._active = 0
        self._idle = threading.Condition()
        super().__init__(address, _Handler)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Counts the requests under way."""
        with self._idle:
            self._active += 1
        try:
            yield
        finally:
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
        with self.server.answering():
            self._send(self._reply())

    do_GET = do_POST = do_PUT = do_DELETE = do_PATCH = do_HEAD = do_OPTIONS = answer  # noqa: N815

    def _reply(self) -> Answer:
        preflight = self.command == "OPTIONS" and self.path.lower().startswith("/v1/")
        if preflight and self.server.headers:
            origin = self.headers.get("Origin", "")
            return Answer(200 if re.search("https?://", origin) else 400, "")
        try:
            body = self._body()
        except ValueError:  # A length that is no number; where the body ends is not known.
            self.close_connection = True
            return Answer(400, "")
        with self.server.turns:
            priority = self.headers.get("Priority", "")
            return self.server.api.answer(self.command, self.path, body, priority)

    def _send(self, reply: Answer) -> None:
        body = reply.body.encode("utf-8", "surrogateescape")
        self.send_response(reply.status)
        self.send_header("Content-Type", reply.kind)
        self.send_header("Content-Length", str(len(body)))
        if reply.retry_after is not None:
            self.send_header("Retry-After", str(math.ceil(reply.retry_after)))
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(b"" if self.command == "HEAD" else body)
        self.wfile.flush()

    def _body(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", "").lower():
            body = b"".join(iter(self._chunk, b""))
        else:
            body = self.rfile.read(max(int(self.headers.get("Content-Length") or 0), 0))
        return _inflate(body) if "gzip" in self.headers.get("Content-Encoding", "") else body

    def _chunk(self) -> bytes:
        size = int(self.rfile.readline().split(b";")[0], 16)
        chunk = self.rfile.read(size)
        self.rfile.readline()
        return chunk

    def log_message(self, *_):
        """Keeps the standard library's access log out of stderr."""


def _metrics_path(file: str) -> str:
    config = protos.read(file, protos.MonitoringConfig) if file else protos.MonitoringConfig()
    if not config.prometheus_config.enable:
        return ""
    return config.prometheus_config.path or metrics.DEFAULT_PATH


def _bind(
    port: int, api: RestApi, headers: Mapping[str, str], turns: threading.Semaphore
) -> _Server:
    try:
        return _DualStackServer(("::", port), api, headers, turns)
    except (OSError, OverflowError):
        pass  # No IPv6 here, or the port is taken in both.
    try:
        return _Server(("0.0.0.0", port), api, headers, turns)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise ServingError(
            Code.UNAVAILABLE,
            f"Could not listen for REST at port {port}: {reason}. "
            "Choose another with --rest_api_port.",
        ) from None


def _inflate(body: bytes) -> bytes:
    """Returns the contents of a gzip body; nothing where it is broken or too large."""
    try:
        inflater = zlib.decompressobj(wbits=16 + zlib.MAX_WBITS)
        inflated = inflater.decompress(body, _LARGEST_INFLATED)
        return inflated if inflater.eof else b""
    except zlib.error:
        return b""
