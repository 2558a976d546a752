"""A LiteRT model (`model.tflite`) that looks like any other servable."""

import os
import queue
import warnings
from collections.abc import Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from serving.model_server.errors import Code, ServingError, invalid, not_found

_FILE = "model.tflite"
_PREDICT = "tensorflow/serving/predict"


def file_in(path: str) -> str | None:
    """Returns the LiteRT model in a version's folder; None where there is none."""
    file = os.path.join(path, _FILE)
    return file if os.path.exists(file) else None


class LiteServable:
    """A LiteRT model, and interpreters of it that take turns.

    An interpreter may have to be waited for.

    Args:
        file: The model.
        interpreters: How many requests can run at the same time.

    Raises:
        ServingError: The file holds no model, or one without signatures.
    """

    bounded = False

    def __init__(self, file: str, interpreters: int):
        self._free: queue.SimpleQueue = queue.SimpleQueue()
        for _ in range(max(interpreters, 1)):
            self._free.put(_interpreter(file))
        with self._borrowed() as interpreter:
            names = interpreter.get_signature_list()
            self.signatures = {name: _signature(interpreter, name) for name in names}
        if not self.signatures:
            raise invalid(f"{file} has no signatures")

    def run(
        self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str], timeout_ms: int = 0
    ) -> list[np.ndarray]:
        """Returns the tensors named in `fetches`; see `Servable.run`. Knows no time limit."""
        name = self._signature_of(feeds, fetches)
        signature = self.signatures[name]
        values = {alias: _given(feeds[info.name]) for alias, info in signature.inputs.items()}
        with self._borrowed() as interpreter:
            try:
                outputs = interpreter.get_signature_runner(name)(**values)
            except (RuntimeError, ValueError) as error:
                raise invalid(str(error).strip()) from None
        by_tensor = {info.name: outputs[alias] for alias, info in signature.outputs.items()}
        return [_taken(by_tensor[fetch]) for fetch in fetches]

    def cancel(self) -> None:
        """Waits, like `close`: a run of an interpreter cannot be ended."""

    def close(self) -> None:
        """Gives back the interpreters' memory."""
        while not self._free.empty():
            self._free.get()

    def _signature_of(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> str:
        for name, signature in self.signatures.items():
            inputs = {info.name for info in signature.inputs.values()}
            outputs = {info.name for info in signature.outputs.values()}
            if inputs == feeds.keys() and outputs.issuperset(fetches):
                return name
        raise not_found("No signature has these inputs and outputs")

    @contextmanager
    def _borrowed(self):
        interpreter = self._free.get()
        try:
            yield interpreter
        finally:
            self._free.put(interpreter)


def _interpreter(file: str):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # It will move to a package of its own.
        try:
            return tf.lite.Interpreter(file, num_threads=1)
        except ValueError as error:
            raise ServingError(Code.INVALID_ARGUMENT, f"{file}: {error}") from None


def _signature(interpreter, name: str) -> SignatureDef:
    runner = interpreter.get_signature_runner(name)
    signature = SignatureDef(method_name=_PREDICT)
    for infos, details in (
        (signature.inputs, runner.get_input_details()),
        (signature.outputs, runner.get_output_details()),
    ):
        for alias, detail in details.items():
            infos[alias].name = detail["name"]
            infos[alias].dtype = tf.as_dtype(detail["dtype"]).as_datatype_enum
            for size in detail["shape_signature"].tolist():
                infos[alias].tensor_shape.dim.add(size=size)
    return signature


def _given(array: np.ndarray) -> np.ndarray:
    return array.astype(np.bytes_) if array.dtype == object else array


def _taken(array: np.ndarray) -> np.ndarray:
    return array.astype(object) if array.dtype.kind == "S" else np.array(array)
