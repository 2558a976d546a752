"""Loads a SavedModel beside requests, which all but stop where the ordinary way imports its graph.

TensorFlow holds Python's lock for as long as it imports nodes, and of a node that calls a function
it infers the shapes through all that the function does. So nodes are imported first, which takes
them for calls of something unknown, and then the functions, some at a time, with pauses. The nodes'
Python objects are made with pauses too: a request passes through several threads, and would wait at
each for the lock. What runs in TensorFlow, as restoring does, needs no lock and runs in a thread
that gives way.
"""

import time
from collections.abc import Collection, Iterator

import tensorflow as tf
from tensorflow.core.framework.function_pb2 import FunctionDef, FunctionDefLibrary
from tensorflow.core.protobuf.meta_graph_pb2 import MetaGraphDef
from tensorflow.python.framework import op_def_registry
from tensorflow.python.saved_model import loader_impl

from serving.model_server import background

_CALLERS_THREAD = -1  # As TensorFlow has it in `RunOptions`.
_TOGETHER = 40  # Nodes of functions between pauses: a millisecond.
_PAUSE = 0.03
_WORK, _REST = 0.0003, 0.002  # Seconds of making Python objects, and between.


class Graph(tf.Graph):
    """A graph into which operations are taken with pauses."""

    def __init__(self):
        super().__init__()
        self._rest_at = 0.0

    def _create_op_from_tf_operation(self, *args, **named):
        self._rest_if_due()
        return super()._create_op_from_tf_operation(*args, **named)

    def _control_dependencies_for_inputs(self, *args, **named):
        self._rest_if_due()
        return super()._control_dependencies_for_inputs(*args, **named)

    def _rest_if_due(self) -> None:
        if time.perf_counter() > self._rest_at:
            time.sleep(_REST)
            self._rest_at = time.perf_counter() + _WORK


def load(session: tf.compat.v1.Session, tags: Collection[str], path: str) -> MetaGraphDef:
    """Does what `tf.compat.v1.saved_model.load` does, and raises what that raises."""
    return _Loader(path).load(_GivingWay(session), tags)


class _GivingWay:
    """A session whose runs give way, with all their operations: its threads are for requests."""

    def __init__(self, session: tf.compat.v1.Session):
        self.graph, self._run = session.graph, session.run

    def run(self, fetches, feed_dict=None):
        if isinstance(fetches, list) and all(map(_does_nothing, fetches)):
            return  # Even such a run would take 20 ms.
        options = tf.compat.v1.RunOptions(inter_op_thread_pool=_CALLERS_THREAD)
        background.run(self._run, fetches, feed_dict, options=options)


class _Loader(loader_impl.SavedModelLoader):
    def load_graph(self, graph, tags, import_scope=None, **saver_kwargs):
        meta_graph = self.get_meta_graph_def_from_tags(tags)
        nodes, library = meta_graph.graph_def, FunctionDefLibrary()
        if not _may_be_parted(nodes):
            return super().load_graph(graph, tags, import_scope, **saver_kwargs)
        library.CopyFrom(nodes.library)
        nodes.ClearField("library")
        time.sleep(_PAUSE)
        found = super().load_graph(graph, tags, import_scope, **saver_kwargs)
        nodes.library.CopyFrom(library)
        known = meta_graph.meta_info_def.stripped_op_list
        for functions in _parts(library.function):
            time.sleep(_PAUSE)
            part = tf.compat.v1.GraphDef(versions=nodes.versions)
            part.library.function.extend(functions)
            with graph.as_default():
                tf.import_graph_def(part, name="", producer_op_list=known)
        return found


def _does_nothing(fetch: tf.Operation | tf.Tensor) -> bool:
    return isinstance(fetch, tf.Operation) and fetch.type == "NoOp" and not fetch.control_inputs


def _parts(functions: Collection[FunctionDef]) -> Iterator[list[FunctionDef]]:
    part, size = [], 0
    for function in functions:
        part.append(function)
        size += len(function.node_def)
        if size >= _TOGETHER:
            yield part
            part, size = [], 0
    if part:
        yield part


def _may_be_parted(graph: tf.compat.v1.GraphDef) -> bool:
    """Tells whether nodes can be imported without functions, and nothing is to be said of these.

    A function may be an operation of its own, as in TensorFlow 1. And that an operation is missing
    would otherwise be found when the function first runs, not now.
    """
    functions = graph.library.function
    names = {function.signature.name for function in functions}
    if graph.library.gradient or any(node.op in names for node in graph.node):
        return False
    inner = {node.op for function in functions for node in function.node_def}
    return all(name in names or op_def_registry.get(name) for name in inner)
