"""Classification and regression of `tf.Example`s: what they ask of a signature, and their results.

The order of the checks and their texts are TF Serving's.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.framework import types_pb2
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis.classification_pb2 import ClassificationResult
from tensorflow_serving.apis.inference_pb2 import InferenceTask
from tensorflow_serving.apis.input_pb2 import Input
from tensorflow_serving.apis.model_pb2 import ModelSpec
from tensorflow_serving.apis.regression_pb2 import RegressionResult

from serving.model_server.calls import Call, Runner
from serving.model_server.errors import Code, ServingError, invalid
from serving.model_server.predict import DEFAULT_SIGNATURE

CLASSIFY = "tensorflow/serving/classify"
REGRESS = "tensorflow/serving/regress"

Outputs = Mapping[str, np.ndarray]  # What the graph gave, by its role in the result.


class Head(NamedTuple):
    """What one task takes from a graph, and what it makes of it."""

    input: str
    outputs: dict[str, str]  # Names of tensors, by role.
    result: Callable[[Outputs, int], ClassificationResult | RegressionResult]


def head(servable: Runner, spec: ModelSpec, method: str, check_method: bool = False) -> Head:
    """Returns the task of `method` over the signature that `spec` names.

    Raises:
        ServingError: There is no such signature, or it is not one for this method.
    """
    name = spec.signature_name or DEFAULT_SIGNATURE
    if name not in servable.signatures:
        raise invalid(f"No signature was found with the name: {name}")
    return _HEADS[method](servable.signatures[name], check_method)


def heads(
    servable: Runner, tasks: Iterable[InferenceTask], check_method: bool = False
) -> list[Head]:
    """Returns the heads of several tasks over one model.

    Raises:
        ServingError: They are not all for one model, or not each for a signature of its own.
    """
    found: dict[str, Head] = {}
    first = None
    for task in tasks:
        spec = task.model_spec
        first = first or spec.name
        name = spec.signature_name or DEFAULT_SIGNATURE
        _check_task(first, spec.name, name, found)
        if name not in servable.signatures:
            raise invalid(f"Requested signature not found in model graph: {name}")
        if task.method_name not in _HEADS:
            text = f"Unsupported signature method_name: {task.method_name}"
            raise ServingError(Code.UNIMPLEMENTED, text)
        found[name] = _HEADS[task.method_name](servable.signatures[name], check_method)
    return list(found.values())


async def run(servable: Runner, heads: Sequence[Head], examples: np.ndarray, call: Call) -> list:
    """Returns the result of every head, of one run of the graph."""
    names = sorted({name for head in heads for name in head.outputs.values()})
    feeds = {head.input: examples for head in heads}
    values = dict(zip(names, await call.run(servable, feeds, names), strict=True))
    return [
        head.result({role: values[name] for role, name in head.outputs.items()}, len(examples))
        for head in heads
    ]


def examples(given: Input) -> np.ndarray:
    """Returns the serialized `tf.Example`s of a request, each with the context before it: [B].

    Raises:
        ServingError: There is none.
    """
    with_context = given.HasField("example_list_with_context")
    listed = given.example_list_with_context if with_context else given.example_list
    if not listed.examples:
        raise invalid("Input is empty.")
    context = listed.context.SerializeToString() if with_context else b""
    return np.array([context + each.SerializeToString() for each in listed.examples], object)


def _check_task(first: str, model: str, signature: str, found: Mapping[str, Head]) -> None:
    if not model:
        raise invalid("Found ModelSpec with an empty model name.")
    if model != first:
        raise invalid("All ModelSpecs in a MultiInferenceRequest must access the same model name.")
    if signature in found:
        raise invalid(f"Duplicate evaluation of signature: {signature}")


def _classify_head(signature: SignatureDef, check_method: bool) -> Head:
    _check_method(signature, CLASSIFY, "classification", check_method)
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) not in (1, 2):
        raise invalid(f"Expected one or two output Tensors, found {len(signature.outputs)}")
    if "inputs" not in signature.inputs:
        raise invalid(f"No classification inputs found in SignatureDef: {signature}")
    roles = [role for role in ("classes", "scores") if role in signature.outputs]
    if not roles:
        raise invalid(
            "Expected classification signature outputs to contain at least one of "
            f'"classes" or "scores". Signature was: {signature}'
        )
    outputs = {role: signature.outputs[role].name for role in roles}
    return Head(signature.inputs["inputs"].name, outputs, _classifications)


def _regress_head(signature: SignatureDef, check_method: bool) -> Head:
    _check_method(signature, REGRESS, "regression", check_method)
    if len(signature.inputs) != 1:
        raise invalid("Expected one input Tensor.")
    if len(signature.outputs) != 1:
        raise invalid("Expected one output Tensor.")
    if "inputs" not in signature.inputs:
        raise invalid(f"No regression inputs found in SignatureDef: {signature}")
    if "outputs" not in signature.outputs:
        raise invalid(f"No regression outputs found in SignatureDef: {signature}")
    outputs = {"outputs": signature.outputs["outputs"].name}
    return Head(signature.inputs["inputs"].name, outputs, _regressions)


_HEADS = {CLASSIFY: _classify_head, REGRESS: _regress_head}


def _check_method(signature: SignatureDef, method: str, kind: str, check: bool) -> None:
    if check and signature.method_name != method:
        raise invalid(
            f"Expected {kind} signature method_name to be {method}. Was: {signature.method_name}"
        )


def _classifications(outputs: Outputs, size: int) -> ClassificationResult:
    for role, dtype in (("classes", tf.string), ("scores", tf.float32)):
        if role in outputs:
            _check_matrix(role, outputs[role], dtype, size)
    widths = [array.shape[1] for array in outputs.values()]
    if widths[0] != widths[-1]:
        raise invalid(
            f"Tensors class and score should match in dim_size(1). Got {widths[0]} vs. {widths[-1]}"
        )
    labels = outputs.get("classes", np.full([size, widths[0]], b"", object)).tolist()
    scores = outputs.get("scores", np.zeros([size, widths[0]], np.float32)).tolist()
    result = ClassificationResult()
    for row in zip(labels, scores, strict=True):
        classes = result.classifications.add().classes
        for label, score in zip(*row, strict=True):
            classes.add(label=label.decode(errors="replace"), score=score)
    return result


def _check_matrix(role: str, array: np.ndarray, dtype: tf.DType, size: int) -> None:
    if array.ndim != 2:
        raise invalid(f"Expected Tensor shape: [batch_size num_classes] but got {_shape(array)}")
    if tf.as_dtype(array.dtype) != dtype:
        raise invalid(f"Expected {role} Tensor of {_type(dtype)}. Got: {_type(array.dtype)}")
    if len(array) != size:
        raise invalid(f"Expected {role} output batch size of {size}. Got: {len(array)}")


def _regressions(outputs: Outputs, size: int) -> RegressionResult:
    array = outputs["outputs"]
    if array.ndim != 1 and array.shape[1:] != (1,):
        raise invalid(
            "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] "
            f"but got {_shape(array)}"
        )
    if len(array) != size:
        text = "Input batch size did not match output batch size"
        raise invalid(f"{text}: {size} vs. {len(array)}")
    if array.dtype != np.float32:
        raise invalid(f"Expected output Tensor of DT_FLOAT.  Got: {_type(array.dtype)}")
    result = RegressionResult()
    for value in array.ravel().tolist():
        result.regressions.add(value=value)
    return result


def _shape(array: np.ndarray) -> str:
    return f"[{','.join(map(str, array.shape))}]"


def _type(dtype) -> str:
    return types_pb2.DataType.Name(tf.as_dtype(dtype).as_datatype_enum)
