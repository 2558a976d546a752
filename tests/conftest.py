"""Three logical CPUs in every process, so that replicas have devices of their own."""

import pytest
import tensorflow as tf

(CPU,) = tf.config.list_physical_devices("CPU")
tf.config.set_logical_device_configuration(CPU, [tf.config.LogicalDeviceConfiguration()] * 3)


LONGEST = (
    "test_conformance.py",
    "test_run.py",
    "test_readme.py",
    "test_resume.py",
    "test_training.py",
    "test_workers.py",
    "test_recurrent.py",
    "test_served.py",
    "test_streaming.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]):
    """The files that take longest are first, so that no process is left alone with one."""
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(LONGEST)))
