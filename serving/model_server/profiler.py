"""tensorflow.ProfilerService: a record of what TensorFlow does for a while, for TensorBoard."""

import asyncio
import os
import threading

import grpc
from tensorflow.python.profiler.internal import _pywrap_profiler

from serving.model_server import grpc_calls, protos
from serving.model_server.calls import Call
from serving.model_server.errors import Code, ServingError
from serving.model_server.journal import Journal
from serving.model_server.tasks import Mailbox

_LEVELS = {"host_tracer_level": 2, "device_tracer_level": 1}  # As with the profiler's own defaults.


class _Profiler:
    """One recording at a time, which can be ended early by its name."""

    def __init__(self):
        self._ended: dict[str, threading.Event] = {}

    async def profile(self, request, _: Call):
        """Records for as long as asked; gives the record back, or writes it where asked."""
        ended = self._ended.setdefault(request.session_id, threading.Event())
        try:
            return await asyncio.to_thread(_answer, request, ended)
        finally:
            ended.set()
            self._ended.pop(request.session_id, None)

    async def terminate(self, request, _: Call):
        """Ends a recording."""
        if ended := self._ended.get(request.session_id):
            ended.set()
        return protos.TerminateResponse()

    async def monitor(self, request, _: Call):
        """Is not there in TF Serving either."""
        raise ServingError(Code.UNIMPLEMENTED, "unimplemented.")


def add_to(server: grpc.aio.Server, mailbox: Mailbox, journal: Journal) -> None:
    """Adds the service to `server`."""
    profiler = _Profiler()
    calls = {
        "Profile": (profiler.profile, protos.ProfileRequest),
        "Terminate": (profiler.terminate, protos.TerminateRequest),
        "Monitor": (profiler.monitor, protos.TerminateRequest),
    }
    methods = {name: grpc_calls.unary(name, *how, mailbox, journal) for name, how in calls.items()}
    grpc_calls.add_service(server, "tensorflow.ProfilerService", methods)


def _answer(request, ended: threading.Event):
    record = _record(request, ended)
    response = protos.ProfileResponse(empty_trace=not record)
    if request.emit_xspace:
        response.xspace = record
    else:
        _write(request, record)
    return response


def _record(request, ended: threading.Event) -> bytes:
    session = _pywrap_profiler.ProfilerSession()
    try:
        session.start(request.repository_root, _LEVELS)
    except Exception as error:
        raise ServingError(Code.INTERNAL, str(error)) from None
    try:
        ended.wait((request.opts.duration_ms or request.duration_ms) / 1000)
    finally:
        record = session.stop()
    return record


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
