"""transduce.serving.StreamingService, a service of our own; streaming.proto describes it.

Of a model with `stream_*` signatures (see `sequences`), every request is a step and gets one
response; when the client has said all, one more response holds what `stream_end` gives. The state
lives in the server as long as the call. Any other model answers each request by itself, in turn.
Only the first request needs a model_spec.
"""

import grpc
import numpy as np
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.predict_pb2 import PredictRequest

from serving.model_server import grpc_calls, sequences, tensors
from serving.model_server.calls import Call
from serving.model_server.core import ServerCore
from serving.model_server.errors import invalid
from serving.model_server.flags import Options
from serving.model_server.sequences import Control
from serving.model_server.tasks import Mailbox

_NAME = "PredictStream"


def add_to(server: grpc.aio.Server, core: ServerCore, mailbox: Mailbox, options: Options) -> None:
    """Adds the service to `server`; see `grpc_services.add_to`."""

    async def respond(requests, context):
        stream = _Stream(core, options)
        with grpc_calls.noting(core.journal, _NAME, context) as entry:
            try:
                call = grpc_calls.call(context, mailbox)
                async for message in requests:
                    request = grpc_calls.parsed(message, PredictRequest)
                    await context.write(await stream.answer(request, call))
                if stream.number:
                    return await context.write(await stream.last(call))
                return
            except grpc.aio.AbortError:
                raise
            except Exception as error:
                failure = grpc_calls.explained(error)
                if entry:
                    entry.fail(failure)
            finally:
                stream.close()
        await grpc_calls.fail(context, failure)

    handler = grpc.stream_stream_rpc_method_handler(
        respond, response_serializer=grpc_calls.serialized
    )
    grpc_calls.add_service(server, "transduce.serving.StreamingService", {_NAME: handler})


class _Stream:
    """One call: which model it asks, and its sequence."""

    def __init__(self, core: ServerCore, options: Options):
        self._core = core
        self._options = options
        self._spec: ModelSpec | None = None
        self._wanted: list[str] = []
        self._in_steps = False
        self.number = 0

    async def answer(self, request: PredictRequest, call: Call) -> bytes:
        """Returns the response to one request."""
        if request.HasField("model_spec"):
            self._choose(request.model_spec)
        if self._spec is None:
            raise invalid("Missing ModelSpec")
        inputs = tensors.DecodedInputs(request.inputs, self._options.max_tensor_bytes)
        self._wanted = list(request.output_filter)
        if not self._in_steps:
            return await self._predict(inputs, call)
        return await self._go_on(Control.CONTINUE if self.number else Control.START, inputs, call)

    async def last(self, call: Call) -> bytes:
        """Returns what the end of the sequence gives."""
        return await self._go_on(Control.END, {}, call)

    def close(self) -> None:
        """Forgets the sequence, if it has not ended."""
        if self.number:
            self._core.forget_sequence(self._spec.name, self.number)

    def _choose(self, spec: ModelSpec) -> None:
        if self.number and spec.name != self._spec.name:
            raise invalid(f"One call must ask one model, {self._spec.name}. Received: {spec.name}.")
        self._spec = spec
        self._in_steps = self._core.is_stream(spec)

    async def _go_on(self, control: Control, inputs, call: Call) -> bytes:
        held = {
            sequences.CONTROL: np.array([control], np.uint32),
            sequences.ID: np.array([self.number], np.uint64),
        }
        return await self._predict({**inputs, **held}, call)

    async def _predict(self, inputs, call: Call) -> bytes:
        with self._core.metrics.request(self._spec.name, _NAME, "GRPC"):
            prediction = await self._core.predict(self._spec, inputs, self._wanted, call)
        if self._in_steps:
            self.number = int(prediction.outputs[sequences.ID][0])
        as_content = self._options.enable_serialization_as_tensor_content
        return tensors.response(prediction.model_spec, prediction.outputs, as_content)
