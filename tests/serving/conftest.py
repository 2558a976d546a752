"""SavedModels that the serving tests build themselves, and a server of them all."""

import socket
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tensorflow as tf

from serving.client import Client
from serving.model_server.flags import Options
from serving.model_server.server import Server

# One identity signature each; complex and 16-bit floats travel over gRPC only.
DTYPES = [
    "float32",
    "float64",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint8",
    "uint16",
    "uint32",
    "uint64",
    "bool",
    "string",
    "complex64",
    "complex128",
    "float16",
    "bfloat16",
]


class HalfPlus(tf.Module):
    """y = x / 2 + b."""

    def __init__(self, b: float):
        self.half = tf.Variable(0.5)
        self.b = tf.Variable(b)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def __call__(self, x):
        return {"y": self.half * x + self.b}


class Identities(tf.Module):
    """One signature a type, which gives back what it takes."""

    def signatures(self):
        return {name: self._identity(tf.as_dtype(name)) for name in DTYPES}

    def _identity(self, dtype):
        spec = tf.TensorSpec(None, dtype, name="x")
        return tf.function(lambda x: {"y": tf.identity(x)}, input_signature=[spec])


class TwoInputs(tf.Module):
    """Two inputs, two outputs, and outputs that have no common rows."""

    def signatures(self):
        a, b = (tf.TensorSpec([None, 2], tf.float32, name=name) for name in "ab")
        return {
            "serving_default": tf.function(
                lambda a, b: {"total": a + b, "row_sum": tf.reduce_sum(a, axis=1)},
                input_signature=[a, b],
            ),
            "uneven": tf.function(
                lambda a: {"y": a, "z": tf.concat([a, a], 0)}, input_signature=[a]
            ),
            "scalar": tf.function(lambda a: {"y": tf.reduce_sum(a)}, input_signature=[a]),
        }


class Words(tf.Module):
    """A vocabulary in an asset: words to numbers, and the words as text and as bytes."""

    def __init__(self, vocabulary: Path):
        vocabulary.write_text("one\ntwo\nthree\n")
        self.file = tf.saved_model.Asset(str(vocabulary))
        initializer = tf.lookup.TextFileInitializer(
            self.file.asset_path,
            *(tf.string, tf.lookup.TextFileIndex.WHOLE_LINE),
            *(tf.int64, tf.lookup.TextFileIndex.LINE_NUMBER),
        )
        self.table = tf.lookup.StaticHashTable(initializer, default_value=-1)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.string, name="words")])
    def __call__(self, words):
        return {"ids": self.table.lookup(words), "words": words, "words_bytes": words}


class Slow(tf.Module):
    """Counts to n, for as long as it takes."""

    @tf.function(input_signature=[tf.TensorSpec([], tf.int32, name="n")])
    def __call__(self, n):
        count = tf.while_loop(
            lambda i: i < n, lambda i: [i + 1], [tf.constant(0)], parallel_iterations=1
        )
        return {"count": count[0]}


class Examples(tf.Module):
    """Classification and regression of `tf.Example`s with features x and y, good and bad."""

    def signatures(self):
        text = "inputs"
        bodies = {
            "serving_default": lambda x: {"classes": _labels(x, 2), "scores": _scores(x)},
            "classes": lambda x: {"classes": _labels(x, 3)},
            "scores": lambda x: {"scores": _scores(x)},
            "three_outputs": lambda x: {"classes": _labels(x, 2), "scores": _scores(x), "z": x},
            "other_outputs": lambda x: {"z": x},
            "flat_scores": lambda x: {"scores": x},
            "number_classes": lambda x: {"classes": _scores(x)},
            "double_scores": lambda x: {"scores": tf.cast(_scores(x), tf.float64)},
            "short_scores": lambda x: {"scores": _scores(x)[:1]},
            "uneven": lambda x: {"classes": _labels(x, 3), "scores": _scores(x)},
            "regress": lambda x: {"outputs": x / 2 + 2},
            "regress_column": lambda x: {"outputs": x[:, None]},
            "square_outputs": lambda x: {"outputs": _scores(x)},
            "short_outputs": lambda x: {"outputs": x[:1]},
            "double_outputs": lambda x: {"outputs": tf.cast(x, tf.float64)},
        }
        signatures = {name: self._of(body, text) for name, body in bodies.items()}
        signatures["other_input"] = self._of(bodies["serving_default"], "q")
        signatures["other_regress_input"] = self._of(bodies["regress"], "q")
        spec = tf.TensorSpec([None], tf.float32, name="a")
        signatures["two_inputs"] = tf.function(
            lambda a, b: {"outputs": a + b}, input_signature=[spec, spec]
        )
        return signatures

    def _of(self, body, name):
        def call(serialized):
            number = tf.io.FixedLenFeature([], tf.float32, 0.0)
            parsed = tf.io.parse_example(serialized, {"x": number, "y": number})
            return body(parsed["x"] + parsed["y"])

        return tf.function(call, input_signature=[tf.TensorSpec([None], tf.string, name=name)])


