"""The server as a whole: how it starts, follows its folders, and stops."""

import dataclasses
import http.client
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.client import Client, ModelNotFound
from serving.model_server import main
from serving.model_server.errors import ServingError
from serving.model_server.server import Server

ZERO = np.zeros([1], np.float32)


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.fixture
def root(tmp_path, save_half_plus):
    """Models of its own for a test to change: `a` at version 1."""
    save_half_plus(tmp_path / "models/a/1", 1.0)
    return tmp_path / "models"


def answer(client, model="a"):
    return client.predict(model, {"x": ZERO})["y"].tolist()


def states(client, model="a"):
    return {entry["version"]: entry["state"] for entry in client.status(model)}


def runs(server):
    """Returns how many runs of a graph have begun."""
    return server._metrics.runs.total()


def put(source, target):
    """Moves a folder into place, so that it appears whole."""
    target.parent.mkdir(exist_ok=True)
    source.rename(target)


def test_a_new_version_takes_over_without_a_gap(root, options, save_half_plus, tmp_path):
    save_half_plus(tmp_path / "new", 2.0)
    chosen = options(model_root=str(root))
    with Server(chosen), Client(f"localhost:{chosen.port}") as client:
        answers = [answer(client)]
        put(tmp_path / "new", root / "a/2")
        while answers[-1] != [2.0]:
            answers.append(answer(client))
        assert [a for i, a in enumerate(answers) if answers[i - 1] != a or not i] == [[1.0], [2.0]]
        wait_until(lambda: states(client) == {2: "AVAILABLE", 1: "END"})


def test_the_same_port_twice_serves_grpc_alone(root, options, caplog):
    chosen = options(model_root=str(root))
    twice = dataclasses.replace(chosen, rest_api_port=chosen.port)
    with Server(twice), Client(f"localhost:{chosen.port}") as client:
        assert answer(client) == [1.0]
    assert "--rest_api_port cannot be same as --port" in caplog.text


def test_tags_that_a_model_lacks_are_named(root, options):
    said = refusal(options(model_root=str(root), saved_model_tags="serve,gpu"))
    assert "could not be found in SavedModel" in said
    assert "gpu" in said


def test_numbers_may_be_answered_in_tensor_content(root, options):
    chosen = options(model_root=str(root), enable_serialization_as_tensor_content=True)
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "a"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(ZERO))
    with Server(chosen), grpc.insecure_channel(f"localhost:{chosen.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        tensor = stub.Predict(request).outputs["y"]
    assert tensor.tensor_content == np.float32([1]).tobytes()
    assert not tensor.float_val


def test_a_new_model_is_picked_up_and_a_removed_one_let_go(root, options, save_half_plus, tmp_path):
    save_half_plus(tmp_path / "new", 5.0)
    chosen = options(model_root=str(root))
    with Server(chosen), Client(f"localhost:{chosen.port}") as client:
        put(tmp_path / "new", root / "b/1")
        wait_until(lambda: _known(client, "b"))
        assert answer(client, "b") == [5.0]
        shutil.rmtree(root / "a")
        wait_until(lambda: states(client) == {1: "END"})
        with pytest.raises(ModelNotFound):
            answer(client)


def _known(client, model):
    try:
        return states(client, model) == {1: "AVAILABLE"}
    except ModelNotFound:
        return False


def test_a_bad_version_leaves_the_good_one_serving(root, options):
    chosen = options(model_root=str(root))
    with Server(chosen), Client(f"localhost:{chosen.port}") as client:
        (root / "a/2").mkdir()
        wait_until(lambda: states(client).get(2) == "END")
        assert answer(client) == [1.0]
        failed, good = client.status("a")
        assert str(root / "a/2") in failed["error"]
        assert (good["version"], good["state"]) == (1, "AVAILABLE")


def test_a_missing_vocabulary_fails_its_model_alone(root, options, save_words, tmp_path, caplog):
    save_words(root / "w/1", tmp_path / "vocabulary.txt")
    vocabulary = root / "w/1/assets/vocabulary.txt"
    vocabulary.unlink()
    chosen = options(model_root=str(root))
    with Server(chosen), Client(f"localhost:{chosen.port}") as client:
        assert answer(client) == [1.0]
        (status,) = client.status("w")
        assert status["state"] == "END"
        assert str(vocabulary) in status["error"]
        assert "No such file" in status["error"]
    assert str(vocabulary) in caplog.text


def test_a_request_under_way_keeps_its_version(model_root, options, tmp_path):
    shutil.copytree(model_root / "slow", tmp_path / "slow")
    chosen = options(model_base_path=str(tmp_path / "slow"), model_name="slow")
    with Server(chosen) as server, Client(f"localhost:{chosen.port}") as client:
        counts = []
        asking = threading.Thread(
            target=lambda: counts.append(client.predict("slow", np.int32(400_000))["count"][()])
        )
        asking.start()
        wait_until(lambda: runs(server) == 1)
        (tmp_path / "slow/1").rename(tmp_path / "slow/2")
        wait_until(lambda: states(client, "slow").get(2) == "AVAILABLE")
        asking.join()
        assert counts == [400_000]
        wait_until(lambda: states(client, "slow") == {2: "AVAILABLE", 1: "END"})


def test_stopping_waits_for_a_request_under_way(model_root, options, free_port):
    chosen = options(model_base_path=str(model_root / "slow"), rest_api_port=free_port())
    statuses, counts = [], []

    def ask():
        connection = http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20)
        connection.request("POST", "/v1/models/default:predict", '{"inputs": 400000}')
        statuses.append(connection.getresponse().status)
        connection.close()

    with Client(f"localhost:{chosen.port}") as client, Server(chosen) as server:
        threads = [
            threading.Thread(target=ask),
            threading.Thread(
                target=lambda: counts.append(client.predict("default", np.int32(400000))["count"])
            ),
        ]
        for thread in threads:
            thread.start()
        wait_until(lambda: runs(server) == 2)
    for thread in threads:
        thread.join()
    assert (statuses, counts) == ([200], [400000])


