"""The gRPC front end: a server in an event loop of its own, and where it listens."""

import asyncio
import contextlib
import socket
import threading
from collections.abc import Callable, Coroutine
from typing import Any

import grpc

from serving.model_server import grpc_services, grpc_streaming, profiler, protos
from serving.model_server.auth import Guard, Tokens
from serving.model_server.core import ServerCore
from serving.model_server.errors import Code, ServingError, invalid
from serving.model_server.flags import Options
from serving.model_server.health import Health
from serving.model_server.tasks import Mailbox


class GrpcFront:
    """A gRPC server over a core.

    Raises:
        ServingError: A port or a socket path cannot be had.
    """

    def __init__(self, core: ServerCore, options: Options, tokens: Tokens | None):
        self._grace_seconds = options.shutdown_grace_seconds
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="grpc", daemon=True)
        self._thread.start()
        self._server: grpc.aio.Server | None = None
        self._health = Health()
        try:
            addresses = self._await(self._open(core, options, tokens))
        except BaseException:
            self.stop()
            raise
        self.ready = f"Running gRPC ModelServer at {' and '.join(addresses)} ..."

    def start(self) -> None:
        """Begins to answer."""
        self._await(self._server.start())

    def stopping(self) -> None:
        """Says that the server is about to stop, so that no more requests are sent to it."""
        self._loop.call_soon_threadsafe(self._health.stopping)

    def stop(self) -> None:
        """Takes no new calls, and waits for those under way."""
        self._await(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _open(self, core: ServerCore, options: Options, tokens: Tokens | None) -> list[str]:
        guards = [Guard(tokens, core.journal)] if tokens else []
        self._server = grpc.aio.server(options=_channel_options(options), interceptors=guards)
        mailbox = Mailbox()
        for service in (grpc_services, grpc_streaming):
            service.add_to(self._server, core, mailbox, options)
        if options.enable_grpc_healthcheck_service:
            self._health.add_to(self._server)
        if options.enable_profiler:
            profiler.add_to(self._server, mailbox, core.journal)
        return _listen(self._server, options, _credentials(options))

    async def _close(self) -> None:
        self._health.close()
        if self._server:
            await self._server.stop(self._grace_seconds)
        with contextlib.suppress(TimeoutError, asyncio.TimeoutError):  # A load that hangs, say.
            await asyncio.wait_for(self._loop.shutdown_default_executor(), self._grace_seconds)

    def _await(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result()


def _credentials(options: Options) -> grpc.ServerCredentials | None:
    """Returns what the flags say of ALTS or TLS; None where they ask for neither."""
    if options.use_alts_credentials:
        return grpc.alts_server_credentials()
    file = options.ssl_config_file
    if not file:
        return None
    config = protos.read(file, protos.SSLConfig)
    authorities = config.custom_ca.encode() or None
    pair = (config.server_key.encode(), config.server_cert.encode())
    if config.client_verify and not authorities:
        raise invalid(f"{file}: client_verify needs a custom_ca to verify clients by")
    return grpc.ssl_server_credentials([pair], authorities, config.client_verify)


def _listen(
    server: grpc.aio.Server, options: Options, credentials: grpc.ServerCredentials | None
) -> list[str]:
    addresses = []
    if options.port:
        address = f"0.0.0.0:{options.port}"
        _bind(server, address, credentials, lambda: _why_not(options), "--port")
        addresses.append(address)
    if options.grpc_socket_path:
        address = f"unix:{options.grpc_socket_path}"
        why = "no such folder, or no right to it"
        _bind(server, address, credentials, lambda: why, "--grpc_socket_path")
        addresses.append(address)
    return addresses


def _bind(
    server: grpc.aio.Server,
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


def _why_not(options: Options) -> str:
    with socket.socket() as probe:
        try:
            probe.bind(("0.0.0.0", options.port))
        except (OSError, OverflowError) as error:
            return getattr(error, "strerror", None) or str(error)
    if options.use_alts_credentials:
        return "--use_alts_credentials works on Google Cloud only"
    return "the port is in use"


def _channel_options(options: Options) -> list[tuple[str, int | str]]:
    unlimited = -1
    chosen: dict[str, int | str] = {
        "grpc.max_receive_message_length": options.max_request_bytes or unlimited,
        "grpc.max_send_message_length": unlimited,
        "grpc.so_reuseport": 0,  # Two servers would share a port, each answering half.
    }
    for argument in options.grpc_channel_arguments.split(","):
        key, equals, value = argument.partition("=")
        if equals:
            chosen[key] = _int_or_text(value)  # In place of ours, if it is the same key.
    return list(chosen.items())


def _int_or_text(text: str) -> int | str:
    try:
        return int(text)
    except ValueError:
        return text
