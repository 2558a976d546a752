"""Configuration files, reloads, version policies and labels, on a running server."""

import http.client
import json
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving.client import Client
from serving.model_server import config
from serving.model_server.errors import ServingError
from serving.model_server.loader import Loader
from serving.model_server.server import Server

ALL = 'model_platform: "tensorflow" model_version_policy { all {} }'
LATEST = 'model_platform: "tensorflow"'


def entry(name, path, rest=LATEST):
    return f'config {{ name: "{name}" base_path: "{path}" {rest} }}'


def configuration(*entries):
    return f"model_config_list {{ {' '.join(entries)} }}"


def label(name, version):
    return f'version_labels {{ key: "{name}" value: {version} }}'


def specific(*versions):
    listed = " ".join(f"versions: {version}" for version in versions)
    return f"{LATEST} model_version_policy {{ specific {{ {listed} }} }}"


@pytest.fixture
def serve(options, free_port, tmp_path):
    """Starts a server with a configuration file; says its options, and the file."""
    running = []

    def start(text, **changed):
        file = tmp_path / "models.config"
        file.write_text(text)
        chosen = options(model_config_file=str(file), rest_api_port=free_port(), **changed)
        running.append(Server(chosen))
        running[-1].start()
        return chosen, file

    yield start
    for server in running:
        server.stop()


@pytest.fixture(scope="module")
def half(model_root):
    """The folder of a model with versions 1 and 2, of which 1 adds 2.0 and 2 adds 3.0."""
    return model_root / "half_plus"


def reload(chosen, text):
    """Asks for another configuration; returns code and message."""
    request = model_management_pb2.ReloadConfigRequest()
    text_format.Parse(text, request.config)
    with grpc.insecure_channel(f"localhost:{chosen.port}") as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        try:
            response = stub.HandleReloadConfigRequest(request)
        except grpc.RpcError as error:
            return error.code().name, error.details()
    assert response.HasField("status")
    return "OK", response.status.error_message


