"""Requests that a version answers before it answers others: kept with it, or made up."""

import logging
import os
import time
from collections.abc import Iterator

import numpy as np
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf.meta_graph_pb2 import TensorInfo
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from serving.model_server import inference, predict, sequences, streams, tensors
from serving.model_server.calls import Call, Runner, now
from serving.model_server.errors import Code, ServingError, invalid
from serving.model_server.metrics import Metrics

_LOG = logging.getLogger(__name__)
_FILE = os.path.join("assets.extra", "tf_serving_warmup_requests")
_MOST_RECORDS = 1000
_CALL = Call(shares=False)  # What is done for the first time is done by the thread that loads.


def run(path: str, servable: Runner, iterations: int, metrics: Metrics) -> bool:
    """Has the version in the folder `path` answer the requests that are kept there, if any.

    Args:
        path: The version's folder.
        servable: The version.
        iterations: How often to ask each request.
        metrics: Counts them.

    Returns:
        Whether there are any.

    Raises:
        ServingError: A request failed, or the file is not one of requests.
    """
    file = os.path.join(path, _FILE)
    if not os.path.exists(file):
        return False
    start = time.perf_counter()
    count = 0
    for record in _records(file):
        log = _parse(record, file)
        for _ in range(iterations):
            _ask(servable, log)
        count += 1
        metrics.warmup_records.add(path, Code.OK.name)
        if count > _MOST_RECORDS:
            raise invalid(
                f"Number of warmup records exceeds the maximum ({_MOST_RECORDS}) at {file}"
            )
    took = round((time.perf_counter() - start) * 1e6)
    metrics.warmup_latency.add(path, Code.OK.name, amount=took)
    _LOG.info(
        "Finished reading warmup data for model at %s. Number of warmup records read: %d. "
        "Elapsed time (microseconds): %d.",
        *(file, count, took),
    )
    return True


def by_signature(path: str, servable: Runner) -> None:
    """Has a version answer a request of one empty row for each of its signatures.

    What it cannot answer is logged, and no reason not to load it: it may want what no signature
    tells.

    Args:
        path: The version's folder.
        servable: The version.
    """
    for name, signature in sorted(servable.signatures.items()):
        inputs, outputs = signature.inputs.values(), signature.outputs.values()
        initializes = not any(info.dtype for info in outputs)  # An operation, not tensors.
        if initializes or not all(info.name for info in inputs):  # Or sparse inputs.
            continue
        feeds = {info.name: _empty_row(info) for info in inputs}
        try:
            servable.run(feeds, [info.name for info in outputs], _CALL)
        except ServingError as error:
            _LOG.info("%s: signature %s could not be warmed up: %s", path, name, error)


def _empty_row(info: TensorInfo) -> np.ndarray:
    """Returns zeros, or empty strings, of the input's shape, 1 where that does not say."""
    dtype = tf.as_dtype(info.dtype)
    shape = [max(dim.size, 1) for dim in info.tensor_shape.dim]
    if info.tensor_shape.unknown_rank:
        shape = [1]
    if dtype == tf.string:
        return np.full(shape, b"", object)
    return np.zeros(shape, dtype.as_numpy_dtype)


def _records(file: str) -> Iterator[bytes]:
    try:
        yield from tf.compat.v1.io.tf_record_iterator(file)
    except tf.errors.DataLossError as error:
        text = f"{error.message}. Please verify your warmup data is in TFRecord format."
        raise ServingError(Code.DATA_LOSS, text) from None


def _parse(record: bytes, file: str) -> PredictionLog:
    try:
        return PredictionLog.FromString(record)
    except DecodeError:
        raise invalid(f"Failed to parse warmup record: {record!r} from {file}") from None


def _ask(servable: Runner, log: PredictionLog) -> None:
    match log.WhichOneof("log_type"):
        case "predict_log":
            request = log.predict_log.request
            inputs, wanted = tensors.DecodedInputs(request.inputs), request.output_filter
            if sequences.is_asked(inputs) and streams.is_stream(servable, request.model_spec):
                own = sequences.own_inputs(inputs)
                return now(streams.alone(servable, own, wanted, _CALL))
            now(predict.run(servable, request.model_spec, inputs, wanted, _CALL))
        case "classify_log":
            _infer(servable, log.classify_log.request, inference.CLASSIFY)
        case "regress_log":
            _infer(servable, log.regress_log.request, inference.REGRESS)
        case "multi_inference_log":
            request = log.multi_inference_log.request
            heads = inference.heads(servable, request.tasks)
            now(inference.run(servable, heads, inference.examples(request.input), _CALL))
        case str() as kind:
            number = PredictionLog.DESCRIPTOR.fields_by_name[kind].number
            text = f"Unsupported log_type for warmup: {number}"
            raise ServingError(Code.UNIMPLEMENTED, text)


def _infer(servable: Runner, request, method: str) -> None:
    head = inference.head(servable, request.model_spec, method)
    now(inference.run(servable, [head], inference.examples(request.input), _CALL))
