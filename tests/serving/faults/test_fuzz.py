"""Requests that are none, on both ports: each gets a documented code, and leaves nothing behind."""

import http.client
import json
import random
import socket
import string
from collections import Counter

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    model_management_pb2,
    predict_pb2,
)

from serving.model_server import protos
from serving.model_server.server import Server

SHORT = 1200
FULL = 100_000
MEGABYTE = 2**20

# What TF Serving's clients must expect. INTERNAL is for bytes that are no message, as of gRPC
# itself.
GRPC_CODES = {
    "OK",
    "INVALID_ARGUMENT",
    "NOT_FOUND",
    "FAILED_PRECONDITION",
    "UNIMPLEMENTED",
    "RESOURCE_EXHAUSTED",
    "DEADLINE_EXCEEDED",
    "OUT_OF_RANGE",
}
HTTP_CODES = {200, 400, 404, 413, 429, 431, 501, 503, 504}
PREDICTION = ["Predict", "Classify", "Regress", "MultiInference", "GetModelMetadata"]
RELOAD = "tensorflow.serving.ModelService/HandleReloadConfigRequest"
PROFILE = "tensorflow.ProfilerService/Profile"
STREAM = "transduce.serving.StreamingService/PredictStream"
WATCH = "grpc.health.v1.Health/Watch"
METHODS = [
    *(f"tensorflow.serving.PredictionService/{name}" for name in PREDICTION * 2),
    "tensorflow.serving.ModelService/GetModelStatus",
    RELOAD,
    PROFILE,
    "tensorflow.ProfilerService/Terminate",
    "tensorflow.ProfilerService/Monitor",
    STREAM,
    "grpc.health.v1.Health/Check",
    WATCH,
    "tensorflow.serving.NoService/None",
]
PAGES = [
    b"/livez",
    b"/readyz",
    b"/readyz/",
    b"/models",
    b"/config",
    b"/monitoring/prometheus/metrics",
]
NO_FIELD = b"\x07"  # With this at its end nothing is a message.
NAMES = [
    *["half_plus"] * 5,
    "identity",
    "two_inputs",
    "words",
    "examples",
    "",
    "../half_plus",
    "..%2f..%2fetc%2fpasswd",
    "half_plus/1",
    "/",
    "\x00",
    "é" * 300,
    "%",
    "%zz",
    "%ff%fe",
    "half_plus%00",
    "{}",
    "a" * 5000,
]
VALUES = [
    *["[1.5, 2]"] * 5,
    "null",
    "true",
    "-0",
    "1e999",
    "NaN",
    "-Infinity",
    "9" * 400,
    "9" * 5000,
    '"\\ud800"',
    '"\\u0000"',
    '{"b64": "AAAA"}',
    '{"b64": "!"}',
    '{"b64": 1}',
    "[]",
    "[[]]",
    "[[1], [1, 2]]",
    "[1, [2]]",
    "[" * 70 + "1" + "]" * 70,
    "[" * 3000 + "]" * 3000,
    "[" * 100_000,
    '{"a":' * 3000 + "1" + "}" * 3000,
    "[1,]",
    "01",
    "\x00",
    '"',
    '{"x": [1]}',
    '{"a": [[1, 2]], "b": [[1, 2]]}',
    '[{"a": [1, 2], "b": [1, 2]}, 1]',
]


