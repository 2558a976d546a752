"""A loaded version: its signatures, and a way to run its graph."""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.python.client import pywrap_tf_session

from serving.model_server.errors import Code, ServingError, not_found
from serving.model_server.metrics import Metrics


class Servable:
    """A session over one SavedModel.

    `Session.run` would check and convert what is fed before TensorFlow sees it, and would take
    ten times as long; the call below it does neither.

    Args:
        session: The session, its variables restored and its tables filled.
        meta_graph: What was read: its signatures, and which operations there are.
        metrics: Counts the runs.
    """

    def __init__(
        self,
        session: tf.compat.v1.Session,
        meta_graph: MetaGraphDef,
        metrics: Metrics,
    ):
        self._metrics = metrics
        self.signatures = dict(meta_graph.signature_def)
        self._session = session
        self._session.graph.finalize()
        self._session._extend_graph()
        self._outputs: dict[str, object] = {}
        self.bounded = _is_bounded(meta_graph.graph_def)

    def run(
        self,
        feeds: Mapping[str, np.ndarray],
        fetches: Sequence[str],
        timeout_ms: int = 0,
    ) -> list[np.ndarray]:
        """Returns the tensors named in `fetches`.

        Args:
            feeds: Values of tensors, by the tensors' names in the graph.
            fetches: Names of tensors in the graph.
            timeout_ms: Longest time to take; 0 for any.

        Raises:
            ServingError: With the code and the message that TensorFlow gave.
        """
        with _time_limit(timeout_ms) as options:
            return self._call(options, feeds, fetches)

    def run_here(self, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]) -> list[np.ndarray]:
        """Returns what `run` does, every operation run by this thread.

        That takes half the time where a graph is small. It knows no time limit.
        """
        return self._call(_HERE, feeds, fetches)

    def _call(
        self, options, feeds: Mapping[str, np.ndarray], fetches: Sequence[str]
    ) -> list[np.ndarray]:
        feed = {self._output(name): value for name, value in feeds.items()}
        fetch = [self._output(name) for name in fetches]
        self._metrics.runs.add()
        try:
            values = self._session._call_tf_sessionrun(options, feed, fetch, [], None)
        except tf.errors.OpError as error:
            raise ServingError(Code(error.error_code), error.message) from None
        return [_array(value) for value in values]

    def cancel(self) -> None:
        """Ends the runs under way, which fail, and lets none begin."""
        self._session.close()

    def close(self) -> None:
        """Gives back the session's memory."""
        self._session.close()

    def _output(self, name: str):
        if name not in self._outputs:
            self._outputs[name] = self._tensor(name)._as_tf_output()
        return self._outputs[name]

    def _tensor(self, name: str) -> tf.Tensor:
        try:
            return self._session.graph.get_tensor_by_name(name)
        except (KeyError, ValueError):
            raise not_found(f"Tensor {name} not found in the graph") from None


def _array(value) -> np.ndarray:
    """Returns what the session gives, which for a string scalar is `bytes`, as an array."""
    return np.array(value, object) if isinstance(value, bytes) else np.asarray(value)


# Operations that may take any time: loops, calls of Python, and waits for others.
_UNBOUNDED = re.compile(
    "While|StatelessWhile|For|Enter|LoopCond|.*PyFunc.*|Batch|BatchFunction|Unbatch|.*Queue.*"
    "|.*Iterator.*|.*Dataset.*|.*Barrier.*|.*Stage|.*Unstage|MapDefun|RemoteCall|_?(Host)?Recv"
    "|CollectiveReduce.*|Sleep.*|XlaLaunch|.*Accumulator.*"
)


def _is_bounded(graph: tf.compat.v1.GraphDef) -> bool:
    """Tells whether a run takes no longer than its operations need, each run once."""
    nodes = [graph.node, *(function.node_def for function in graph.library.function)]
    return not any(map(_UNBOUNDED.fullmatch, {node.op for each in nodes for node in each}))


@contextmanager
def _time_limit(timeout_ms: int) -> Iterator:
    if not timeout_ms:
        yield None
        return
    serialized = tf.compat.v1.RunOptions(timeout_in_ms=timeout_ms).SerializeToString()
    buffer = pywrap_tf_session.TF_NewBufferFromString(serialized)
    try:
        yield buffer
    finally:
        pywrap_tf_session.TF_DeleteBuffer(buffer)


_HERE = pywrap_tf_session.TF_NewBufferFromString(
    tf.compat.v1.RunOptions(inter_op_thread_pool=-1).SerializeToString()
)
