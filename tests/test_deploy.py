"""The manifests of `deploy/`: they are for TF Serving, whose flags and paths are ours, too."""

import re
from pathlib import Path

import pytest
import yaml

from serving.model_server import flags, protos

DEPLOY = Path(__file__).resolve().parents[1] / "deploy"


def compose():
    text = re.sub(r"\$\{MODEL(:\?[^}]*)?\}", "m", (DEPLOY / "compose.yaml").read_text())
    return yaml.safe_load(text)["services"]["model-server"]


def kubernetes(kind):
    documents = yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())
    return next(each for each in documents if each["kind"] == kind)


def container():
    return kubernetes("Deployment")["spec"]["template"]["spec"]["containers"][0]


@pytest.mark.parametrize("arguments", [compose()["command"], container()["args"]])
def test_the_flags_are_known_and_have_an_effect(arguments):
    command = flags.parse(arguments)
    assert (command.unknown, command.ignored) == ((), ())
    flags.check(command.options)
    assert (command.options.port, command.options.rest_api_port) == (8500, 8501)
    assert command.options.model_base_path == f"/models/{command.options.model_name}"


def test_the_ports_are_those_of_the_flags():
    assert compose()["ports"] == ["8500:8500", "8501:8501"]
    ports = {port["name"]: port["containerPort"] for port in container()["ports"]}
    assert ports == {"grpc": 8500, "rest": 8501}
    service = kubernetes("Service")["spec"]["ports"]
    assert {port["targetPort"]: port["port"] for port in service} == ports


def test_the_probes_ask_what_the_server_answers():
    options = flags.parse(container()["args"]).options
    probe = container()["readinessProbe"]["httpGet"]
    assert probe == {"path": f"/v1/models/{options.model_name}/metadata", "port": "rest"}
    assert options.enable_grpc_healthcheck_service
    assert container()["livenessProbe"]["grpc"]["port"] == options.port


def test_the_metrics_are_where_they_are_looked_for(tmp_path):
    text = kubernetes("ConfigMap")["data"]["monitoring.config"]
    assert text == (DEPLOY / "monitoring.config").read_text()
    config = protos.read(str(DEPLOY / "monitoring.config"), protos.MonitoringConfig)
    annotations = kubernetes("Deployment")["spec"]["template"]["metadata"]["annotations"]
    assert config.prometheus_config.enable
    assert annotations["prometheus.io/path"] == config.prometheus_config.path
    assert annotations["prometheus.io/port"] == str(container()["ports"][1]["containerPort"])


def test_one_release_of_the_image_is_named():
    (tag,) = re.findall(r"serving:\$\{TENSORFLOW_SERVING:-(.+)\}", compose()["image"])
    assert container()["image"] == f"tensorflow/serving:{tag}"