class Fuzzer:
    """Makes up requests by chance, the same each time."""

    def __init__(self, seed=0):
        self.random = random.Random(seed)

    def message(self, method):
        """Returns the bytes of a request, of a broken one, or of none."""
        if method == PROFILE:
            return self._profile()
        made = self._reload() if method == RELOAD else self._request()
        serialized = made.SerializePartialToString()
        kind = self.random.randrange(5)
        if kind == 0:
            return self.random.randbytes(self.random.randrange(200))
        if kind == 1:
            return serialized[: self.random.randrange(len(serialized) + 1)]
        if kind == 2 and serialized:
            spoilt = bytearray(serialized)
            for _ in range(self.random.randrange(1, 6)):
                spoilt[self.random.randrange(len(spoilt))] = self.random.randrange(256)
            return bytes(spoilt)
        return serialized

    def _request(self):
        choose = self.random.choice
        kind = choose([predict_pb2.PredictRequest] * 3 + [classification_pb2.ClassificationRequest])
        if self.random.random() < 0.1:
            request = inference_pb2.MultiInferenceRequest()
            for _ in range(self.random.randrange(3)):
                self._spec(request.tasks.add(method_name=choose(["", "q"])).model_spec)
            return request
        request = kind()
        if self.random.random() < 0.95:
            self._spec(request.model_spec)
        if kind is predict_pb2.PredictRequest:
            for _ in range(self.random.randrange(3)):
                self._tensor(request.inputs[choose(["x", "a", "b", "words", "", "q" * 2000])])
            request.output_filter.extend(choose([[], ["y"], ["y", "y"], ["", "q"]]))
        elif self.random.random() < 0.8:
            example = request.input.example_list.examples.add()
            example.features.feature["x"].bytes_list.value.append(self.random.randbytes(9))
        return request

    def _profile(self):
        """Returns a short one seldom; a broken one that could be read might take hours."""
        request = protos.ProfileRequest(
            duration_ms=self.random.randrange(3),
            session_id=self.random.choice(NAMES),
            emit_xspace=True,
        )
        return request.SerializeToString() + self.random.choice([b"", *[NO_FIELD] * 19])

    def _reload(self):
        choose = self.random.choice
        request = model_management_pb2.ReloadConfigRequest()
        if self.random.random() < 0.1:
            request.config.custom_model_config.SetInParent()
        for _ in range(self.random.randrange(3)):
            model = request.config.model_config_list.config.add(name=choose(NAMES))
            model.base_path = choose(["/nowhere", "/nowhere", "", "here", "/"])
            model.model_platform = choose(["tensorflow", "tensorflow", "tensorflow", "", "q"])
            model.model_type = choose([0, 0, 0, 1, 9])
            model.model_version_policy.latest.num_versions = choose([0, 1, 2**32 - 1])
            if self.random.random() < 0.2:
                model.version_labels[choose(["stable", ""])] = choose([1, -1])
        request.metric_names.extend(choose([[], [""], ["q", "q"]]))
        return request

    def _spec(self, spec):
        choose = self.random.choice
        name = choose(NAMES)
        spec.name = name
        spec.signature_name = choose(["", "", "", "float32", "string", "uneven", "q", "\x00"])
        if self.random.random() < 0.2:
            spec.version.value = choose([1, 2, 7, 0, -1, 2**63 - 1])
        elif self.random.random() < 0.1:
            spec.version_label = choose(["stable", "", "é"])

    def _tensor(self, tensor):
        choose = self.random.choice
        tensor.dtype = choose([1, 1, 1, 2, 3, 7, 9, 10, 20, 23, 101, 0, 11, 12])
        for size in choose(
            [[], [1], [3], [1, 2], [2, 2], [0], [-1], [2**40], [2**62, 8], [1] * 70]
        ):
            tensor.tensor_shape.dim.add(size=size)
        tensor.tensor_shape.unknown_rank = self.random.random() < 0.05
        fill = choose(["float_val", "int_val", "string_val", "content", "half_val", "nothing"])
        count = self.random.randrange(5)
        if fill == "content":
            tensor.tensor_content = self.random.randbytes(4 * count)
        elif fill == "string_val":
            tensor.string_val.extend(self.random.randbytes(3) for _ in range(count))
        elif fill != "nothing":
            getattr(tensor, fill).extend([choose([0, 1, 2**31 - 1])] * count)

    def path(self):
        """Returns the target of an HTTP request."""
        choose = self.random.choice
        name = choose(NAMES).encode("utf-8", "surrogateescape")
        if self.random.random() < 0.1:
            return choose(PAGES) + choose([b"", b"", b"?", name.replace(b"\x00", b"%00")])
        parts = [b"/v1/models/", name, choose([b"", b"/versions/1", b"/versions/%d" % 10**30])]
        parts += [choose([b"", b"/labels/x", b"/metadata", b"?x=1", b"#", b"//"])]
        parts += [choose([b":predict", b":classify", b":regress", b":q", b""])]
        path = b"".join(parts) if self.random.random() < 0.9 else self._text(40)
        return path.replace(b" ", b"").replace(b"\x00", b"%00") or b"/"

    def body(self):
        """Returns the body of an HTTP request."""
        choose = self.random.choice
        if self.random.random() < 0.1:
            return self.random.randbytes(self.random.randrange(300))
        key = choose(["instances", "inputs", "examples", "context", "q"])
        fields = [f'"{key}": {choose(VALUES)}']
        if self.random.random() < 0.3:
            fields.append(f'"signature_name": {choose(VALUES)}')
        if self.random.random() < 0.2:
            fields.append(f'"instances": {choose(VALUES)}')
        body = ("{" + ", ".join(fields) + "}").encode("utf-8", "surrogatepass")
        if self.random.random() < 0.2:
            body = body[: self.random.randrange(len(body))]
        if self.random.random() < 0.2 and body:
            place = self.random.randrange(len(body))
            body = body[:place] + self.random.randbytes(2) + body[place:]
        return body

    def http_message(self):
        """Returns the bytes of an HTTP request that may be none."""
        body = self.body()
        method = self.random.choice(
            [b"POST"] * 6 + [b"GET", b"GET", b"PUT", b"HEAD", b"q", b"OPTIONS"]
        )
        length = self.random.choice([b"%d" % len(body)] * 9 + [b"x", b"-5", b""])
        lines = [method + b" " + self.path() + b" HTTP/1.1", b"Host: a", b"Connection: close"]
        lines += [b"Content-Length: " + length]
        lines += self.random.choice([[]] * 8 + [[b"Content-Encoding: gzip"], [self._text(20)]])
        message = b"\r\n".join(lines) + b"\r\n\r\n" + body
        if self.random.random() < 0.05:
            message = self.random.randbytes(self.random.randrange(1, 400))
        return message

    def _text(self, length):
        letters = string.printable.strip().encode()
        return bytes(self.random.choice(letters) for _ in range(self.random.randrange(1, length)))


