"""What becomes known of a request: the access log, traces, and metrics of its signature."""

import contextlib
import http.client
import http.server
import json
import sys
import threading

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.model_server.errors import ServingError
from serving.model_server.server import Server

TRACE = "0af7651916cd43dd8448eb211c80319c"
PARENT = f"00-{TRACE}-b7ad6b7169203331-01"


@pytest.fixture
def serve(model_root, options, free_port):
    """Returns a context with a server of `half_plus`, and its options."""

    @contextlib.contextmanager
    def start(**changed):
        chosen = options(
            model_base_path=str(model_root / "half_plus"),
            model_name="half",
            rest_api_port=free_port(),
            **changed,
        )
        with Server(chosen) as server:
            yield chosen, server

    return start


def over_grpc(chosen, name="half", **metadata):
    """Returns the trailing metadata of a call that may fail."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = name
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.zeros([1], np.float32)))
    pairs = [(key.replace("_", "-"), value) for key, value in metadata.items()]
    with grpc.insecure_channel(f"localhost:{chosen.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            _, call = stub.Predict.with_call(request, metadata=pairs)
        except grpc.RpcError as error:
            call = error
        return dict(call.trailing_metadata())


def over_rest(chosen, path="/v1/models/half:predict", body='{"instances": [0]}', headers=()):
    """Returns the headers of the answer."""
    connection = http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20)
    connection.request("POST", path, body, dict(headers))
    response = connection.getresponse()
    response.read()
    connection.close()
    return response.headers


def lines(file):
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_a_line_is_written_for_every_request(serve, tmp_path):
    file = tmp_path / "access.log"
    with serve(access_log=str(file)) as (chosen, _):
        assert over_grpc(chosen, x_request_id="mine")["x-request-id"] == "mine"
        own = over_rest(chosen)["X-Request-Id"]
        over_grpc(chosen, "none")
        over_rest(chosen, "/v1/nothing")
    first, second, third, fourth = lines(file)
    assert (
        first.items()
        >= {
            "request_id": "mine",
            "entrypoint": "GRPC",
            "method": "Predict",
            "model": "half",
            "version": 2,
            "signature": "serving_default",
            "status": "OK",
        }.items()
    )
    assert second["request_id"] == own != ""
    assert (second["method"], second["status"]) == ("POST /v1/models/half:predict", "OK")
    assert second["bytes_in"] == len('{"instances": [0]}')
    assert second["bytes_out"] > 20
    assert second["peer"] in ("::1", "127.0.0.1", "::ffff:127.0.0.1")
    assert (third["status"], third["version"]) == ("NOT_FOUND", 0)
    assert third["message"] == "Servable not found for request: Latest(none)"
    assert fourth["status"] == "INVALID_ARGUMENT"


def test_the_parts_of_a_request_are_no_longer_than_the_whole(serve, tmp_path):
    file = tmp_path / "access.log"
    with serve(access_log=str(file)) as (chosen, _):
        over_grpc(chosen)
        over_rest(chosen)
    wanted = [{"model", "write"}, {"parse", "model", "write"}]
    for line, parts in zip(lines(file), wanted, strict=True):
        times = line["milliseconds"]
        total = times.pop("total")
        assert times.keys() == parts
        assert 0 < sum(times.values()) <= total


def test_the_wait_for_a_batch_is_a_part_of_the_run(serve, tmp_path):
    file, batching = tmp_path / "access.log", tmp_path / "batching.config"
    batching.write_text("batch_timeout_micros { value: 50000 } max_batch_size { value: 4 }")
    flags = {"enable_batching": True, "batching_parameters_file": str(batching)}
    with serve(access_log=str(file), **flags) as (chosen, _):
        over_grpc(chosen)
        over_rest(chosen)
    for line in lines(file):
        times = line["milliseconds"]
        assert 40 < times["queue"] <= times["model"] <= times["total"]


def test_calls_without_a_token_are_written_too(serve, tmp_path):
    file, tokens = tmp_path / "access.log", tmp_path / "tokens"
    tokens.write_text("token")
    with serve(access_log=str(file), auth_token_file=str(tokens)) as (chosen, _):
        over_grpc(chosen)
        over_rest(chosen)
    first, second = lines(file)
    assert (first["method"], second["method"]) == ("Predict", "POST /v1/models/half:predict")
    assert {first["status"], second["status"]} == {"UNAUTHENTICATED"}
    assert first["message"] == second["message"]


def test_the_log_may_be_moved_away(serve, tmp_path):
    file = tmp_path / "access.log"
    with serve(access_log=str(file)) as (chosen, _):
        over_rest(chosen)
        file.rename(tmp_path / "access.log.1")
        over_rest(chosen)
    assert len(lines(file)) == len(lines(tmp_path / "access.log.1")) == 1


def test_no_id_is_sent_where_nobody_listens(serve):
    with serve() as (chosen, _):
        assert "x-request-id" not in over_grpc(chosen, x_request_id="mine")
        assert "X-Request-Id" not in over_rest(chosen)


def test_a_log_that_cannot_be_opened_keeps_the_server_from_starting(serve, tmp_path):
    with (
        pytest.raises(ServingError, match=r"--access_log=.*No such file"),
        serve(access_log=str(tmp_path / "none" / "access.log")),
    ):
        pass


def test_requests_are_counted_by_signature_and_version(serve):
    with serve() as (chosen, server):
        over_grpc(chosen)
        over_rest(chosen)
        over_rest(chosen, body='{"inputs": [[1, 2], [3]]}')
        over_rest(chosen, body='{"signature_name": "none", "inputs": [1]}')
        page = server._metrics.page()
    counted = ":transduce:serving:signature_request_count"
    labels = 'model_name="half",version="2",signature_name="serving_default",API="Predict"'
    assert f'{counted}{{{labels},status="OK"}} 2' in page
    assert f":transduce:serving:signature_latency_count{{{labels}}} 2" in page
    assert 'signature_name="none"' not in page


def test_what_was_counted_of_a_version_goes_with_it(serve):
    with serve() as (chosen, server):
        over_grpc(chosen)
        assert server._metrics.signature_requests.total() == 1
    assert server._metrics.signature_requests.total() == 0
    assert server._metrics.requests.total() == 1


@pytest.fixture
def collector(monkeypatch):
    """A collector of spans; gives those that it got, by name."""
    service = pytest.importorskip("opentelemetry.proto.collector.trace.v1.trace_service_pb2")
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http")
    spans = {}

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            request = service.ExportTraceServiceRequest.FromString(body)
            for resource in request.resource_spans:
                for scope in resource.scope_spans:
                    spans.update({span.name: span for span in scope.spans})
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("localhost", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://localhost:{server.server_port}")
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_COMPRESSION", "none")
        yield spans
        server.shutdown()


def test_a_request_is_a_span_in_its_callers_trace(serve, collector):
    with serve(enable_tracing=True) as (chosen, _):
        over_rest(chosen, headers={"traceparent": PARENT})
        over_grpc(chosen, "none", traceparent=PARENT)
    rest = collector["REST POST /v1/models/half:predict"]
    assert rest.trace_id.hex() == TRACE
    assert rest.parent_span_id.hex() == "b7ad6b7169203331"
    attributes = {each.key: each.value for each in rest.attributes}
    assert attributes["model.name"].string_value == "half"
    assert attributes["model.version"].int_value == 2
    for name in ("parse", "model", "write"):
        part = collector[name]
        assert part.parent_span_id == rest.span_id
        assert rest.start_time_unix_nano <= part.start_time_unix_nano + 10**6
        assert part.end_time_unix_nano <= rest.end_time_unix_nano + 10**6
    failed = collector["GRPC Predict"]
    assert failed.status.message == "Servable not found for request: Latest(none)"


def test_tracing_without_opentelemetry_says_what_to_install(serve, monkeypatch):
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with (
        pytest.raises(ServingError, match=r"pip install 'transduce\[tracing\]'"),
        serve(enable_tracing=True),
    ):
        pass
