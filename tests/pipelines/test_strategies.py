from types import SimpleNamespace

import pytest
import tensorflow as tf

from pipelines import strategies
from pipelines.errors import UsageError


@pytest.mark.parametrize("name", ["auto", "one_device"])
def test_one_device_has_one_replica(name):
    strategy = strategies.choose(name)
    assert strategies.describe(strategy) == "one_device, 1 replica on CPU"
    assert strategies.compiles_replicas(strategy)
    assert strategies.is_chief(strategy)


def test_mirrored_takes_every_logical_cpu_where_there_is_no_gpu():
    strategy = strategies.choose("mirrored")
    assert strategies.describe(strategy) == "mirrored, 3 replicas on CPU"
    assert not strategies.compiles_replicas(strategy)


@pytest.mark.parametrize(
    ("device", "variable", "said"),
    [
        ("/device:CPU:0", "", False),
        ("/device:GPU:0", "", True),
        ("/device:GPU:0", "0", True),
        ("/device:GPU:0", "1", False),
    ],
)
def test_a_gpu_that_adds_up_in_any_order_is_told_of(monkeypatch, device, variable, said):
    monkeypatch.delenv("TF_DETERMINISTIC_OPS", raising=False)
    if variable:
        monkeypatch.setenv("TF_DETERMINISTIC_OPS", variable)
    strategy = SimpleNamespace(extended=SimpleNamespace(worker_devices=(device,)))
    assert ("TF_DETERMINISTIC_OPS=1" in strategies.inexactness(strategy)) == said


def test_one_device_cannot_be_mirrored():
    with pytest.raises(UsageError, match=r"two devices at least.* 1 CPU; 'one_device' would work"):
        strategies.mirrored(tf.config.list_logical_devices("CPU")[:1])


def test_a_machine_without_a_tpu_is_told_so():
    with pytest.raises(UsageError, match=r"must have a TPU.* Received: TensorFlow 2\..*'local'"):
        strategies.choose("tpu")