def fuzz_grpc(port, fuzzer, count):
    """Returns how often each code came, and the requests whose code is none of the documented."""
    codes, strange = Counter(), []
    with grpc.insecure_channel(f"localhost:{port}") as channel:
        for _ in range(count):
            method = fuzzer.random.choice(METHODS)
            messages = [fuzzer.message(method) for _ in range(fuzzer.random.choice([1, 1, 2, 3]))]
            try:
                ask(channel, method, messages)
                code, details = "OK", ""
            except grpc.RpcError as error:
                code, details = error.code().name, error.details()
            no_message = code == "INTERNAL" and details.startswith("The request is no ")
            codes["no message" if no_message else code] += 1
            if not no_message and code not in GRPC_CODES:
                strange.append((code, details, method, messages))
    return codes, strange


def ask(channel, method, messages):
    """Asks once, or, where the method takes a stream, as often as there are messages."""
    if method == STREAM:
        list(channel.stream_stream(f"/{method}")(iter(messages), timeout=30))
    elif method == WATCH:
        call = channel.unary_stream(f"/{method}")(messages[0], timeout=30)
        next(call)
        call.cancel()
    else:
        channel.unary_unary(f"/{method}")(messages[0], timeout=30)


def fuzz_http(port, fuzzer, count):
    """As `fuzz_grpc`, over HTTP."""
    codes, strange = Counter(), []
    for _ in range(count):
        message = fuzzer.http_message()
        code, content = exchange(port, message)
        codes[code] += 1
        if code not in HTTP_CODES:
            strange.append((code, content, message))
    return codes, strange


