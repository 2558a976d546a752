"""Clients that are none of ours: curl, and Node's gRPC with the server's own descriptors."""

import gzip
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tensorflow as tf
from google.protobuf import descriptor_pool

from serving.model_server import grpc_streaming

HERE = Path(__file__).parent
PREDICT = "v1/models/half_plus:predict"
# Of the same bytes in every process that runs tests: they are a test's name.
ZIPPED = gzip.compress(b'{"instances": [1.0, 2.0]}', mtime=0)
PACKAGES = ["@grpc/grpc-js@1", "@grpc/proto-loader@0.8"]


@pytest.fixture
def protoset():
    """Returns the function that makes the server's descriptors."""
    if tuple(map(int, tf.__version__.split(".")[:2])) < (2, 20):
        pytest.skip("TensorFlow's API package of before 2.20 has services that cannot be imported")
    from serving.model_server import descriptors

    return descriptors.protoset


@pytest.fixture
def curl(server):
    """Returns status and body of what curl gets; the request's body goes by way of its stdin."""
    if not shutil.which("curl"):
        pytest.skip("needs the command curl")

    def call(path, *arguments, body=None):
        command = [
            "curl",
            "--silent",
            "--show-error",
            "--max-time",
            "30",
            "--write-out",
            "\n%{http_code}",
        ]
        command += ["--data-binary", "@-"] if body is not None else []
        command += [*arguments, f"http://localhost:{server.rest_port}/{path}"]
        done = subprocess.run(command, input=body, capture_output=True, check=True)
        content, _, status = done.stdout.rpartition(b"\n")
        return int(status), content

    return call


@pytest.mark.parametrize(
    ("arguments", "body"),
    [
        ((), b'{"instances": [1.0, 2.0]}'),
        (("--http1.0",), b'{"instances": [1.0, 2.0]}'),
        (("--header", "Transfer-Encoding: chunked"), b'{"instances": [1.0, 2.0]}'),
        (("--header", "Content-Encoding: gzip"), ZIPPED),
        (("--header", "Expect: 100-continue"), b'{"instances": [1.0, 2.0]}'),
    ],
)
def test_curl_gets_predictions(curl, arguments, body):
    status, content = curl(PREDICT, *arguments, body=body)
    assert (status, json.loads(content)) == (200, {"predictions": [3.5, 4.0]})


def test_curl_sends_and_gets_megabytes(curl):
    status, content = curl(PREDICT, body=json.dumps({"inputs": [0.25] * 500_000}).encode())
    assert status == 200
    assert json.loads(content) == {"outputs": [3.125] * 500_000}


def test_curl_gets_states_signatures_and_errors(curl):
    status, content = curl("v1/models/half_plus")
    assert (status, json.loads(content)["model_version_status"][0]["version"]) == (200, "2")
    status, content = curl("v1/models/half_plus/metadata")
    assert (status, json.loads(content)["model_spec"]["name"]) == (200, "half_plus")
    assert curl("v1/models/none")[0] == 404
    assert curl("readyz", "--head")[0] == 200


def test_the_descriptors_are_complete_and_in_order(protoset):
    pool = descriptor_pool.DescriptorPool()
    for file in protoset().file:
        pool.Add(file)
    for name in ("PredictionService", "ModelService", "BatchingParameters", "SSLConfig"):
        full_name = f"tensorflow.serving.{name}"
        assert pool.FindFileContainingSymbol(full_name).package == "tensorflow.serving"
    (method,) = pool.FindServiceByName("transduce.serving.StreamingService").methods
    text = (Path(grpc_streaming.__file__).parent / "streaming.proto").read_text()
    (rpc,) = re.findall(r"rpc (\w+)\(stream ([\w.]+)\)\s*returns \(stream ([\w.]+)\)", text)
    found = method.name, method.input_type.full_name, method.output_type.full_name
    assert found == rpc


@pytest.mark.slow
def test_node_asks_with_the_servers_descriptors(server, protoset, tmp_path):
    if not shutil.which("node") or not shutil.which("npm"):
        pytest.skip("needs Node.js: the commands node and npm")
    install = ["npm", "install", "--no-audit", "--no-fund", *PACKAGES]
    done = subprocess.run(install, cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm could not install {PACKAGES}: {done.stderr[-300:]}")
    file = tmp_path / "model_server.protoset"
    write = [sys.executable, "-m", "serving.model_server.descriptors", str(file)]
    subprocess.run(write, check=True, capture_output=True)
    shutil.copy(HERE / "client.js", tmp_path)
    command = ["node", "client.js", str(file), server.address]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "predicted": [3.5, 4],
        "version": 2,
        "states": ["AVAILABLE"],
        "signatures": True,
        "words": ["0", "-1"],
        "missing": [5, "Servable not found for request: Latest(none)"],
        "streamed": [[3], [3.5], [4]],
    }
