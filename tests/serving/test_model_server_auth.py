"""Bearer tokens on both ports."""

import http.client

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2, prediction_service_pb2_grpc

from serving.model_server.errors import ServingError
from serving.model_server.server import Server

WANTED = "Requests must have the header `authorization: Bearer TOKEN`"


@pytest.fixture(scope="module")
def guarded(model_root, options, free_port, tmp_path_factory):
    file = tmp_path_factory.mktemp("auth") / "tokens"
    file.write_text("old-token\n\nnew-token\n")
    chosen = options(
        model_base_path=str(model_root / "half_plus"),
        rest_api_port=free_port(),
        auth_token_file=str(file),
        enable_grpc_healthcheck_service=True,
    )
    with Server(chosen):
        yield chosen


def over_grpc(chosen, authorization):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "default"
    request.inputs["x"].CopyFrom(tf.make_tensor_proto(np.zeros([1], np.float32)))
    metadata = [("authorization", authorization)] if authorization else []
    with grpc.insecure_channel(f"localhost:{chosen.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        try:
            return stub.Predict(request, metadata=metadata).outputs["y"].float_val[:]
        except grpc.RpcError as error:
            return error.code().name, error.details()


def over_rest(chosen, authorization, method="POST", path="/v1/models/default:predict"):
    connection = http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20)
    headers = {"Authorization": authorization} if authorization else {}
    connection.request(method, path, '{"inputs": [0]}' if method == "POST" else None, headers)
    response = connection.getresponse()
    found = response.status, response.headers["WWW-Authenticate"], response.read().decode()
    connection.close()
    return found


@pytest.mark.parametrize("authorization", ["Bearer old-token", "bearer  new-token"])
def test_who_shows_a_token_is_answered(guarded, authorization):
    assert over_grpc(guarded, authorization) == [3.0]
    assert over_rest(guarded, authorization)[0] == 200


@pytest.mark.parametrize(
    "authorization",
    ["", "Bearer", "Bearer ", "Bearer old-toke", "Bearer old-token2", "Basic old-token", "é"],
)
def test_who_shows_none_is_not(guarded, authorization):
    if authorization.isascii():
        assert over_grpc(guarded, authorization) == ("UNAUTHENTICATED", WANTED)
    status, challenge, body = over_rest(guarded, authorization)
    assert (status, challenge) == (401, "Bearer")
    assert WANTED in body


@pytest.mark.parametrize("path", ["/v1/models/default", "/models", "/config", "/none"])
def test_nothing_is_told_without_a_token(guarded, path):
    assert over_rest(guarded, "", "GET", path)[0] == 401


def test_life_and_health_are_no_secret(guarded):
    for path in ("/livez", "/readyz", "/readyz/default"):
        assert over_rest(guarded, "", "GET", path)[0] == 200
    with grpc.insecure_channel(f"localhost:{guarded.port}") as channel:
        assert channel.unary_unary("/grpc.health.v1.Health/Check")(b"", timeout=10) == b"\x08\x01"


def test_an_unknown_method_asks_for_a_token_too(guarded):
    with grpc.insecure_channel(f"localhost:{guarded.port}") as channel:
        with pytest.raises(grpc.RpcError) as raised:
            channel.unary_unary("/a.b/C")(b"", timeout=10)
        assert raised.value.code() is grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    ("content", "said"), [("\n \n", "must hold a token a line"), (None, "No such file")]
)
def test_a_file_without_tokens_keeps_the_server_from_starting(
    options, model_root, tmp_path, content, said
):
    file = tmp_path / "tokens"
    if content:
        file.write_text(content)
    with pytest.raises(ServingError, match=said):
        Server(options(model_base_path=str(model_root / "half_plus"), auth_token_file=str(file)))
