import json

import pytest

from pipelines.cluster import Cluster, tf_config
from pipelines.errors import UsageError

TWO = {"worker": ["host0:2222", "host1:2222"]}
ROLES = {"chief": ["a:1"], "worker": ["b:2", "b:3"]}
SERVED = ROLES | {"ps": ["c:4"]}


@pytest.fixture
def read(monkeypatch):
    """Returns the cluster of a TF_CONFIG."""

    def of(text):
        monkeypatch.setenv("TF_CONFIG", text)
        return Cluster.of_environment()

    return of


def test_without_tf_config_there_is_no_cluster(read, monkeypatch):
    assert read("") is None
    monkeypatch.delenv("TF_CONFIG")
    assert Cluster.of_environment() is None


def test_without_a_chief_the_first_worker_is_it(read):
    first, second = (read(tf_config(TWO, "worker", index)) for index in (0, 1))
    assert (first.name, first.address, first.is_chief) == ("worker 0", "host0:2222", True)
    assert (second.name, second.address, second.is_chief) == ("worker 1", "host1:2222", False)
    assert second.chief == "worker 0"
    assert second.others == {"worker 0": "host0:2222"}
    assert second.workers == 2


def test_a_chief_trains_too(read):
    worker, chief = read(tf_config(ROLES, "worker", 0)), read(tf_config(ROLES, "chief", 0))
    assert (worker.chief, worker.is_chief, worker.workers) == ("chief 0", False, 3)
    assert list(worker.others) == ["chief 0", "worker 1"]
    assert (chief.is_chief, chief.workers) == (True, 3)


def test_a_chief_with_parameter_servers_does_not_train(read):
    chief, server, worker = (read(tf_config(SERVED, role, 0)) for role in ("chief", "ps", "worker"))
    assert (chief.is_chief, chief.trains, chief.workers) == (True, False, 2)
    assert (server.chief, server.trains, worker.trains) == ("chief 0", False, True)
    assert list(worker.others) == ["chief 0", "worker 1", "ps 0"]


def test_a_cluster_must_be_of_its_strategy(read):
    read(tf_config(SERVED, "chief", 0)).require(servers=True)
    read(tf_config(ROLES, "chief", 0)).require(servers=False)
    with pytest.raises(UsageError, match=r"'multi_worker'\. Received: 1 chief, 2 worker, 1 ps$"):
        read(tf_config(SERVED, "chief", 0)).require(servers=False)
    for other in (ROLES, {"ps": ["a:1"], "worker": ["b:2"]}):
        with pytest.raises(UsageError, match="name a chief, workers and parameter servers"):
            read(tf_config(other, "worker", 0)).require(servers=True)


def test_what_else_an_operator_says_is_no_matter(read):
    told = json.loads(tf_config(TWO, "worker", 1)) | {"environment": "cloud"}
    assert read(json.dumps(told)).name == "worker 1"


BAD = {
    '{"cluster"': "EOF while parsing",
    "[]": "should be an object",
    "{}": "at cluster: Field required",
    '{"cluster": {"worker": ["a:1"]}}': "at task: Field required",
    tf_config({"worker": "a:1"}, "worker", 0): "at cluster.worker: .* valid array, not 'a:1'",
    tf_config({"worker": ["a:1", "b"]}, "worker", 0): "at cluster.worker.1: .*not 'b'",
    tf_config({"worker": ["a:0"]}, "worker", 0): "at cluster.worker.0: .*not 'a:0'",
    tf_config({"worker": ["a:65536"]}, "worker", 0): "the port in 1 … 65535, not 'a:65536'",
    tf_config({"worker": []}, "worker", 0): "at cluster.worker: .* at least 1 item",
    tf_config({"master": ["a:1"]}, "worker", 0): "at cluster.master.* 'chief', 'worker' or 'ps'",
    tf_config(TWO, "evaluator", 0): "at task.type: .*not 'evaluator'",
    tf_config(TWO, "worker", -1): "at task.index: .*greater than or equal to 0",
    tf_config(TWO, "worker", 2): "Received: worker 2, and a cluster of 2 worker",
    tf_config(TWO, "ps", 0): "Received: ps 0, and a cluster of 2 worker",
    tf_config({"worker": ["a:1", "a:1"]}, "worker", 0): "name each HOST:PORT once",
    tf_config({"chief": ["a:1", "a:2"]}, "chief", 0): "may name one chief. Received: 2 chief",
}


@pytest.mark.parametrize("text", BAD)
def test_a_malformed_tf_config_is_refused_with_the_place(read, text):
    with pytest.raises(UsageError, match=f"^TF_CONFIG.*{BAD[text]}"):
        read(text)
