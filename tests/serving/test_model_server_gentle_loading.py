import shutil
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.protobuf.saved_model_pb2 import SavedModel
from tensorflow.python.framework import function

from serving.model_server import gentle_loading

AT_ONCE = tf.compat.v1.saved_model.load


class Nested(tf.Module):
    """Functions that call functions, a loop and a table."""

    def __init__(self):
        self.weights = tf.Variable([[1.0, 2.0], [3.0, 4.0]])
        keys, values = tf.constant(["a", "b"]), tf.constant([1.0, 2.0])
        filling = tf.lookup.KeyValueTensorInitializer(keys, values)
        self.table = tf.lookup.StaticHashTable(filling, -1.0)

    @tf.function
    def often(self, x):
        for _ in range(60):
            x = tf.tanh(x @ self.weights) + 1
        return x

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
    def __call__(self, words):
        x = self.often(tf.stack([self.table.lookup(words)] * 2, axis=1))
        return {"y": tf.while_loop(lambda x: tf.reduce_sum(x) < 9, lambda x: (x * 2,), (x,))[0]}


@pytest.fixture(scope="module")
def nested(tmp_path_factory):
    path = str(tmp_path_factory.mktemp("nested") / "1")
    module = Nested()
    tf.saved_model.save(module, path, signatures=module.__call__)
    return path


def answer(load, path, feeds):
    """Returns what a signature of the model at `path` answers, and its graph's functions."""
    graph = tf.Graph() if load is AT_ONCE else gentle_loading.Graph()
    with tf.compat.v1.Session(graph=graph) as session:
        with session.graph.as_default():
            meta_graph = load(session, ["serve"], path)
        signature = meta_graph.signature_def["serving_default"]
        fed = {signature.inputs[name].name: value for name, value in feeds.items()}
        functions = session.graph.as_graph_def().library.function
        names = {function.signature.name for function in functions}
        assert names == {each.signature.name for each in meta_graph.graph_def.library.function}
        return session.run(signature.outputs["y"].name, fed), names


def test_a_model_is_the_one_that_is_loaded_at_once(nested):
    feeds = {"words": np.array(["a", "b", "c"])}
    right, functions = answer(AT_ONCE, nested, feeds)
    found, same_functions = answer(gentle_loading.load, nested, feeds)
    assert found.tolist() == right.tolist()
    assert same_functions == functions


def test_functions_come_after_nodes_in_parts(nested, monkeypatch):
    imported = []
    real = tf.import_graph_def

    def noting(graph_def, **named):
        imported.append((len(tf.compat.v1.get_default_graph().get_operations()), graph_def))
        return real(graph_def, **named)

    monkeypatch.setattr(tf, "import_graph_def", noting)
    answer(gentle_loading.load, nested, {"words": np.array(["a"])})
    assert len(imported) > 1
    for there, part in imported:
        assert there > 0
        assert not part.node
        sizes = [len(each.node_def) for each in part.library.function]
        assert sum(sizes[:-1]) < gentle_loading._TOGETHER


def test_operations_are_taken_into_a_graph_with_rests(nested, monkeypatch):
    rests = []
    monkeypatch.setattr(gentle_loading, "_WORK", -1)
    monkeypatch.setattr(time, "sleep", rests.append)
    graph = gentle_loading.Graph()
    with tf.compat.v1.Session(graph=graph) as session, graph.as_default():
        gentle_loading.load(session, ["serve"], nested)
    assert rests.count(gentle_loading._REST) >= 2 * len(graph.get_operations())


def test_what_would_initialize_nothing_is_not_run(nested, tmp_path):
    module = tf.Module()
    module.weight = tf.Variable(2.0)
    spec = tf.TensorSpec([None], tf.float32, name="x")
    module.call = tf.function(lambda x: {"y": x * module.weight}, input_signature=[spec])
    tf.saved_model.save(module, str(tmp_path / "1"), signatures=module.call)

    def runs(path):
        with tf.compat.v1.Session(graph=tf.Graph()) as session, session.graph.as_default():
            real, fetched = session.run, []
            session.run = lambda *args, **named: fetched.append(args[0]) or real(*args, **named)
            gentle_loading.load(session, ["serve"], path)
        return len(fetched)

    assert runs(nested) == 2, "one restores, one fills the table"
    assert runs(str(tmp_path / "1")) == 1, "it restores"
    found, _ = answer(gentle_loading.load, str(tmp_path / "1"), {"x": [1.0, 2.0]})
    assert found.tolist() == [2, 4]


def test_a_function_may_be_an_operation(tmp_path):
    @function.Defun(tf.float32)
    def doubled(x):
        return x * 2

    with tf.compat.v1.Session(graph=tf.Graph()) as session:
        x = tf.compat.v1.placeholder(tf.float32, [None])
        outputs = {"y": doubled(x)}
        tf.compat.v1.saved_model.simple_save(session, str(tmp_path / "1"), {"x": x}, outputs)
    found, _ = answer(gentle_loading.load, str(tmp_path / "1"), {"x": [1.0, 2.0]})
    assert found.tolist() == [2, 4]


def test_a_missing_operation_is_told_as_it_is_at_once(nested, tmp_path):
    shutil.copytree(nested, tmp_path / "1")
    file = tmp_path / "1/saved_model.pb"
    saved = SavedModel.FromString(file.read_bytes())
    for each in saved.meta_graphs[0].graph_def.library.function:
        for node in each.node_def:
            node.op = node.op.replace("Tanh", "NobodysOperation")
    file.write_bytes(saved.SerializeToString())
    errors = []
    for load in (AT_ONCE, gentle_loading.load):
        with (
            tf.compat.v1.Session(graph=tf.Graph()) as session,
            session.graph.as_default(),
            pytest.raises(Exception, match="NobodysOperation") as raised,
        ):
            load(session, ["serve"], str(tmp_path / "1"))
        errors.append((raised.type, str(raised.value)))
    assert errors[0] == errors[1]
