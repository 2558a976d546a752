"""Requests that are kept, and what they are good for."""

import shutil
import time

import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog
from tensorflow_serving.config.model_server_config_pb2 import ModelServerConfig

from serving.client import Client
from serving.model_server.batching import Batching
from serving.model_server.errors import ServingError
from serving.model_server.flags import Options
from serving.model_server.loader import Loader
from serving.model_server.metrics import Metrics
from serving.model_server.request_log import RequestLogs
from serving.model_server.server import Server

SPEC = PredictionLog().predict_log.request.model_spec


@pytest.fixture
def serve(options, model_root, tmp_path):
    """Returns a context with a server that logs a share of the requests of `half_plus`."""

    def start(share, prefix=tmp_path / "logs/requests"):
        file = tmp_path / "models.config"
        file.write_text(
            f"""model_config_list {{ config {{
                name: "half" base_path: "{model_root}/half_plus" model_platform: "tensorflow"
                logging_config {{
                    log_collector_config {{ type: "tfrecord" filename_prefix: "{prefix}" }}
                    sampling_config {{ sampling_rate: {share} }}
                }}
            }} }}"""
        )
        chosen = options(model_config_file=str(file))
        return chosen, Server(chosen)

    return start


def records(folder):
    files = sorted(map(str, folder.glob("*.tfrecord")))
    return [
        PredictionLog.FromString(record)
        for file in files
        for record in tf.compat.v1.io.tf_record_iterator(file)
    ]


def ask(chosen, times):
    with Client(f"localhost:{chosen.port}") as client:
        for number in range(times):
            client.predict("half", {"x": np.array([number], np.float32)})


def test_requests_are_kept_with_their_answers(serve, tmp_path):
    chosen, server = serve(share=1)
    with server:
        ask(chosen, 3)
    logs = records(tmp_path / "logs")
    assert [log.predict_log.request.inputs["x"].float_val[:] for log in logs] == [[0], [1], [2]]
    assert [log.predict_log.response.outputs["y"].float_val[:] for log in logs] == [[3], [3.5], [4]]
    spec = logs[0].log_metadata.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == ("half", 2, "serving_default")
    assert logs[0].log_metadata.sampling_config.sampling_rate == 1
    assert server._metrics.total(":tensorflow:serving:request_log_count") == 3


@pytest.mark.parametrize(("share", "least", "most"), [(0, 0, 0), (0.5, 20, 80)])
def test_a_share_of_the_requests_is_kept(serve, tmp_path, share, least, most):
    chosen, server = serve(share)
    with server:
        ask(chosen, 100)
    assert least <= len(records(tmp_path / "logs")) <= most


def test_what_was_kept_warms_up_the_next_version(serve, tmp_path, model_root):
    chosen, server = serve(share=1)
    with server:
        ask(chosen, 3)
    version = tmp_path / "version"
    shutil.copytree(model_root / "half_plus/2", version)
    (version / "assets.extra").mkdir()
    (file,) = (tmp_path / "logs").glob("*.tfrecord")
    shutil.copy(file, version / "assets.extra/tf_serving_warmup_requests")
    metrics = Metrics()
    Loader(Options(), metrics, Batching(Options(), metrics)).load(str(version), "m").close()
    assert metrics.warmup_records.total() == metrics.runs.total() == 3


def test_a_log_that_cannot_be_written_costs_no_request(serve, tmp_path, caplog):
    (tmp_path / "file").write_text("no folder")
    chosen, server = serve(share=1, prefix=tmp_path / "file/requests")
    with server:
        ask(chosen, 2)
    assert caplog.text.count("Could not log requests of half: ") == 1
    lines = list(server._metrics.request_logs.lines("n"))
    assert lines == ['n{model_name="half",status_code="DATA_LOSS"} 2']


def configured(prefix):
    config = ModelServerConfig()
    model = config.model_config_list.config.add(name="m")
    model.logging_config.log_collector_config.filename_prefix = str(prefix)
    model.logging_config.sampling_config.sampling_rate = 1
    return config


def test_a_file_holds_as_many_records_as_a_warm_up_may(tmp_path):
    logs = RequestLogs(Metrics())
    logs.configure(configured(tmp_path / "r"))
    spec = type(SPEC)(name="m")
    for _ in range(1001):
        logs.predict(spec, {}, [], {})
        while logs._waiting.full():
            time.sleep(0.001)
    logs.stop()
    counts = [len(list(tf.compat.v1.io.tf_record_iterator(str(f)))) for f in tmp_path.iterdir()]
    assert sorted(counts) == [1, 1000]


def test_the_configuration_must_say_where_to_log(options, tmp_path, model_root):
    file = tmp_path / "models.config"
    file.write_text(
        f"""model_config_list {{ config {{ name: "m" base_path: "{model_root}/half_plus"
            model_platform: "tensorflow" logging_config {{ }} }} }}"""
    )
    with (
        pytest.raises(ServingError, match="log_collector_config with a filename_prefix"),
        Server(options(model_config_file=str(file))),
    ):
        pass
