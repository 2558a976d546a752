"""What the server tells of itself: life, readiness, models, configuration."""

import http.client
import json
import threading
from types import SimpleNamespace

import grpc
import pytest

from serving.model_server.server import Server


@pytest.fixture(scope="module")
def served(model_root, options, free_port, tmp_path_factory):
    """A server of a good model with two labels, and of one that is not there."""
    file = tmp_path_factory.mktemp("admin") / "models.config"
    path = model_root / "half_plus"
    file.write_text(
        f"""model_config_list {{
            config {{ name: "half" base_path: "{path}" model_platform: "tensorflow"
                model_version_policy {{ all {{}} }}
                version_labels {{ key: "stable" value: 1 }}
                version_labels {{ key: "canary" value: 2 }} }}
            config {{ name: "none" base_path: "/none" model_platform: "tensorflow" }}
        }}"""
    )
    chosen = options(model_config_file=str(file), rest_api_port=free_port())
    with Server(chosen):
        yield chosen


def get(port, path, method="GET"):
    connection = http.client.HTTPConnection("localhost", port, timeout=20)
    connection.request(method, path)
    response = connection.getresponse()
    answer = SimpleNamespace(status=response.status, body=response.read(), headers=response.headers)
    connection.close()
    return answer


def test_the_server_lives_and_is_ready(served):
    for path, word in (("/livez", "alive"), ("/readyz", "ready"), ("/readyz/half", "ready")):
        answer = get(served.rest_api_port, path)
        assert (answer.status, json.loads(answer.body)) == (200, {"status": word})
        assert answer.headers["Content-Type"] == "application/json"
        assert get(served.rest_api_port, path, "HEAD").status == 200


@pytest.mark.parametrize("name", ["none", "unheard%20of", "half/1"])
def test_a_model_that_cannot_be_asked_is_not_ready(served, name):
    assert get(served.rest_api_port, f"/readyz/{name}").status == 503


@pytest.mark.parametrize("path", ["/", "/model", "/models/", "/config?x", "/livezz"])
def test_other_paths_are_not_there_as_in_tensorflow_serving(served, path):
    assert get(served.rest_api_port, path).status == 404


def test_nothing_of_it_is_for_posting(served):
    for path in ("/livez", "/readyz", "/models", "/config"):
        assert get(served.rest_api_port, path, "POST").status == 404


def test_the_models_are_listed(served):
    (half,) = json.loads(get(served.rest_api_port, "/models").body)["models"]
    assert half["name"] == "half"
    assert half["labels"] == {"stable": 1, "canary": 2}
    assert [(each["version"], each["state"]) for each in half["versions"]] == [
        (2, "AVAILABLE"),
        (1, "AVAILABLE"),
    ]
    assert half["versions"][0]["signatures"] == ["__saved_model_init_op", "serving_default"]
    assert half["versions"][0]["error"] == ""


def test_the_configuration_is_read_back(served):
    half, none = json.loads(get(served.rest_api_port, "/config").body)["model_config_list"][
        "config"
    ]
    assert (half["name"], none["base_path"]) == ("half", "/none")
    assert half["version_labels"] == {"stable": "1", "canary": "2"}


def test_the_models_under_a_root_are_read_back_as_a_configuration(server):
    models = json.loads(get(server.rest_port, "/config").body)["model_config_list"]["config"]
    (half,) = [model for model in models if model["name"] == "half_plus"]
    assert half["base_path"].endswith("/half_plus")
    assert half["model_platform"] == "tensorflow"


def test_a_server_that_is_to_stop_says_so_before_it_does(model_root, options, free_port):
    chosen = options(
        model_base_path=str(model_root / "half_plus"),
        rest_api_port=free_port(),
        shutdown_delay_seconds=2,
        enable_grpc_healthcheck_service=True,
    )
    server = Server(chosen)
    server.start()
    stopping = threading.Thread(target=server.stop)
    assert get(chosen.rest_api_port, "/readyz").status == 200
    with grpc.insecure_channel(f"localhost:{chosen.port}") as channel:
        check = channel.unary_unary("/grpc.health.v1.Health/Check")
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")(b"", timeout=20)
        serving, not_serving = b"\x08\x01", b"\x08\x02"
        assert check(b"") == next(watch) == serving
        stopping.start()
        assert next(watch) == check(b"") == not_serving
    for path, status in (("/readyz", 503), ("/readyz/default", 503), ("/livez", 200)):
        assert get(chosen.rest_api_port, path).status == status
    assert get(chosen.rest_api_port, "/v1/models/default").status == 200
    stopping.join()
