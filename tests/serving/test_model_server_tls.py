"""TLS and mutual TLS, and what a channel may carry."""

import http.client
import shutil
import ssl
import subprocess
import threading
import time

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.model_server import rest_front
from serving.model_server.errors import ServingError
from serving.model_server.http_messages import Response
from serving.model_server.http_server import HttpServer
from serving.model_server.server import Server


def openssl(folder, *arguments):
    subprocess.run(["openssl", *arguments], cwd=folder, check=True, capture_output=True)


@pytest.fixture(scope="module")
def certificates(tmp_path_factory):
    """An authority, and a server and a client that it vouches for; the texts of their files."""
    if not shutil.which("openssl"):
        pytest.skip("needs the command openssl")
    folder = tmp_path_factory.mktemp("certificates")
    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl(
        *(folder, "req", "-x509", *curve, "-keyout", "ca.key", "-out", "ca.pem", "-days", "2"),
        *("-subj", "/CN=authority", "-addext", "keyUsage=critical,keyCertSign"),
    )
    (folder / "names").write_text("subjectAltName=DNS:localhost")
    for name in ("server", "client"):
        openssl(
            *(folder, "req", *curve, "-keyout", f"{name}.key", "-out", f"{name}.csr"),
            *("-subj", f"/CN={name}"),
        )
        openssl(
            *(folder, "x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key"),
            *("-CAcreateserial", "-days", "2", "-extfile", "names", "-out", f"{name}.pem"),
        )
    return {file.name: file.read_text() for file in folder.iterdir()}


def config(certificates, **more):
    fields = {"server_key": certificates["server.key"], "server_cert": certificates["server.pem"]}
    lines = [f"{name}: {quoted(value)}" for name, value in {**fields, **more}.items()]
    return "\n".join(lines)


def quoted(value):
    if isinstance(value, bool):
        return str(value).lower()
    return '"' + value.replace("\n", "\\n") + '"'


@pytest.fixture
def serve(model_root, options, tmp_path):
    """Starts a server with an SSL configuration; gives its options."""
    running = []

    def start(text="", **changed):
        if text:
            changed["ssl_config_file"] = str(tmp_path / "ssl.config")
            (tmp_path / "ssl.config").write_text(text)
        chosen = options(model_base_path=str(model_root / "half_plus"), **changed)
        server = Server(chosen)
        server.start()
        running.append(server)
        return chosen

    yield start
    for server in running:
        server.stop()


def predict(channel, size=1):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "default"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.arange(size, dtype=np.float32)))
    stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
    return stub.Predict(request, timeout=20).outputs["y"].float_val[0]


def failure(channel, **how):
    with pytest.raises(grpc.RpcError) as raised:
        predict(channel, **how)
    return raised.value.code().name


def trusting(certificates, *pair):
    given = [certificates[name].encode() for name in pair]
    return grpc.ssl_channel_credentials(certificates["ca.pem"].encode(), *given)


def test_a_server_with_a_certificate_answers_those_who_trust_it(serve, certificates):
    chosen = serve(config(certificates))
    address = f"localhost:{chosen.port}"
    with grpc.secure_channel(address, trusting(certificates)) as channel:
        assert predict(channel) == 3
    with grpc.insecure_channel(address) as channel:
        assert failure(channel) == "UNAVAILABLE"


def test_a_server_may_ask_who_its_client_is(serve, certificates):
    chosen = serve(config(certificates, custom_ca=certificates["ca.pem"], client_verify=True))
    address = f"localhost:{chosen.port}"
    known = trusting(certificates, "client.key", "client.pem")
    with grpc.secure_channel(address, known) as channel:
        assert predict(channel) == 3
    with grpc.secure_channel(address, trusting(certificates)) as channel:
        assert failure(channel) == "UNAVAILABLE"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("key: 1", "Invalid protobuf file: "),
        ("client_verify: true", "client_verify needs a custom_ca to verify clients by"),
    ],
)
def test_a_bad_file_keeps_the_server_from_starting(serve, text, message):
    with pytest.raises(ServingError, match=message):
        serve(text)


def over_rest(chosen, certificates, *pair, folder=None):
    context = ssl.create_default_context(cadata=certificates["ca.pem"])
    if pair:
        paths = [folder / name for name in pair]
        for path in paths:
            path.write_text(certificates[path.name])
        context.load_cert_chain(*paths)
    connection = http.client.HTTPSConnection(
        "localhost", chosen.rest_api_port, timeout=20, context=context
    )
    try:
        connection.request("GET", "/v1/models/default")
        return connection.getresponse().status
    finally:
        connection.close()


@pytest.fixture
def serve_rest(serve, free_port, tmp_path):
    def start(text):
        (tmp_path / "rest.config").write_text(text)
        file = str(tmp_path / "rest.config")
        return serve(rest_api_port=free_port(), rest_api_ssl_config_file=file)

    return start


def test_rest_answers_over_tls(serve_rest, certificates):
    chosen = serve_rest(config(certificates))
    assert over_rest(chosen, certificates) == 200
    plain = http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20)
    with pytest.raises((http.client.HTTPException, OSError)):
        plain.request("GET", "/v1/models/default") or plain.getresponse()
    plain.close()


def test_it_is_noticed_over_tls_that_a_caller_leaves(certificates, free_port, tmp_path):
    asked, left = threading.Event(), threading.Event()

    def answer(request):
        asked.set()
        for _ in range(500):
            if request.is_gone():
                left.set()
                break
            time.sleep(0.01)
        return Response(200)

    (tmp_path / "rest.config").write_text(config(certificates))
    port, tls = free_port(), rest_front._tls(str(tmp_path / "rest.config"))
    server = HttpServer(port, answer, seconds=5, tls=tls)
    server.start()
    context = ssl.create_default_context(cadata=certificates["ca.pem"])
    connection = http.client.HTTPSConnection("localhost", port, timeout=20, context=context)
    connection.request("GET", "/")
    assert asked.wait(10)
    connection.close()
    assert left.wait(10)
    server.stop(grace_seconds=5)


def test_rest_may_ask_who_its_client_is(serve_rest, certificates, tmp_path):
    chosen = serve_rest(config(certificates, custom_ca=certificates["ca.pem"], client_verify=True))
    assert over_rest(chosen, certificates, "client.pem", "client.key", folder=tmp_path) == 200
    with pytest.raises(OSError):  # noqa: PT011, at the handshake or after it
        over_rest(chosen, certificates)


@pytest.mark.parametrize("text", ["key: 1", "server_key: 'x'", "client_verify: true"])
def test_a_bad_rest_file_keeps_the_server_from_starting(serve_rest, text):
    with pytest.raises(ServingError, match=r"rest\.config"):
        serve_rest(text)


def test_alts_needs_google_cloud(serve):
    with pytest.raises(ServingError, match="--use_alts_credentials works on Google Cloud only"):
        serve(use_alts_credentials=True)


def test_arguments_of_the_channel_are_passed_on(serve):
    chosen = serve(grpc_channel_arguments="grpc.max_receive_message_length=4000,a.b=c")
    with grpc.insecure_channel(f"localhost:{chosen.port}") as channel:
        assert predict(channel) == 3
        assert failure(channel, size=2000) == "RESOURCE_EXHAUSTED"


def test_messages_may_be_large(serve):
    chosen = serve()
    unlimited = [("grpc.max_receive_message_length", -1)]
    with grpc.insecure_channel(f"localhost:{chosen.port}", unlimited) as channel:
        assert predict(channel, size=2_000_000) == 3
