"""The server without its sockets: what the front ends call.

One method a question of the protocol; a coroutine where a graph is to run. gRPC and REST differ in
how they write a question and an answer, and in nothing else; neither touches TensorFlow.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis.classification_pb2 import (
    ClassificationRequest,
    ClassificationResponse,
    ClassificationResult,
)
from tensorflow_serving.apis.get_model_metadata_pb2 import (
    GetModelMetadataRequest,
    GetModelMetadataResponse,
    SignatureDefMap,
)
from tensorflow_serving.apis.get_model_status_pb2 import (
    GetModelStatusRequest,
    GetModelStatusResponse,
)
from tensorflow_serving.apis.inference_pb2 import MultiInferenceRequest, MultiInferenceResponse
from tensorflow_serving.apis.model_management_pb2 import (
    ReloadConfigRequest,
    ReloadConfigResponse,
)
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.regression_pb2 import RegressionRequest, RegressionResponse
from tensorflow_serving.apis.status_pb2 import StatusProto
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving.model_server import inference, journal, predict, sequences, streams, tensors
from serving.model_server.batch_padding import Padding
from serving.model_server.calls import Call, Runner
from serving.model_server.errors import Code, invalid, not_found
from serving.model_server.journal import Journal
from serving.model_server.labels import Labels
from serving.model_server.manager import Manager
from serving.model_server.metrics import Metrics
from serving.model_server.request_log import RequestLogs
from serving.model_server.sequenced import Sequenced
from serving.model_server.sequences import Sequences

Request = TypeVar("Request", ClassificationRequest, RegressionRequest, MultiInferenceRequest)
Response = TypeVar("Response", ClassificationResponse, RegressionResponse, MultiInferenceResponse)
_API = {inference.CLASSIFY: "Classify", inference.REGRESS: "Regress"}


class Prediction(NamedTuple):
    """The answer of a model: who answered, and its outputs by name."""

    model_spec: ModelSpec
    outputs: dict[str, np.ndarray]


class ServerCore:
    """Answers requests with the versions that a manager holds.

    Args:
        manager: Lends the servables.
        labels: Tells which version a label names.
        reload: Takes another configuration, or raises a `ServingError`.
        metrics: Counts what is asked.
        sequences: Remembers the state between requests.
        journal: Notes what is asked, for those who listen.
        logs: Keeps some of it.
        check_method_names: Refuse signatures of a method that TF Serving does not know.
        largest_tensor: Most bytes of all examples of a request; 0 for any.
    """

    def __init__(
        self,
        manager: Manager,
        labels: Labels,
        reload: Callable[[ModelServerConfig], None],
        metrics: Metrics,
        sequences: Sequences,
        journal: Journal,
        logs: RequestLogs,
        check_method_names: bool = False,
        largest_tensor: int = 0,
    ):
        self._manager = manager
        self._labels = labels
        self.metrics = metrics
        self.journal = journal
        self._logs = logs
        self._reload = reload
        self._sequenced = Sequenced(self._use, self._runtime, sequences)
        self._check_method_names = check_method_names
        self._largest_tensor = largest_tensor

    async def predict(
        self,
        model_spec: ModelSpec,
        inputs: Mapping[str, np.ndarray],
        output_filter: Sequence[str],
        call: Call,
    ) -> Prediction:
        """Returns the outputs of the model for `inputs`.

        Args:
            model_spec: Which model, version and signature.
            inputs: Arrays by input name.
            output_filter: The outputs wanted; none for all.
            call: Says how to wait.
        """
        if sequences.is_asked(inputs) and self.is_stream(model_spec):
            asked = model_spec, inputs, output_filter, call
            version, outputs = await self._sequenced.predict(*asked)
            answered_by = _answered_by(model_spec, version, sequences.STEP)
        else:
            with (
                self._use(model_spec) as (version, servable),
                self._runtime(model_spec, version, servable, "Predict"),
            ):
                outputs = await predict.run(
                    *(servable, model_spec, inputs, output_filter, call),
                    self._check_method_names,
                )
            answered_by = _answered_by(model_spec, version)
        if self._logs.chooses(model_spec.name):
            self._logs.predict(answered_by, inputs, output_filter, outputs)
        return Prediction(answered_by, outputs)

    async def classify(self, request: ClassificationRequest, call: Call) -> ClassificationResponse:
        """Returns the classes of every `tf.Example` in `request`."""
        result, spec = await self._infer(request, inference.CLASSIFY, call)
        response = ClassificationResponse(result=result, model_spec=spec)
        return self._logged("classify_log", spec, request, response)

    async def regress(self, request: RegressionRequest, call: Call) -> RegressionResponse:
        """Returns a value for every `tf.Example` in `request`."""
        result, spec = await self._infer(request, inference.REGRESS, call)
        response = RegressionResponse(result=result, model_spec=spec)
        return self._logged("regress_log", spec, request, response)

    async def multi_inference(
        self, request: MultiInferenceRequest, call: Call
    ) -> MultiInferenceResponse:
        """Returns the results of several classifications and regressions by one run of a model."""
        spec = request.tasks[0].model_spec if request.tasks else ModelSpec()
        response = MultiInferenceResponse()
        with self._use(spec) as (version, servable):
            heads = inference.heads(servable, request.tasks, self._check_method_names)
            examples = self._examples(request)
            with self._runtime(spec, version, servable, "MultiInference"):
                results = await inference.run(servable, heads, examples, call)
        self.metrics.given_examples(spec.name, len(examples))
        for task, result in zip(request.tasks, results, strict=True):
            entry = response.results.add(model_spec=_answered_by(task.model_spec, version))
            if isinstance(result, ClassificationResult):
                entry.classification_result.CopyFrom(result)
            else:
                entry.regression_result.CopyFrom(result)
        return self._logged("multi_inference_log", spec, request, response)

    def paddings(self, model_spec: ModelSpec) -> Sequence[Padding]:
        """Returns which inputs may have rows of unlike lengths."""
        with self._use(model_spec) as (_, servable):
            return servable.paddings

    def is_stream(self, model_spec: ModelSpec) -> bool:
        """Tells whether `model_spec` names steps, whose state the server can hold."""
        with self._use(model_spec) as (_, servable):
            return streams.is_stream(servable, model_spec)

    def forget_sequence(self, model: str, number: int) -> None:
        """Drops a sequence, if it is there."""
        self._sequenced.forget(model, number)

    def signature(self, model_spec: ModelSpec) -> SignatureDef:
        """Returns the signature that `model_spec` names, for those who must know it to parse."""
        name = model_spec.signature_name or predict.DEFAULT_SIGNATURE
        with self._use(model_spec) as (_, servable):
            if name not in servable.signatures:
                raise invalid(f'Serving signature name: "{name}" not found in signature def')
            return servable.signatures[name]

    def metadata(self, request: GetModelMetadataRequest) -> GetModelMetadataResponse:
        """Returns the signatures of a model."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        if not request.metadata_field:
            raise invalid("GetModelMetadataRequest must specify at least one metadata_field")
        for field in request.metadata_field:
            if field != "signature_def":
                raise invalid(f"Metadata field {field} is not supported")
        response = GetModelMetadataResponse()
        with self._use(request.model_spec) as (version, servable):
            response.model_spec.name = request.model_spec.name
            response.model_spec.version.value = version
            signatures = SignatureDefMap(signature_def=servable.signatures)
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(self, request: GetModelStatusRequest) -> GetModelStatusResponse:
        """Returns the state of every version of a model, or of the one asked for."""
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        spec = request.model_spec
        only = spec.version.value if spec.HasField("version") else None
        response = GetModelStatusResponse()
        for version, state, error in self._manager.status(spec.name):
            if only is None or version == only:
                entry = response.model_version_status.add(version=version, state=int(state))
                entry.status.error_code = error.code if error else Code.OK
                entry.status.error_message = error.message if error else ""
        if not response.model_version_status:
            which = "any versions" if only is None else f"version {only}"
            raise not_found(f"Could not find {which} of model {spec.name}")
        return response

    def reload_config(self, request: ReloadConfigRequest) -> ReloadConfigResponse:
        """Takes another configuration; returns when its models are loaded."""
        if request.config.WhichOneof("config") != "model_config_list":
            raise invalid(
                "ServerModelConfig type not supported by HandleReloadConfigRequest. "
                "Only ModelConfigList is currently supported"
            )
        names = request.metric_names
        before = [self.metrics.total(name) for name in names]
        self._reload(request.config)
        response = ReloadConfigResponse(status=StatusProto())
        for name, count in zip(names, before, strict=True):
            response.metric.add(name=name, int64_value_increase=self.metrics.total(name) - count)
        return response

    async def _infer(
        self, request: ClassificationRequest | RegressionRequest, method: str, call: Call
    ):
        if not request.HasField("model_spec"):
            raise invalid("Missing ModelSpec")
        spec = request.model_spec
        with self._use(spec) as (version, servable):
            head = inference.head(servable, spec, method, self._check_method_names)
            examples = self._examples(request)
            with self._runtime(spec, version, servable, _API[method]):
                (result,) = await inference.run(servable, [head], examples, call)
        self.metrics.given_examples(spec.name, len(examples))
        return result, _answered_by(spec, version)

    def _examples(self, request: Request) -> np.ndarray:
        examples = inference.examples(request.input)
        tensors.check_size("examples", examples, self._largest_tensor)
        return examples

    def _logged(self, kind: str, spec: ModelSpec, request: Request, response: Response) -> Response:
        if self._logs.chooses(spec.name):
            self._logs.infer(kind, spec, request, response)
        return response

    @contextmanager
    def _runtime(self, spec: ModelSpec, version: int, servable: Runner, api: str) -> Iterator[None]:
        signature = spec.signature_name or predict.DEFAULT_SIGNATURE
        journal.note_model(spec.name, version, signature)
        known = signature if signature in servable.signatures else ""
        with self.metrics.runtime(spec.name, version, known, api), journal.part("model"):
            yield

    @contextmanager
    def _use(self, spec: ModelSpec) -> Iterator[tuple[int, Runner]]:
        if not spec.name:
            raise invalid("ModelSpec has no name specified.")
        version = spec.version.value if spec.HasField("version") else None
        if spec.HasField("version_label"):
            version = self._labels.version(spec.name, spec.version_label)
        with self._manager.use(spec.name, version) as lent:
            yield lent


def _answered_by(
    spec: ModelSpec, version: int, default: str = predict.DEFAULT_SIGNATURE
) -> ModelSpec:
    """Returns `spec` as an answer has it: with its version and its signature."""
    answered = ModelSpec(name=spec.name)
    answered.signature_name = spec.signature_name or default
    answered.version.value = version
    return answered
