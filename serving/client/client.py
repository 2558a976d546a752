"""The client itself."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

import grpc
import numpy as np

from serving.client import errors, messages, tensors
from serving.client import inputs as inputs_lib
from serving.client.streaming import Streamed, stream

DEFAULT_SIGNATURE = "serving_default"
_STATES = {0: "UNKNOWN", 10: "START", 20: "LOADING", 30: "AVAILABLE", 40: "UNLOADING", 50: "END"}
_UNLIMITED = -1


class Client:
    """Asks a model server; many threads may share one.

    Args:
        address: Where the server listens: `"host:port"` or `"unix:/path"`.
        timeout: Seconds for a request that does not say its own.
    """

    def __init__(self, address: str, timeout: float = 60.0):
        self._address = address
        self._timeout = timeout
        self._signatures: dict[tuple[str, int | None], dict[str, Any]] = {}
        self._channel = grpc.insecure_channel(
            address,
            options=[
                ("grpc.max_receive_message_length", _UNLIMITED),
                ("grpc.max_send_message_length", _UNLIMITED),
            ],
        )
        self._predict = self._method("Prediction", "Predict", messages.PredictResponse)
        self._metadata = self._method(
            "Prediction", "GetModelMetadata", messages.GetModelMetadataResponse
        )
        self._status = self._method("Model", "GetModelStatus", messages.GetModelStatusResponse)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def predict(
        self,
        model: str,
        inputs: Any,
        *,
        signature: str = DEFAULT_SIGNATURE,
        version: int | None = None,
        outputs: Sequence[str] = (),
        timeout: float | None = None,
    ) -> dict[str, np.ndarray]:
        """Returns the model's outputs by name.

        Args:
            model: The model's name.
            inputs: Arrays, strings, numbers or lists by input name; or one of them, where the
                signature has one input, or one without a default. Lists and numbers take the type
                that the signature has.
            signature: The signature's name.
            version: The model's version; the latest by default.
            outputs: The outputs wanted; all by default.
            timeout: Seconds to wait.

        Raises:
            ServingError: One of its subclasses says what is wrong.
        """
        return _arrays(self._ask(model, inputs, signature, version, outputs, timeout))

    def stream(
        self,
        model: str,
        chunks: Iterable[Any],
        *,
        version: int | None = None,
        timeout: float | None = None,
    ) -> Iterator[Streamed]:
        """Yields the outputs so far after each chunk and, after the last chunk, the final ones.

        The model must have the signatures `stream_start`, `stream_step` and `stream_end`. What
        they keep of a stream comes with their outputs, as `state_…`, and is sent with the next
        chunk: the server keeps nothing. All goes to the version that answered first.

        Args:
            model: The model's name.
            chunks: The inputs piece by piece, each as for `predict`: a row a stream; or a scalar,
                such as a string, for one stream whose outputs then have no rows either.
            version: The model's version; the latest by default.
            timeout: Seconds to wait for each answer.

        Raises:
            ServingError: One of its subclasses says what is wrong.
        """

        def ask(signature: str, inputs: Any, pinned: int | None) -> tuple[int, dict]:
            response = self._ask(model, inputs, signature, pinned, (), timeout)
            return response.model_spec.version.value, _arrays(response)

        def signature() -> dict[str, Any]:
            return self._known_signature(model, version, "stream_step", timeout)

        return stream(ask, signature, chunks, version)

    def metadata(
        self, model: str, *, version: int | None = None, timeout: float | None = None
    ) -> dict[str, Any]:
        """Returns what the model takes and gives, in plain Python.

        Returns:
            `{"model": name, "version": number, "signatures": {name: {"inputs": …, "outputs": …}}}`
            where inputs and outputs are `{name: {"dtype": "float32", "shape": [None, 3]}}`; a
            shape of None is of unknown rank. An input that may be left out has its `default`, too.
        """
        request = messages.GetModelMetadataRequest(metadata_field=["signature_def"])
        request.model_spec.CopyFrom(_spec(model, version))
        asked = f"metadata of model {model!r}"
        response = self._call(self._metadata, request, asked, timeout)
        packed = response.metadata["signature_def"].value
        return {
            "model": response.model_spec.name,
            "version": response.model_spec.version.value,
            "signatures": _signatures(messages.SignatureDefMap.FromString(packed)),
        }

    def status(
        self, model: str, *, version: int | None = None, timeout: float | None = None
    ) -> list[dict[str, Any]]:
        """Returns the state of each version, highest first.

        Returns:
            `[{"version": 1, "state": "AVAILABLE", "error": ""}, …]`.
        """
        request = messages.GetModelStatusRequest(model_spec=_spec(model, version))
        response = self._call(self._status, request, f"status of model {model!r}", timeout)
        return [
            {
                "version": entry.version,
                "state": _STATES.get(entry.state, str(entry.state)),
                "error": entry.status.error_message,
            }
            for entry in response.model_version_status
        ]

    def _ask(
        self,
        model: str,
        inputs: Any,
        signature: str,
        version: int | None,
        outputs: Sequence[str],
        timeout: float | None,
    ) -> messages.PredictResponse:
        arrays = inputs_lib.arrays(
            inputs, lambda: self._known_signature(model, version, signature, timeout)
        )
        request = messages.PredictRequest(output_filter=outputs)
        request.model_spec.CopyFrom(_spec(model, version, signature))
        for name, array in arrays.items():
            request.inputs[name].CopyFrom(_encoded(name, array))
        asked = f"predict with model {model!r}, signature {signature!r}"
        try:
            return self._call(self._predict, request, asked, timeout)
        except (errors.InvalidInput, errors.SignatureNotFound) as error:
            raise self._explained(error, model, version, signature, arrays) from None

    def _method(self, service: str, name: str, response: type) -> Callable:
        return self._channel.unary_unary(
            f"/tensorflow.serving.{service}Service/{name}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=response.FromString,
        )

    def _call(self, method: Callable, request: Any, asked: str, timeout: float | None) -> Any:
        seconds = self._timeout if timeout is None else timeout
        try:
            return method(request, timeout=seconds)
        except grpc.RpcError as error:
            raise errors.from_grpc(error, self._address, asked, seconds) from None

    def _known_signature(
        self, model: str, version: int | None, name: str, timeout: float | None = None
    ) -> dict[str, Any]:
        key = (model, version)
        if name not in self._signatures.get(key, {}):
            self._signatures[key] = self.metadata(model, version=version, timeout=timeout)[
                "signatures"
            ]
        if name in self._signatures[key]:
            return self._signatures[key][name]
        message = f'Serving signature key "{name}" not found.'
        there = ", ".join(self._signatures[key])
        text = f"Model {model!r} has no signature {name!r}. It has: {there}."
        raise errors.SignatureNotFound("FAILED_PRECONDITION", message, text)

    def _explained(
        self,
        error: errors.ServingError,
        model: str,
        version: int | None,
        signature: str,
        arrays: dict[str, np.ndarray],
    ) -> errors.ServingError:
        """Returns `error` with what the signature takes and what was sent, if that is known."""
        self._signatures.pop((model, version), None)  # The model may have changed.
        try:
            known = self._known_signature(model, version, signature)
        except errors.ServingError as other:
            return other if isinstance(other, errors.SignatureNotFound) else error
        text = (
            f"{error}\nThe signature takes: {inputs_lib.describe_signature(known['inputs'])}; "
            f"it gives: {inputs_lib.describe_signature(known['outputs'])}."
            f"\nReceived: {inputs_lib.describe(arrays)}."
        )
        return type(error)(error.code, error.message, text)


def _spec(model: str, version: int | None, signature: str = "") -> messages.ModelSpec:
    spec = messages.ModelSpec(name=model, signature_name=signature)
    if version is not None:
        spec.version.value = version
    return spec


def _encoded(name: str, array: np.ndarray) -> messages.TensorProto:
    try:
        return tensors.encode(array)
    except ValueError as error:
        text = f"Input `{name}` cannot be sent. {error}"
        raise errors.InvalidInput("INVALID_ARGUMENT", text, text) from None


def _arrays(response: messages.PredictResponse) -> dict[str, np.ndarray]:
    return {name: tensors.decode(proto) for name, proto in sorted(response.outputs.items())}


def _signatures(signatures: messages.SignatureDefMap) -> dict[str, Any]:
    return {
        name: {
            "inputs": _side(signature.inputs, signature.defaults),
            "outputs": _side(signature.outputs),
        }
        for name, signature in sorted(signatures.signature_def.items())
        if not name.startswith("__")
    }


def _side(infos: Any, defaults: Any = ()) -> dict[str, Any]:
    side = {
        name: {"dtype": tensors.type_name(info.dtype), "shape": _shape(info.tensor_shape)}
        for name, info in sorted(infos.items())
    }
    for name in defaults:
        side[name]["default"] = tensors.decode(defaults[name]).tolist()
    return side


def _shape(shape: Any) -> list[int | None] | None:
    if shape.unknown_rank:
        return None
    return [None if dim.size < 0 else dim.size for dim in shape.dim]
