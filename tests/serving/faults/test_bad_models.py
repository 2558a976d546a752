"""Models that raise, that loop, that answer with what is no number."""

import http.client
import json
import math
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from serving.client import Client
from serving.model_server.server import Server

FOR_EVER = np.int32(2**31 - 1)


class Raising(tf.Module):
    """Refuses what is below zero."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def __call__(self, x):
        with tf.control_dependencies([tf.debugging.assert_non_negative(x, "x must not be < 0")]):
            return {"y": tf.identity(x)}


class NotANumber(tf.Module):
    """Divides by zero."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def __call__(self, x):
        return {"y": x / 0.0}


@pytest.fixture
def served(model_root, options, free_port, tmp_path):
    """A server of those models, of one that counts for as long as it is told, and a good one."""
    for name, module in (("raising", Raising()), ("nan", NotANumber())):
        tf.saved_model.save(module, str(tmp_path / name / "1"), signatures=module.__call__)
    for name in ("slow", "half_plus"):
        (tmp_path / name).symlink_to(model_root / name)
    chosen = options(
        model_root=str(tmp_path), rest_api_port=free_port(), shutdown_grace_seconds=0.5
    )
    with Server(chosen) as server, Client(f"localhost:{chosen.port}") as client:
        yield chosen, client, server


def over_rest(chosen, model, inputs):
    connection = http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=30)
    connection.request("POST", f"/v1/models/{model}:predict", json.dumps({"inputs": inputs}))
    response = connection.getresponse()
    found = response.status, json.loads(response.read())
    connection.close()
    return found


def test_what_a_model_raises_is_its_callers_alone(served):
    chosen, client, _ = served
    with pytest.raises(Exception, match="x must not be < 0"):
        client.predict("raising", {"x": np.float32([-1])})
    status, answer = over_rest(chosen, "raising", [-1])
    assert status == 400
    assert "x must not be < 0" in answer["error"]
    assert client.predict("raising", {"x": np.float32([1])})["y"].tolist() == [1]


def test_what_is_no_number_travels(served):
    chosen, client, _ = served
    values = client.predict("nan", {"x": np.float32([0, 1, -1])})["y"].tolist()
    assert math.isnan(values[0])
    assert values[1:] == [math.inf, -math.inf]
    _, answer = over_rest(chosen, "nan", [0, 1, -1])
    assert math.isnan(answer["outputs"][0])
    assert answer["outputs"][1:] == [math.inf, -math.inf]


def test_a_model_that_loops_is_left_at_the_deadline_and_hinders_no_other(served):
    _, client, _ = served
    failures = []

    def loop():
        try:
            client.predict("slow", FOR_EVER, timeout=1)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=loop) for _ in range(4)]
    for thread in threads:
        thread.start()
    start = time.monotonic()
    while any(thread.is_alive() for thread in threads):
        half = client.predict("half_plus", {"x": np.float32([0])}, timeout=10)["y"].tolist()
        assert half == [3.0]
    assert time.monotonic() - start < 10
    assert len(failures) == 4


def test_a_model_that_loops_for_ever_does_not_keep_the_server_from_stopping(served):
    chosen, _, server = served
    failed = threading.Event()

    def loop():
        try:
            with Client(f"localhost:{chosen.port}", timeout=3600) as client:
                client.predict("slow", FOR_EVER)
        except Exception:
            failed.set()

    thread = threading.Thread(target=loop)
    thread.start()
    deadline = time.monotonic() + 10
    while not server._metrics.runs.total():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    start = time.monotonic()
    server.stop()
    assert time.monotonic() - start < 10
    assert failed.wait(10)
    thread.join()
