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


def test_one_device_cannot_be_mirrored():
    with pytest.raises(UsageError, match=r"two devices at least.* 1 CPU; 'one_device' would work"):
        strategies.mirrored(tf.config.list_logical_devices("CPU")[:1])


def test_a_machine_without_a_tpu_is_told_so():
    with pytest.raises(UsageError, match=r"must have a TPU.* Received: TensorFlow 2\..*'local'"):
        strategies.choose("tpu")