def ask(chosen, model, version=None, label=None):
    """Returns what the model adds to half of zero, or code and message."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = model
    if version:
        request.model_spec.version.value = version
    if label:
        request.model_spec.version_label = label
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.zeros([1], np.float32)))
    with grpc.insecure_channel(f"localhost:{chosen.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            return stub.Predict(request).outputs["y"].float_val[0]
        except grpc.RpcError as error:
            return error.code().name, error.details()


def states(chosen, model):
    with Client(f"localhost:{chosen.port}") as client:
        return {each["version"]: each["state"] for each in client.status(model)}


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


def test_the_models_of_a_file_are_served_each_by_its_policy(serve, half):
    chosen, _ = serve(
        configuration(
            entry("all", half, ALL), entry("latest", half), entry("first", half, specific(1))
        )
    )
    assert [ask(chosen, "all", 1), ask(chosen, "all", 2), ask(chosen, "all")] == [2, 3, 3]
    assert [ask(chosen, "latest"), ask(chosen, "first")] == [3, 2]
    assert states(chosen, "latest") == {2: "AVAILABLE"}
    unknown = "Servable not found for request: Specific(latest, 1)"
    assert ask(chosen, "latest", 1) == ("NOT_FOUND", unknown)


def test_labels_name_versions_over_grpc_and_rest(serve, half):
    labels = label("stable", 1) + label("canary", 2)
    chosen, _ = serve(configuration(entry("m", half, f"{ALL} {labels}")))
    assert [ask(chosen, "m", label="stable"), ask(chosen, "m", label="canary")] == [2, 3]
    unknown = "Unrecognized servable version label: q"
    assert ask(chosen, "m", label="q") == ("INVALID_ARGUMENT", unknown)
    connection = http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20)
    for name, answer in (("stable", {"outputs": [2.0]}), ("q", {"error": unknown})):
        connection.request("POST", f"/v1/models/m/labels/{name}:predict", '{"inputs": [0]}')
        assert json.loads(connection.getresponse().read()) == answer
    connection.close()


def test_a_reload_adds_and_removes_models(serve, half):
    chosen, _ = serve(configuration(entry("a", half)))
    assert reload(chosen, configuration(entry("b", half))) == ("OK", "")
    assert ask(chosen, "b") == 3
    wait_until(lambda: states(chosen, "a") == {2: "END"})
    assert ask(chosen, "a") == ("NOT_FOUND", "Servable not found for request: Latest(a)")


def test_a_version_and_its_label_come_in_one_reload(serve, half):
    chosen, _ = serve(configuration(entry("m", half, specific(1) + label("stable", 1))))
    assert ask(chosen, "m", label="stable") == 2
    both = specific(1, 2) + label("stable", 2)
    assert reload(chosen, configuration(entry("m", half, both))) == ("OK", "")
    assert ask(chosen, "m", label="stable") == 3


def test_a_label_of_a_version_that_is_not_there_is_refused(serve, half):
    chosen, _ = serve(configuration(entry("m", half, label("stable", 2) + LATEST)))
    text = (
        "Request to assign label to version 7 of model m, which is not currently available for "
        "inference"
    )
    refused = reload(chosen, configuration(entry("m", half, label("stable", 7) + LATEST)))
    assert refused == ("FAILED_PRECONDITION", text)
    assert ask(chosen, "m", label="stable") == 3


def test_a_label_may_wait_for_its_version_where_allowed(serve, half):
    chosen, _ = serve(
        configuration(entry("m", half, label("next", 7) + LATEST)),
        allow_version_labels_for_unavailable_models=True,
    )
    assert ask(chosen, "m", label="next") == (
        *("NOT_FOUND", "Servable not found for request: Specific(m, 7)"),
    )


def test_a_load_that_hangs_keeps_no_other_configuration_from_coming(
    serve, half, tmp_path, monkeypatch
):
    hanging = tmp_path / "hanging"
    shutil.copytree(half / "1", hanging / "1")
    go_on, begun = threading.Event(), threading.Event()
    load = Loader.load

    def wait(self, path, model):
        if path.startswith(str(hanging)):
            begun.set()
            go_on.wait(20)
        return load(self, path, model)

    monkeypatch.setattr(Loader, "load", wait)
    chosen, _ = serve(configuration(entry("a", half)))
    first = []
    text = configuration(entry("a", half), entry("hanging", hanging))
    reloading = threading.Thread(target=lambda: first.append(reload(chosen, text)))
    reloading.start()
    assert begun.wait(20)
    assert reload(chosen, configuration(entry("a", half), entry("b", half))) == ("OK", "")
    assert ask(chosen, "b") == 3
    go_on.set()
    reloading.join()
    assert first[0][0] == "ABORTED"


def test_reloads_from_many_sides_all_end(serve, half, tmp_path):
    chosen, _ = serve(configuration(entry("a", half)), model_config_file_poll_wait_seconds=0.02)
    texts = [
        configuration(entry("a", half, f"{ALL} {label('stable', 1)}")),
        configuration(entry("a", half), entry("none", tmp_path / "none")),
        configuration(entry("a", half), entry("b", half)),
    ]
    with ThreadPoolExecutor(6) as pool:
        codes = [code for code, _ in pool.map(lambda i: reload(chosen, texts[i % 3]), range(30))]
    assert len(codes) == 30
    assert set(codes) <= {"OK", "ABORTED", "UNKNOWN", "FAILED_PRECONDITION"}
    assert ask(chosen, "a") == 3


def test_a_model_that_cannot_be_loaded_fails_the_reload_and_nothing_else(serve, half, tmp_path):
    chosen, _ = serve(configuration(entry("a", half)))
    (tmp_path / "bad/1").mkdir(parents=True)
    both = configuration(
        entry("bad", tmp_path / "bad"), entry("none", tmp_path / "none"), entry("b", half)
    )
    code, message = reload(chosen, both)
    assert code == "UNKNOWN"
    start = "2 model(s) did not become available: {{name: bad version: 1} due to error: NOT_FOUND: "
    assert message.startswith(start)
    assert f"Could not find base path {tmp_path}/none" in message
    assert message.endswith("}, }")
    assert ask(chosen, "b") == 3


def test_a_file_is_read_again(serve, half):
    chosen, file = serve(configuration(entry("a", half)), model_config_file_poll_wait_seconds=0.05)
    file.write_text("not a configuration")
    time.sleep(0.2)
    assert ask(chosen, "a") == 3
    file.write_text(configuration(entry("a", half, specific(1)), entry("b", half)))
    wait_until(lambda: ask(chosen, "b") == 3)
    wait_until(lambda: ask(chosen, "a") == 2)


def test_a_configuration_without_models_waits_for_one(serve, half):
    chosen, _ = serve("")
    assert reload(chosen, configuration(entry("a", half))) == ("OK", "")
    assert ask(chosen, "a") == 3


def test_only_lists_of_models_can_be_reloaded(serve, half):
    chosen, _ = serve(configuration(entry("a", half)))
    text = (
        "ServerModelConfig type not supported by HandleReloadConfigRequest. "
        "Only ModelConfigList is currently supported"
    )
    assert reload(chosen, "") == ("INVALID_ARGUMENT", text)
    assert reload(chosen, "custom_model_config {}") == ("INVALID_ARGUMENT", text)


def test_the_models_of_a_root_are_not_reloaded(server, half):
    class Chosen:
        port = server.address.rpartition(":")[2]

    assert reload(Chosen, configuration(entry("a", half))) == (
        "FAILED_PRECONDITION",
        config.NO_TRANSITION,
    )


NEITHER = (
    "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
    "ModelServerConfig::model_platform, model name is m"
)
LOG_TO_ELSEWHERE = (
    'logging_config { log_collector_config { type: "elsewhere" filename_prefix: "/logs/l" } }'
)
BAD = [
    (
        configuration(entry("m", "/m"), entry("m", "/n")),
        "Illegal to list model m multiple times in config list",
    ),
    (
        configuration(entry("m", "models/m")),
        "Expected model m to have an absolute path or URI; got base_path()=models/m",
    ),
    (configuration(entry("m", "/m", "")), NEITHER),
    (
        configuration(entry("m", "/m", 'model_platform: "other"')),
        "Model m requests unsupported platform other",
    ),
    (
        configuration(entry("old", "/m", 'model_platform: "other"')),
        "Illegal to change a model's platform. For model old platform was tensorflow and new "
        "platform requested is other",
    ),
    (
        configuration(entry("m", "/m", f"{LATEST} model_type: TENSORFLOW")),
        "Illegal setting both ModelServerConfig::model_type (deprecated) and "
        "ModelServerConfig::model_platform.",
    ),
    (
        configuration(entry("m", "/m", "model_type: OTHER")),
        "ModelServerConfig::model_type choice 2 not supported.",
    ),
    (
        configuration(entry("m", "/m", f"{LATEST} logging_config {{}}")),
        "The logging_config of model m must have a log_collector_config with a filename_prefix, "
        "such as /logs/requests",
    ),
    (
        configuration(entry("m", "/m", f"{LATEST} {LOG_TO_ELSEWHERE}")),
        "The log_collector_config of model m must have the type 'tfrecord', or none. "
        "Received: 'elsewhere'",
    ),
]


@pytest.mark.parametrize(("text", "message"), BAD, ids=[row[1][:40] for row in BAD])
def test_a_bad_configuration_is_refused_as_in_tensorflow_serving(text, message):
    old = text_format.Parse(configuration(entry("old", "/old")), ModelServerConfig())
    with pytest.raises(ServingError) as raised:
        config.check(text_format.Parse(text, ModelServerConfig()), old)
    assert str(raised.value) == f"INVALID_ARGUMENT: {message}"


def test_the_deprecated_type_says_the_platform():
    text = configuration(entry("m", "/m", "model_type: TENSORFLOW"))
    config.check(text_format.Parse(text, ModelServerConfig()), ModelServerConfig())


@pytest.mark.parametrize(("text", "code"), [("models {", "INVALID_ARGUMENT"), (None, "NOT_FOUND")])
def test_a_bad_file_keeps_the_server_from_starting(options, tmp_path, text, code, caplog):
    file = tmp_path / "models.config"
    if text:
        file.write_text(text)
    with pytest.raises(ServingError) as raised, Server(options(model_config_file=str(file))):
        pass
    assert raised.value.code.name == code
    assert str(file) in raised.value.message
    if text:
        assert "Error parsing text-format tensorflow.serving.ModelServerConfig: 1:1" in caplog.text


def test_a_file_of_which_nothing_loads_keeps_the_server_from_starting(options, tmp_path):
    file = tmp_path / "models.config"
    file.write_text(configuration(entry("none", tmp_path / "none")))
    with pytest.raises(
        ServingError, match=r"1 servable.s. did not become available: .{name: none}"
    ):
        Server(options(model_config_file=str(file))).start()
