"""Memory and threads, which come back when a version goes."""

import os
import threading
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf

from serving.client import Client
from serving.model_server.server import Server

MEGABYTE = 2**20
CYCLES = 50


class Large(tf.Module):
    """Adds 32 MB of numbers up."""

    def __init__(self):
        self.numbers = tf.Variable(tf.ones([8 * MEGABYTE]))

    @tf.function(input_signature=[tf.TensorSpec([None], tf.float32, name="x")])
    def __call__(self, x):
        return {"y": x + tf.reduce_sum(self.numbers)}


def memory():
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE") / MEGABYTE


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc")
def test_fifty_versions_that_come_and_go_leave_nothing(tmp_path, options):
    module, shelf, place = Large(), tmp_path / "shelf", tmp_path / "m"
    tf.saved_model.save(module, str(shelf), signatures=module.__call__)
    place.mkdir()
    (place / "1").symlink_to(shelf)
    where = {"model_base_path": str(place), "model_name": "m"}
    chosen = options(enable_batching=True, file_system_poll_wait_seconds=0, **where)
    found, threads = [], []
    with Server(chosen) as server, Client(f"localhost:{chosen.port}") as client:
        for version in range(2, CYCLES + 2):
            server._manager.aspire("m", {version: str(shelf)})
            server._manager.wait_until_settled()
            answer = client.predict("m", {"x": np.float32([1])}, version=version)
            assert answer["y"].tolist() == [8 * MEGABYTE + 1]
            found.append(memory())
            threads.append(threading.active_count())
    print([f"{each:.0f} MB" for each in found[::5]], threads[::5])
    assert max(found[-5:]) < max(found[5:15]) + 32, "one version more than there was"
    assert threads[-1] <= max(threads[5:15])
