"""PredictionService and ModelService over a core."""

import asyncio
import functools

import grpc
from google.protobuf.message import Message
from tensorflow_serving.apis.classification_pb2 import ClassificationRequest
from tensorflow_serving.apis.get_model_metadata_pb2 import GetModelMetadataRequest
from tensorflow_serving.apis.get_model_status_pb2 import GetModelStatusRequest
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest
from tensorflow_serving.apis.model_management_pb2 import ReloadConfigRequest
from tensorflow_serving.apis.predict_pb2 import PredictRequest
from tensorflow_serving.apis.regression_pb2 import RegressionRequest

from serving.model_server import grpc_calls, journal, tensors
from serving.model_server.calls import Call
from serving.model_server.core import ServerCore
from serving.model_server.errors import invalid
from serving.model_server.flags import Options
from serving.model_server.tasks import Mailbox


def add_to(server: grpc.aio.Server, core: ServerCore, mailbox: Mailbox, options: Options) -> None:
    """Adds both services.

    Args:
        server: The server.
        core: Answers.
        mailbox: That of the server's event loop.
        options: The flags.
    """
    prediction = {
        "Predict": (functools.partial(_predict, core, options), PredictRequest),
        "Classify": (core.classify, ClassificationRequest),
        "Regress": (core.regress, RegressionRequest),
        "MultiInference": (core.multi_inference, MultiInferenceRequest),
    }
    methods = {
        name: (_counted(core, name, answer), request)
        for name, (answer, request) in prediction.items()
    }
    methods["GetModelMetadata"] = (_at_once(core.metadata), GetModelMetadataRequest)
    management = {
        "GetModelStatus": (_at_once(core.status), GetModelStatusRequest),
        "HandleReloadConfigRequest": (_in_thread(core.reload_config), ReloadConfigRequest),
    }
    for service, its in (("PredictionService", methods), ("ModelService", management)):
        handlers = {
            name: grpc_calls.unary(name, *how, mailbox, core.journal) for name, how in its.items()
        }
        grpc_calls.add_service(server, f"tensorflow.serving.{service}", handlers)


async def _predict(core: ServerCore, options: Options, request: PredictRequest, call: Call):
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    inputs = tensors.DecodedInputs(request.inputs, options.max_tensor_bytes)
    prediction = await core.predict(request.model_spec, inputs, request.output_filter, call)
    with journal.part("write"):
        as_content = options.enable_serialization_as_tensor_content
        return tensors.response(prediction.model_spec, prediction.outputs, as_content)


def _counted(core: ServerCore, name: str, answer: grpc_calls.Answer) -> grpc_calls.Answer:
    """Counts the calls of a method, by model and by how they end."""

    async def counted(request: Message, call: Call):
        asked = request
        if isinstance(request, MultiInferenceRequest):
            asked = request.tasks[0] if request.tasks else None
        model = asked.model_spec.name if asked else ""
        with core.metrics.request(model, name, "GRPC"):
            return await answer(request, call)

    return counted


def _at_once(answer) -> grpc_calls.Answer:
    async def respond(request: Message, _: Call):
        return answer(request)

    return respond


def _in_thread(answer) -> grpc_calls.Answer:
    async def respond(request: Message, _: Call):
        return await asyncio.to_thread(answer, request)

    return respond
