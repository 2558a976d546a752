"""What is counted, and the page that Prometheus reads."""

import http.client
import re

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

from serving.model_server.errors import ServingError
from serving.model_server.metrics import Counter, Histogram, Metrics
from serving.model_server.server import Server

REQUESTS = ":tensorflow:serving:request_count"


def test_a_counter_is_a_line_for_every_combination_of_labels():
    counter = Counter("/a/b", "model_name", "status")
    counter.add("m", "OK")
    counter.add("m", "OK", by=2)
    counter.add('q"\\\n', "NOT_FOUND")
    assert list(counter.lines(":a:b")) == [
        ':a:b{model_name="m",status="OK"} 3',
        ':a:b{model_name="q\\"\\\\\\n",status="NOT_FOUND"} 1',
    ]


def test_a_histogram_counts_upwards():
    histogram = Histogram("/a", "model", limits=[1, 2.5])
    for amount in (0.5, 2, 2.25, 1000000):
        histogram.add("m", amount=amount)
    assert list(histogram.lines(":a")) == [
        ':a_bucket{model="m",le="1"} 1',
        ':a_bucket{model="m",le="2.5"} 3',
        ':a_bucket{model="m",le="+Inf"} 4',
        ':a_sum{model="m"} 1e+06',
        ':a_count{model="m"} 4',
    ]


def test_names_that_callers_make_up_do_not_fill_the_memory():
    counter, histogram = Counter("/a", "model"), Histogram("/b", "model", limits=[1])
    for number in range(20_000):
        counter.add(str(number))
        histogram.add(str(number), amount=1)
    assert counter.total() == histogram.total() == 10_000


def test_the_buckets_of_latencies_grow_by_four_fifths():
    metrics = Metrics()
    metrics.request_latency.add("m", "Predict", "GRPC", amount=1)
    limits = re.findall('le="(.*?)"', metrics.page())
    assert limits[:3] == ["10", "18", "32.4"]
    assert len(limits) == 34
    assert limits[-1] == "+Inf"


NAMES = [
    ":tensorflow:cc:saved_model:load_attempt_count counter",
    ":tensorflow:cc:saved_model:load_latency counter",
    ":tensorflow:core:direct_session_runs counter",
    ":tensorflow:serving:batching:batch_delay_us_v2 histogram",
    ":tensorflow:serving:batching:batch_size histogram",
    ":tensorflow:serving:batching:batch_timeout_micros gauge",
    ":tensorflow:serving:batching:enable_large_batch_splitting gauge",
    ":tensorflow:serving:batching:input_batch_size_v2 histogram",
    ":tensorflow:serving:batching:max_batch_size gauge",
    ":tensorflow:serving:batching:max_enqueued_batches gauge",
    ":tensorflow:serving:batching:num_batch_threads gauge",
    ":tensorflow:serving:batching:padding_size_v2 histogram",
    ":tensorflow:serving:batching:processed_batch_size_v2 counter",
    ":tensorflow:serving:batching_session:queuing_latency histogram",
    ":tensorflow:serving:batching_session:wrapped_run_count counter",
    ":tensorflow:serving:mlmd_map gauge",
    ":tensorflow:serving:model_warmup_latency histogram",
    ":tensorflow:serving:model_warmup_records_read counter",
    ":tensorflow:serving:request_count counter",
    ":tensorflow:serving:request_example_count_total counter",
    ":tensorflow:serving:request_example_counts histogram",
    ":tensorflow:serving:request_latency histogram",
    ":tensorflow:serving:request_log_count counter",
    ":tensorflow:serving:runtime_latency histogram",
]


@pytest.mark.parametrize("name", NAMES)
def test_a_metric_has_the_name_of_tensorflow_serving(name):
    assert f"# TYPE {name}" in Metrics().page().splitlines()


@pytest.fixture
def served(model_root, options, free_port, tmp_path):
    """A server with a page of metrics; its options, and a function that reads the page."""
    file = tmp_path / "monitoring.config"
    file.write_text("prometheus_config { enable: true }")
    chosen = options(
        model_base_path=str(model_root / "half_plus"),
        rest_api_port=free_port(),
        monitoring_config_file=str(file),
    )
    with Server(chosen):
        connection = http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20)

        def ask(method, path, body=None):
            connection.request(method, path, body)
            response = connection.getresponse()
            return response.status, response.headers["Content-Type"], response.read().decode()

        yield chosen, ask
        connection.close()


