"""What a signature asks of a request, and what a request asks of a signature.

The order of the checks and their texts are TF Serving's.
"""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis.model_pb2 import ModelSpec

from serving.model_server import batch_padding, tensors
from serving.model_server.calls import Call, Runner
from serving.model_server.errors import Code, ServingError, invalid

DEFAULT_SIGNATURE = "serving_default"
_METHODS = tuple(f"tensorflow/serving/{name}" for name in ("predict", "classify", "regress"))


async def run(
    servable: Runner,
    spec: ModelSpec,
    inputs: Mapping[str, np.ndarray],
    output_filter: Sequence[str],
    call: Call,
    check_method: bool = False,
) -> dict[str, np.ndarray]:
    """Returns the outputs of the signature that `spec` names, by name.

    Args:
        servable: The version to ask.
        spec: Names the signature.
        inputs: Arrays by input name.
        output_filter: The outputs wanted; none for all.
        call: Says how to wait.
        check_method: Refuse a signature whose method is not one of TF Serving's three.

    Raises:
        ServingError: With TF Serving's code and message.
    """
    asked = signature(servable, spec.signature_name or DEFAULT_SIGNATURE)
    if check_method:
        _check_method(asked)
    if servable.paddings:
        inputs = batch_padding.with_lengths(asked, inputs, servable.paddings)
    fed = feeds(asked, inputs)
    fetched = fetches(asked, output_filter)
    values = await call.run(servable, fed, list(fetched.values()))
    return dict(zip(fetched, values, strict=True))


def signature(servable: Runner, name: str) -> SignatureDef:
    """Returns the signature of that name.

    Raises:
        ServingError: There is none.
    """
    if name not in servable.signatures:
        text = f'Serving signature key "{name}" not found.'
        raise ServingError(Code.FAILED_PRECONDITION, text)
    return servable.signatures[name]


def _check_method(signature: SignatureDef) -> None:
    if signature.method_name not in _METHODS:
        raise ServingError(
            Code.INTERNAL,
            "Expected prediction signature method_name to be one of "
            f"{{{', '.join(_METHODS)}}}. Was: {signature.method_name}",
        )


def feeds(signature: SignatureDef, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the values to feed, by tensor name.

    Raises:
        ServingError: The inputs are not those of the signature.
    """
    _check_count(signature, inputs)
    values, used = {}, []
    for alias in sorted(signature.inputs):
        name = signature.inputs[alias].name
        if alias in inputs:
            used.append(alias)
            values[name] = inputs[alias]
        elif alias in signature.defaults:
            values[name] = tensors.decode(signature.defaults[alias])
        else:
            raise _missing(alias, signature, inputs)
    if len(used) != len(inputs):
        raise invalid(
            f"Inputs contains invalid name. Used request inputs: {_names(used)}, "
            f"request input: {_names(inputs)}"
        )
    return values


def fetches(signature: SignatureDef, output_filter: Sequence[str]) -> dict[str, str]:
    """Returns the tensor names to fetch, by output name; all outputs where none is asked for.

    Raises:
        ServingError: An output is not in the signature, or is asked for twice.
    """
    chosen: dict[str, str] = {}
    for alias in output_filter or sorted(signature.outputs):
        if alias not in signature.outputs:
            raise invalid(
                f"output tensor alias not found in signature: {alias} "
                f"Outputs expected to be in the set {{{_names(signature.outputs)}}}."
            )
        if alias in chosen:
            raise invalid(f"duplicate output tensor alias: {alias}")
        chosen[alias] = signature.outputs[alias].name
    return chosen


def _check_count(signature: SignatureDef, inputs: Mapping[str, np.ndarray]) -> None:
    wanted, given = set(signature.inputs), set(inputs)
    if len(given) == len(wanted) or (len(given) < len(wanted) and signature.defaults):
        return
    raise invalid(
        f"input size does not match signature: {len(given)}!={len(wanted)} "
        f"len({{{_names(given)}}}) != len({{{_names(wanted)}}}). "
        f"Sent extra: {{{_names(given - wanted)}}}. "
        f"Missing but required: {{{_names(wanted - given)}}}."
    )


def _missing(alias: str, signature: SignatureDef, inputs: Iterable[str]) -> ServingError:
    return invalid(
        f"Signature input alias: {alias}(feed name: {signature.inputs[alias].name}) not found in "
        f"request and no default value provided. Inputs expected to be in the request "
        f"{{{_names(inputs)}}}, or default input alias set: {_names(signature.defaults)}"
    )


def _names(names: Iterable[str]) -> str:
    return ",".join(sorted(names))
