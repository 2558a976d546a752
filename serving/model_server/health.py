"""grpc.health.v1.Health: is the server there?

The sockets open once the models are loaded, so a server that can be asked is serving. Request
and answer hold one field each, written here as their few bytes.
"""

import grpc

_SERVICES = frozenset({"", "ModelService", "PredictionService"})
_SERVING = b"\x08\x01"  # Field 1, an enum: SERVING.


def add_to(server: grpc.aio.Server) -> None:
    """Adds the health service's Check to `server`."""
    handler = grpc.unary_unary_rpc_method_handler(_check)
    methods = {"Check": handler}
    service = grpc.method_handlers_generic_handler("grpc.health.v1.Health", methods)
    server.add_generic_rpc_handlers((service,))


async def _check(request: bytes, context: grpc.aio.ServicerContext) -> bytes:
    if _service_name(request) not in _SERVICES:
        await context.abort(grpc.StatusCode.NOT_FOUND, "")
    return _SERVING


def _service_name(request: bytes) -> str:
    """Returns field 1, a string, of a request; names longer than 127 bytes are not known."""
    tag_and_length = 2
    return request[tag_and_length:].decode(errors="replace")
