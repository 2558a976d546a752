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

from serving.model_server import grpc_calls, tensors
from serving.model_server.calls import Call
from serving.model_server.core import ServerCore
from serving.model_server.errors import invalid
from serving.model_server.tasks import Mailbox


def add_to(server: grpc.aio.Server, core: ServerCore, mailbox: Mailbox, as_content: bool) -> None:
    """Adds both services.

    Args:
        server: The server.
        core: Answers.
        mailbox: That of the server's event loop.
        as_content: Write numbers into `tensor_content`.
    """
    prediction = {
        "Predict": (functools.partial(_predict, core, as_content), PredictRequest),
        "Classify": (core.classify, ClassificationRequest),
        "Regress": (core.regress, RegressionRequest),
        "MultiInference": (core.multi_inference, MultiInferenceRequest),
    }
    methods = {
        name: grpc_calls.unary(_counted(core, name, answer), request, mailbox)
        for name, (answer, request) in prediction.items()
    }
    methods["GetModelMetadata"] = grpc_calls.unary(
        _at_once(core.metadata), GetModelMetadataRequest, mailbox
    )
    grpc_calls.add_service(server, "tensorflow.serving.PredictionService", methods)
    management = {
        "GetModelStatus": (_at_once(core.status), GetModelStatusRequest),
        "HandleReloadConfigRequest": (_in_thread(core.reload_config), ReloadConfigRequest),
    }
    methods = {name: grpc_calls.unary(*how, mailbox) for name, how in management.items()}
    grpc_calls.add_service(server, "tensorflow.serving.ModelService", methods)


async def _predict(core: ServerCore, as_content: bool, request: PredictRequest, call: Call):
    if not request.HasField("model_spec"):
        raise invalid("Missing ModelSpec")
    inputs = tensors.DecodedInputs(request.inputs)
    prediction = await core.predict(request.model_spec, inputs, request.output_filter, call)
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