def started(arguments, capfd):
    """Returns the exit code and what was printed of a server that cannot start."""
    code = main(arguments)
    return code, capfd.readouterr().out


def refusal(chosen):
    """Returns the error of a server that cannot start."""
    with pytest.raises(ServingError) as raised, Server(chosen):
        pass
    return str(raised.value)


@pytest.fixture
def taken_port():
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_a_taken_grpc_port_is_named(root, options, taken_port):
    assert refusal(options(model_root=str(root), port=taken_port)) == (
        f"UNAVAILABLE: Could not listen for gRPC at 0.0.0.0:{taken_port}: "
        "Address already in use. Choose another with --port."
    )


def test_two_servers_do_not_share_a_port(root, options):
    chosen = options(model_root=str(root))
    with Server(chosen):
        assert "Address already in use" in refusal(chosen)


def test_a_taken_rest_port_is_named(root, options, taken_port):
    assert refusal(options(model_root=str(root), rest_api_port=taken_port)) == (
        f"UNAVAILABLE: Could not listen for REST at port {taken_port}: "
        "Address already in use. Choose another with --rest_api_port."
    )


def test_a_socket_path_that_cannot_be_is_named(root, options, tmp_path):
    path = tmp_path / "none" / "socket"
    assert f"gRPC at unix:{path}" in refusal(options(model_root=str(root), grpc_socket_path=path))


def test_an_empty_root_says_what_is_expected(tmp_path, capfd):
    code, out = started([f"--model_root={tmp_path}"], capfd)
    assert code == 255
    assert out.startswith("Failed to start server. Error: NOT_FOUND: No model under --model_root=")
    assert "NAME/VERSION/saved_model.pb" in out


def test_a_server_without_one_good_model_does_not_start(tmp_path, free_port, capfd):
    (tmp_path / "a/1").mkdir(parents=True)
    flags = [f"--model_root={tmp_path}", f"--port={free_port()}", "--max_num_load_retries=0"]
    code, out = started(flags, capfd)
    assert code == 255
    assert "1 servable(s) did not become available: {{name: a version: 1} due to error: " in out


def test_a_server_without_a_model_starts_once_a_further_try_loads_one(
    model_root, options, tmp_path, caplog
):
    (tmp_path / "a/1").mkdir(parents=True)
    retries = {"max_num_load_retries": 1000, "load_retry_interval_micros": 50_000}
    chosen = options(model_root=str(tmp_path), **retries)
    source, target = model_root / "half_plus/1", tmp_path / "a/1"
    copy = threading.Timer(0.5, shutil.copytree, (source, target), {"dirs_exist_ok": True})
    copy.start()
    with Server(chosen), Client(f"localhost:{chosen.port}") as client:
        copy.join()
        assert states(client, "a") == {1: "AVAILABLE"}
    assert "999 more tries, the next in 0.05 s" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_says_when_it_is_ready_and_stops_when_told(root, free_port, number):
    port, rest_port = free_port(), free_port()
    command = [sys.executable, "-m", "serving.model_server", f"--model_root={root}"]
    flags = [
        f"--port={port}",
        f"--rest_api_port={rest_port}",
        "--skip_initialize_tpu",
        "--foo",
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    environment = {k: v for k, v in os.environ.items() if k != "TF_CPP_MIN_LOG_LEVEL"}
    with subprocess.Popen(command + flags, text=True, env=environment, **pipes) as process:
        lines = iter(process.stdout.readline, "")
        assert next(lines) == "unknown argument: --foo\n"
        ready = next(line for line in lines if line.startswith("Running"))
        assert ready == f"Running gRPC ModelServer at 0.0.0.0:{port} ...\n"
        assert next(lines) == f"Exporting HTTP/REST API at:localhost:{rest_port} ...\n"
        with Client(f"localhost:{port}") as client:
            assert answer(client) == [1.0]
        process.send_signal(number)
        _, log = process.communicate(timeout=20)
    assert process.returncode == 0
    log_lines = log.splitlines()
    no_effect = "--skip_initialize_tpu has no effect in this server: TPUs are always left alone."
    assert log_lines[0] == no_effect
    own = [line.split(" ", 2)[2] for line in log_lines if " INFO " in line]  # TensorFlow's apart
    assert own == [
        f"INFO Loaded model a version 1 from {root / 'a/1'}",
        "INFO Unloaded model a version 1",
    ]


def test_neither_garbage_nor_loads_hold_up_requests(root, free_port):
    watched = """
import gc, sys
from serving.model_server import main, server
server.run = lambda options: print(
    gc.get_freeze_count(), len(gc.get_objects()), sys.getswitchinterval()
)
main(sys.argv[1:])
"""
    flags = [f"--model_root={root}", f"--port={free_port()}"]
    command = [sys.executable, "-c", watched, *flags]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    passed_over, looked_at, interval = map(float, done.stdout.split())
    assert passed_over > 100 * looked_at
    assert interval == 0.001
