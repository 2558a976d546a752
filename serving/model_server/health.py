"""grpc.health.v1.Health: is the server there?

The sockets open once the models are loaded, so a server that can be asked is serving until it is
about to stop. Request and answer hold one field each, written here as their few bytes.
"""

import asyncio
from collections.abc import AsyncIterator

import grpc

_SERVICES = frozenset({"", "ModelService", "PredictionService"})
_SERVING, _NOT_SERVING, _UNKNOWN = b"\x08\x01", b"\x08\x02", b"\x08\x03"  # Field 1, an enum.


class Health:
    """The health service; everything but its making happens in its server's event loop."""

    def __init__(self):
        self._stopping = asyncio.Event()
        self._closing = asyncio.Event()

    def add_to(self, server: grpc.aio.Server) -> None:
        """Adds the service to `server`."""
        methods = {
            "Check": grpc.unary_unary_rpc_method_handler(self._check),
            "Watch": grpc.unary_stream_rpc_method_handler(self._watch),
        }
        service = grpc.method_handlers_generic_handler("grpc.health.v1.Health", methods)
        server.add_generic_rpc_handlers((service,))

    def stopping(self) -> None:
        """Says from now on that the server takes no requests."""
        self._stopping.set()

    def close(self) -> None:
        """Ends what watches, which would keep the server from stopping."""
        self._stopping.set()
        self._closing.set()

    async def _check(self, request: bytes, context: grpc.aio.ServicerContext) -> bytes:
        if _service_name(request) not in _SERVICES:
            await context.abort(grpc.StatusCode.NOT_FOUND, "")
        return self._now()

    async def _watch(self, request: bytes, _) -> AsyncIterator[bytes]:
        if _service_name(request) not in _SERVICES:
            yield _UNKNOWN
        else:
            yield self._now()
            if not self._stopping.is_set():
                await self._stopping.wait()
                yield _NOT_SERVING
        await self._closing.wait()

    def _now(self) -> bytes:
        return _NOT_SERVING if self._stopping.is_set() else _SERVING


def _service_name(request: bytes) -> str:
    """Returns field 1, a string, of a request; names longer than 127 bytes are not known."""
    tag_and_length = 2
    return request[tag_and_length:].decode(errors="replace")
