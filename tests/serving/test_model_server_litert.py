"""LiteRT models beside the SavedModels that they were made from."""

import shutil
import threading

import numpy as np
import pytest
import tensorflow as tf

from serving.client import Client
from serving.model_server.batching import Batching
from serving.model_server.errors import ServingError
from serving.model_server.flags import Options
from serving.model_server.litert import LiteServable
from serving.model_server.loader import Loader
from serving.model_server.metrics import Metrics
from serving.model_server.server import Server


@pytest.fixture(scope="module")
def converted(tmp_path_factory, model_root):
    """A folder of `two_inputs` with its LiteRT model, which adds a hundred more."""
    folder = tmp_path_factory.mktemp("lite") / "m"
    shutil.copytree(model_root / "half_plus/2", folder / "1")
    module = tf.Module()
    spec = tf.TensorSpec([None, 2], tf.float32, name="a")
    module.call = tf.function(
        lambda a: {"y": a + 100, "total": tf.reduce_sum(a, 1)}, input_signature=[spec]
    )
    saved = str(tmp_path_factory.mktemp("saved"))
    tf.saved_model.save(module, saved, signatures={"serving_default": module.call})
    content = tf.lite.TFLiteConverter.from_saved_model(saved).convert()
    (folder / "1/model.tflite").write_bytes(content)
    return folder


@pytest.fixture
def lite(converted):
    return LiteServable(str(converted / "1/model.tflite"), interpreters=2)


def test_a_lite_model_is_served_where_preferred(converted, options):
    chosen = options(model_base_path=str(converted), prefer_tflite_model=True)
    with Server(chosen), Client(f"localhost:{chosen.port}") as client:
        outputs = client.predict("default", {"a": np.float32([[1, 2], [3, 4]])})
    assert outputs["y"].tolist() == [[101, 102], [103, 104]]
    assert outputs["total"].tolist() == [3, 7]


@pytest.mark.parametrize("prefer", [False, True])
def test_where_it_is_not_preferred_or_not_there_the_saved_model_is_served(
    converted, options, model_root, prefer
):
    folder = model_root / "half_plus" if prefer else converted
    chosen = options(model_base_path=str(folder), prefer_tflite_model=prefer)
    with Server(chosen), Client(f"localhost:{chosen.port}") as client:
        assert client.predict("default", {"x": np.zeros([1], np.float32)})["y"].tolist() == [3]


def test_its_signatures_are_told(lite):
    signature = lite.signatures["serving_default"]
    assert signature.inputs["a"].dtype == tf.float32.as_datatype_enum
    assert [dim.size for dim in signature.inputs["a"].tensor_shape.dim] == [-1, 2]
    assert set(signature.outputs) == {"y", "total"}


def test_many_callers_take_turns(lite):
    signature = lite.signatures["serving_default"]
    feed, fetch = signature.inputs["a"].name, signature.outputs["y"].name
    answers = {}

    def ask(number):
        (y,) = lite.run({feed: np.full([number, 2], number, np.float32)}, [fetch])
        answers[number] = y.tolist()

    threads = [threading.Thread(target=ask, args=[number]) for number in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert answers == {number: [[number + 100] * 2] * number for number in range(1, 9)}


def test_a_wrong_type_is_refused(lite):
    signature = lite.signatures["serving_default"]
    with pytest.raises(ServingError) as raised:
        lite.run({signature.inputs["a"].name: np.zeros([1, 2], np.int32)}, [])
    assert raised.value.code.name == "INVALID_ARGUMENT"
    assert "expected type FLOAT32" in raised.value.message


def test_a_file_that_is_no_model_fails_its_load(tmp_path):
    (tmp_path / "model.tflite").write_bytes(b"q" * 100)
    options, metrics = Options(prefer_tflite_model=True), Metrics()
    loader = Loader(options, metrics, Batching(options, metrics))
    with pytest.raises(ServingError, match=r"model\.tflite"):
        loader.load(str(tmp_path), "m")