def exchange(port, message):
    """Returns status and content of what comes back; 0 where nothing does."""
    with socket.create_connection(("localhost", port), timeout=30) as connection:
        received = b""
        try:
            connection.sendall(message)
            connection.shutdown(socket.SHUT_WR)
            while part := connection.recv(65536):
                received += part
        except ConnectionError:
            pass
    head, _, content = received.partition(b"\r\n\r\n")
    return (int(head.split()[1]) if head else 0), content[:300]


def works(grpc_port, rest_port):
    """Tells whether a request as it should be is answered as it should be, on both ports."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "half_plus"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.float32([2.0])))
    with grpc.insecure_channel(f"localhost:{grpc_port}") as channel:
        call = channel.unary_unary("/tensorflow.serving.PredictionService/Predict")
        answer = predict_pb2.PredictResponse.FromString(call(request.SerializeToString()))
    connection = http.client.HTTPConnection("localhost", rest_port, timeout=30)
    connection.request("POST", "/v1/models/half_plus:predict", '{"inputs": [2]}')
    content = json.loads(connection.getresponse().read())
    connection.close()
    return answer.outputs["y"].float_val[:] == [4.0] and content == {"outputs": [4.0]}


def test_malformed_requests_get_documented_codes(server):
    port = int(server.address.rpartition(":")[2])
    codes, strange = fuzz_grpc(port, Fuzzer(), SHORT // 2)
    assert not strange
    usual = {"OK", "no message", "NOT_FOUND", "INVALID_ARGUMENT", "UNIMPLEMENTED"}
    assert codes.keys() >= {*usual, "FAILED_PRECONDITION"}
    codes, strange = fuzz_http(server.rest_port, Fuzzer(), SHORT // 2)
    assert not strange
    assert codes.keys() >= {200, 400, 404}
    assert works(port, server.rest_port)


def test_after_any_configurations_the_right_one_is_served(model_root, options, free_port):
    path = str(model_root / "half_plus")
    chosen = options(model_base_path=path, model_name="half_plus", rest_api_port=free_port())
    fuzzer, codes = Fuzzer(), Counter()
    right = model_management_pb2.ReloadConfigRequest()
    right.config.model_config_list.config.add(
        name="half_plus", base_path=path, model_platform="tensorflow"
    )
    with Server(chosen), grpc.insecure_channel(f"localhost:{chosen.port}") as channel:
        for message in [*(fuzzer.message(RELOAD) for _ in range(100)), right.SerializeToString()]:
            try:
                ask(channel, RELOAD, [message])
                codes["OK"] += 1
            except grpc.RpcError as error:
                codes[error.code().name] += 1
        assert works(chosen.port, chosen.rest_api_port)
    # INTERNAL for bytes that are no message, UNKNOWN for models of which nothing can be loaded.
    known = {"OK", "INTERNAL", "INVALID_ARGUMENT", "FAILED_PRECONDITION", "UNKNOWN"}
    assert codes.keys() == known


@pytest.mark.slow
def test_a_hundred_thousand_malformed_requests_leave_nothing_behind(model_root, process, full):
    server = process(f"--model_root={model_root}", "--enable_grpc_healthcheck_service")
    batch = max(full(FULL) // 20, 50)
    memory, codes = [], Counter()
    for seed in range(10):
        for fuzz, port in ((fuzz_grpc, server.port), (fuzz_http, server.rest_port)):
            found, strange = fuzz(port, Fuzzer(seed), batch)
            codes += found
            assert not strange
        assert server.is_running()
        memory.append(server.memory() / MEGABYTE)
    assert works(server.port, server.rest_port)
    print(dict(codes), [f"{each:.0f} MB" for each in memory])
    assert memory[-1] < memory[2] + 30
    assert server.kill(2) == 0