def values(ask):
    status, kind, page = ask("GET", "/monitoring/prometheus/metrics")
    assert (status, kind) == (200, "text/plain")
    lines = [line for line in page.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


def predict(chosen, name="default"):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.zeros([1], np.float32)))
    with grpc.insecure_channel(f"localhost:{chosen.port}") as channel:
        return prediction_service_pb2_grpc.PredictionServiceStub(channel).Predict(request)


def test_requests_are_counted_by_model_and_status(served):
    chosen, ask = served
    predict(chosen)
    with pytest.raises(grpc.RpcError):
        predict(chosen, "q")
    ask("POST", "/v1/models/default:predict", '{"inputs": [1]}')
    ask("POST", "/v1/models/default:predict", '{"inputs": [true]}')
    found = values(ask)
    assert found[f'{REQUESTS}{{model_name="default",status="OK"}}'] == 2
    assert found[f'{REQUESTS}{{model_name="default",status="INVALID_ARGUMENT"}}'] == 1
    assert found[f'{REQUESTS}{{model_name="q",status="NOT_FOUND"}}'] == 1
    latency = ":tensorflow:serving:request_latency_count"
    for api, entrypoint in (("Predict", "GRPC"), ("predict", "REST")):
        labels = f'model_name="default",API="{api}",entrypoint="{entrypoint}"'
        assert found[f"{latency}{{{labels}}}"] == 1
    labels = 'model_name="default",API="Predict",runtime="TF1"'
    assert found[f":tensorflow:serving:runtime_latency_count{{{labels}}}"] == 2
    assert found[":tensorflow:core:direct_session_runs{}"] == 2
    loads = [name for name in found if "load_attempt_count" in name]
    assert len(loads) == 1
    assert re.search('model_path=".*/half_plus/2",status="success"', loads[0])


def test_how_a_queue_is_set_up_and_what_waits_in_it_is_told():
    metrics, queue = Metrics(), ["a batch"]
    metrics.queue(("m", "s"), 0.5, 8, 10, 4, True, waiting=lambda: len(queue))
    labels = '{model_name="m",op_name="s"}'

    def value(name):
        return next(
            int(line.split()[-1]) for line in metrics.page().splitlines() if name + labels in line
        )

    names = ["batch_timeout_micros", "max_batch_size", "max_enqueued_batches"]
    names += ["num_batch_threads", "enable_large_batch_splitting"]
    found = [value(f":tensorflow:serving:batching:{name}") for name in names]
    assert found == [500_000, 8, 10, 4, 1]
    assert value(":transduce:serving:waiting_batches") == 1
    queue.clear()
    assert value(":transduce:serving:waiting_batches") == 0


def test_a_reload_tells_what_metrics_grew_by(served):
    chosen, _ = served
    request = model_management_pb2.ReloadConfigRequest()
    path = chosen.model_base_path
    text_format.Parse(
        "model_config_list { "
        f'config {{ name: "default" base_path: "{path}" model_platform: "tensorflow" }} '
        f'config {{ name: "more" base_path: "{path}" model_platform: "tensorflow" }} }}',
        request.config,
    )
    name = "/tensorflow/cc/saved_model/load_attempt_count"
    request.metric_names.append(name)
    with grpc.insecure_channel(f"localhost:{chosen.port}") as channel:
        stub = model_service_pb2_grpc.ModelServiceStub(channel)
        (metric,) = stub.HandleReloadConfigRequest(request).metric
    assert (metric.name, metric.int64_value_increase) == (name, 1)


@pytest.mark.parametrize(
    ("text", "path", "status"),
    [
        ("prometheus_config { enable: true path: '/metrics' }", "/metrics", 200),
        ("prometheus_config { enable: false }", "/monitoring/prometheus/metrics", 404),
        ("", "/monitoring/prometheus/metrics", 404),
    ],
)
def test_the_page_is_where_the_file_says(
    model_root, options, free_port, tmp_path, text, path, status
):
    file = tmp_path / "monitoring.config"
    file.write_text(text)
    chosen = options(
        model_base_path=str(model_root / "half_plus"),
        rest_api_port=free_port(),
        monitoring_config_file=str(file),
    )
    with Server(chosen):
        connection = http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20)
        connection.request("GET", path)
        assert connection.getresponse().status == status
        connection.close()


def test_a_bad_file_keeps_the_server_from_starting(model_root, options, free_port, tmp_path):
    file = tmp_path / "monitoring.config"
    file.write_text("prometheus {}")
    chosen = options(
        model_base_path=str(model_root / "half_plus"),
        rest_api_port=free_port(),
        monitoring_config_file=str(file),
    )
    with pytest.raises(ServingError, match="Invalid protobuf file: "), Server(chosen):
        pass
