"""Where replicas of a model run: chosen here and nowhere else."""

from __future__ import annotations

import tensorflow as tf


def describe(strategy: tf.distribute.Strategy) -> str:
    """Returns the devices that a strategy runs on, as `CPU (1)`: the kind and how many."""
    devices = strategy.extended.worker_devices
    return f"{tf.DeviceSpec.from_string(devices[0]).device_type} ({len(devices)})"


def choose(name: str) -> tf.distribute.Strategy:
    """Returns the strategy called `name`: both there are take the first GPU, else the CPU."""
    device = "GPU:0" if tf.config.list_logical_devices("GPU") else "CPU:0"
    if name in ("auto", "one_device"):
        return tf.distribute.OneDeviceStrategy(device)
    raise ValueError(f"`strategy` must be one of 'auto', 'one_device'. Received: {name!r}")
