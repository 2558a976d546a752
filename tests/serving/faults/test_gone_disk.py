"""A disk that goes away, and comes back."""

import logging
import time

import numpy as np
import pytest

from serving.client import Client
from serving.model_server.server import Server

ZERO = np.float32([0])


def wait_until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.02)


@pytest.mark.parametrize("by_root", [True, False])
def test_what_is_loaded_is_served_while_the_disk_is_gone(tmp_path, shelf, options, by_root, caplog):
    disk, away = tmp_path / "disk", tmp_path / "away"
    (disk / "m").mkdir(parents=True)
    shelf.put(1, 1, disk / "m/1")
    where = {"model_root": str(disk)} if by_root else {"model_base_path": str(disk / "m")}
    chosen = options(model_name="m", **where)
    with Server(chosen), Client(f"localhost:{chosen.port}") as client:
        disk.rename(away)
        wait_until(lambda: "Could not find base path" in caplog.text)
        for _ in range(5):
            assert client.predict("m", {"x": ZERO})["y"].tolist() == [1001]
            time.sleep(0.05)
        disk.write_text("not even a folder")
        time.sleep(0.2)
        assert client.predict("m", {"x": ZERO})["y"].tolist() == [1001]
        disk.unlink()
        shelf.put(1, 2, away / "m/2")
        away.rename(disk)
        wait_until(lambda: client.predict("m", {"x": ZERO})["y"].tolist() == [1002])
    errors = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert len(errors) <= 3, "it is said once, not at every look"


def test_a_version_whose_disk_goes_while_it_is_loaded_is_loaded_later(tmp_path, shelf, options):
    (tmp_path / "m").mkdir()
    shelf.put(1, 1, tmp_path / "m/1")
    chosen = options(model_base_path=str(tmp_path / "m"), model_name="m")
    with Server(chosen), Client(f"localhost:{chosen.port}") as client:
        shelf.put(1, 2, tmp_path / "whole")
        (tmp_path / "m/2").mkdir()
        for name in ("saved_model.pb", "fingerprint.pb"):
            (tmp_path / "whole" / name).rename(tmp_path / "m/2" / name)
        (tmp_path / "m/2/variables").symlink_to(tmp_path / "gone")
        wait_until(lambda: any(each["error"] for each in client.status("m")))
        assert client.predict("m", {"x": ZERO})["y"].tolist() == [1001]
        (tmp_path / "whole/variables").rename(tmp_path / "gone")
        wait_until(lambda: client.predict("m", {"x": ZERO})["y"].tolist() == [1002])
