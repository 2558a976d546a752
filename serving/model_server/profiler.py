"""tensorflow.ProfilerService: a record of what TensorFlow does for a while, for TensorBoard."""

import os
import threading

import grpc
from tensorflow.python.profiler.internal import _pywrap_profiler

from serving.model_server import protos

_LEVELS = {"host_tracer_level": 2, "device_tracer_level": 1}  # As with the profiler's own defaults.
_STEP_SECONDS = 0.05


class _Profiler:
    """One recording at a time, which can be ended early by its name."""

    def __init__(self):
        self._ended: dict[str, threading.Event] = {}

    def profile(self, request, context: grpc.ServicerContext):
        """Records for as long as asked; gives the record back, or writes it where asked."""
        record = self._record(request, context)
        response = protos.ProfileResponse(empty_trace=not record)
        if request.emit_xspace:
            response.xspace = record
        else:
            _write(request, record)
        return response

    def terminate(self, request, context: grpc.ServicerContext):
        """Ends a recording."""
        if ended := self._ended.get(request.session_id):
            ended.set()
        return protos.TerminateResponse()

    def monitor(self, request, context: grpc.ServicerContext):
        """Is not there in TF Serving either."""
        context.abort(grpc.StatusCode.UNIMPLEMENTED, "unimplemented.")

    def _record(self, request, context: grpc.ServicerContext) -> bytes:
        session = _pywrap_profiler.ProfilerSession()
        try:
            session.start(request.repository_root, _LEVELS)
        except Exception as error:
            context.abort(grpc.StatusCode.INTERNAL, str(error))
        ended = self._ended.setdefault(request.session_id, threading.Event())
        try:
            left = (request.opts.duration_ms or request.duration_ms) / 1000
            while left > 0 and context.is_active() and not ended.wait(min(left, _STEP_SECONDS)):
                left -= _STEP_SECONDS
        finally:
            self._ended.pop(request.session_id, None)
            record = session.stop()
        return record


def add_to(server: grpc.Server) -> None:
    """Adds the service to `server`."""
    profiler = _Profiler()
    calls = {
        "Profile": (profiler.profile, protos.ProfileRequest),
        "Terminate": (profiler.terminate, protos.TerminateRequest),
        "Monitor": (profiler.monitor, protos.TerminateRequest),
    }
    methods = {
        name: grpc.unary_unary_rpc_method_handler(
            call, request.FromString, lambda response: response.SerializeToString()
        )
        for name, (call, request) in calls.items()
    }
    service = grpc.method_handlers_generic_handler("tensorflow.ProfilerService", methods)
    server.add_generic_rpc_handlers((service,))


def _write(request, record: bytes) -> None:
    # The names come from the caller; they must not lead out of the folder.
    folder = os.path.join(request.repository_root, _name(request.session_id))
    host = _name(request.host_name).replace(":", "_")
    os.makedirs(folder, exist_ok=True)
    with open(os.path.join(folder, f"{host}.xplane.pb"), "wb") as file:
        file.write(record)


def _name(text: str) -> str:
    name = os.path.basename(text)
    return "" if name in (os.curdir, os.pardir) else name
