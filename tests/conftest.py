"""Three logical CPUs in every process, so that replicas have devices of their own."""

import pytest
import tensorflow as tf

(CPU,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 3)


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """The file that takes longest is first, so that no process is left alone with it."""
    items.sort(key=lambda item: item.path.name != "test_conformance.py")
