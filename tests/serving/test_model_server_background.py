"""Loading gives way to requests."""

import contextlib
import logging
import os
import shutil
import sys
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from serving.model_server import background, gentle_loading
from serving.model_server.batching import Batching
from serving.model_server.calls import Call
from serving.model_server.flags import Options
from serving.model_server.loader import Loader
from serving.model_server.metrics import Metrics
from serving.model_server.server import Server

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only there threads have a niceness")


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def niceness(thread=0):
    return os.getpriority(os.PRIO_PROCESS, thread)


def nicer_threads():
    found = set()
    for thread in map(int, os.listdir("/proc/self/task")):
        with contextlib.suppress(ProcessLookupError):  # It has just ended.
            if niceness(thread) > niceness():
                found.add(thread)
    return found


@on_linux
def test_work_in_the_background_gives_way_and_its_caller_does_not():
    before = niceness()
    assert before < background.run(niceness) == min(before + 4, 19)
    assert niceness() == before


def test_what_work_in_the_background_raises_is_raised():
    with pytest.raises(ValueError, match="invalid literal"):
        background.run(int, "q")


@on_linux
def test_a_session_that_is_loaded_in_the_background_answers_by_threads_that_do_not_give_way(
    model_root, tmp_path
):
    file = tmp_path / "session.config"
    file.write_text("use_per_session_threads: true inter_op_parallelism_threads: 3")
    options = Options(tensorflow_session_config_file=str(file), enable_signature_warmup=True)
    metrics = Metrics()
    loader = Loader(options, metrics, Batching(options, metrics))
    loader.gives_way = True
    threads, nicer = len(os.listdir("/proc/self/task")), nicer_threads()
    servable = loader.load(str(model_root / "half_plus/2"), "m")
    assert len(os.listdir("/proc/self/task")) >= threads + 3
    assert isinstance(servable._servable._session.graph, gentle_loading.Graph)
    wait_until(lambda: nicer_threads() <= nicer)  # The one that has loaded is about to end.
    servable.close()


@pytest.mark.parametrize("batching", [False, True])
def test_a_version_is_warmed_up_in_the_background_once_there_are_requests(
    model_root, options, tmp_path, caplog, batching
):
    caplog.set_level(logging.INFO)
    shutil.copytree(model_root / "half_plus/2", tmp_path / "m/2")
    log = PredictionLog()
    log.predict_log.request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([1])))
    (tmp_path / "m/2/assets.extra").mkdir()
    file = tmp_path / "m/2/assets.extra/tf_serving_warmup_requests"
    with tf.io.TFRecordWriter(str(file)) as records:
        records.write(log.SerializeToString())
    chosen = options(model_base_path=str(tmp_path / "m"), enable_batching=batching)
    with Server(chosen) as server:
        shutil.copytree(tmp_path / "m/2", tmp_path / "3")
        (tmp_path / "3").rename(tmp_path / "m/3")
        wait_until(lambda: server._manager.is_available("default", 3))
    threads = [each.threadName for each in caplog.records if "Finished reading" in each.message]
    assert [name.rpartition("_")[0] or name for name in threads] == [
        "version-manager",
        "background",
    ]


def test_what_is_done_for_the_first_time_is_done_by_the_thread_that_loads(model_root):
    options, metrics = Options(enable_batching=True), Metrics()
    batching = Batching(options, metrics)
    servable = Loader(options, metrics, batching).load(str(model_root / "half_plus/2"), "m")
    signature = servable.signatures["serving_default"]
    feeds = {signature.inputs["x"].name: np.float32([1, 2])}
    fetches = [signature.outputs["y"].name]
    (values,) = servable.run(feeds, fetches, Call(shares=False))
    assert values.tolist() == [3.5, 4.0]
    assert not batching._batches._threads, "none was needed"
    (again,) = servable.run(feeds, fetches, Call())
    assert again.tolist() == values.tolist()
    assert len(batching._batches._threads) == 1
    assert metrics.batches.total() == 2
    servable.close()
    batching.close()