def _scores(x):
    return tf.stack([x, -x], axis=1)


def _labels(x, count):
    return tf.tile([["up", "down", "é"][:count]], [tf.size(x), 1])


def save_counter(folder: str) -> None:
    """Writes a SavedModel of TensorFlow 1, whose reference variable TensorFlow 2 cannot load."""
    v1 = tf.compat.v1
    with tf.Graph().as_default(), v1.Session() as session:
        by = v1.placeholder(tf.float32, [], name="by")
        variable = v1.get_variable("count", initializer=0.0, use_resource=False)
        count = v1.assign_add(variable, by)
        session.run(v1.global_variables_initializer())
        v1.saved_model.simple_save(session, folder, inputs={"by": by}, outputs={"count": count})


@pytest.fixture(scope="session")
def save_half_plus():
    """Writes a version that adds `b`."""

    def save(folder, b: float) -> None:
        module = HalfPlus(b)
        tf.saved_model.save(module, str(folder), signatures=module.__call__)

    return save


@pytest.fixture(scope="session")
def save_words():
    """Writes a version with a vocabulary."""

    def save(folder, vocabulary: Path) -> None:
        module = Words(vocabulary)
        tf.saved_model.save(module, str(folder), signatures=module.__call__)

    return save


@pytest.fixture(scope="session")
def model_root(tmp_path_factory, save_half_plus, save_words) -> Path:
    """DIR/NAME/VERSION for every model above, and things that are no models."""
    root = tmp_path_factory.mktemp("models")
    save_half_plus(root / "half_plus" / "1", 2.0)
    save_half_plus(root / "half_plus" / "2", 3.0)
    identities, two, examples = Identities(), TwoInputs(), Examples()
    tf.saved_model.save(examples, str(root / "examples/3"), signatures=examples.signatures())
    tf.saved_model.save(identities, str(root / "identity/1"), signatures=identities.signatures())
    tf.saved_model.save(two, str(root / "two_inputs/7"), signatures=two.signatures())
    save_words(root / "words" / "1", root.parent / "vocabulary.txt")
    slow = Slow()
    tf.saved_model.save(slow, str(root / "slow/1"), signatures=slow.__call__)
    save_counter(str(root / "counter/1"))
    (root / ".hidden" / "1").mkdir(parents=True)
    (root / "half_plus" / "tmp-3").mkdir()
    (root / "README").write_text("not a model")
    return root


@pytest.fixture(scope="session")
def free_port():
    """Returns a port that nothing listens at."""

    def find() -> int:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            return probe.getsockname()[1]

    return find


@pytest.fixture(scope="session")
def options(free_port):
    """Options for a test: free ports, quick polls, no second attempts."""

    def make(**changed) -> Options:
        port = free_port()
        quick = {"file_system_poll_wait_seconds": 0.05, "max_num_load_retries": 0}
        return Options(**{"port": port, **quick, **changed})

    return make


@pytest.fixture(scope="session")
def server(model_root, options, free_port, tmp_path_factory):
    """A server of all models; says its address, its REST port and its socket."""
    socket_path = str(tmp_path_factory.mktemp("socket") / "grpc")
    chosen = options(
        model_root=str(model_root),
        rest_api_port=free_port(),
        grpc_socket_path=socket_path,
        enable_grpc_healthcheck_service=True,
    )
    running = Server(chosen)
    with running:
        yield SimpleNamespace(
            address=f"localhost:{chosen.port}",
            rest_port=chosen.rest_api_port,
            socket_path=socket_path,
            metrics=running._metrics,
        )


@pytest.fixture
def client(server):
    with Client(server.address) as client:
        yield client


@pytest.fixture(scope="session")
def example_of():
    """Returns an array of a type, with its extremes."""

    def make(dtype: str) -> np.ndarray:
        if dtype == "string":
            return np.array([["one", "zwölf"], ["", "三"]], object)
        numpy_dtype = np.dtype(tf.as_dtype(dtype).as_numpy_dtype)
        if numpy_dtype.kind in "iu":
            limits = np.iinfo(numpy_dtype)
            return np.array([limits.min, 0, 1, limits.max], numpy_dtype)
        return np.array([[0, 1, 1, 0]]).astype(numpy_dtype)

    return make
