"""Versions that are not whole, or not left alone while they are loaded."""

import shutil
import threading

import pytest

from serving.client import Client
from serving.model_server import folder
from serving.model_server.batching import Batching
from serving.model_server.errors import ServingError, invalid
from serving.model_server.flags import Options
from serving.model_server.lifecycle import State
from serving.model_server.loader import Loader
from serving.model_server.manager import Manager, Retry
from serving.model_server.metrics import Metrics
from serving.model_server.server import Server

NEVER = Retry(count=0)


@pytest.fixture
def version(tmp_path, model_root):
    """A version of half_plus, which has variables, to be taken apart."""
    shutil.copytree(model_root / "half_plus/1", tmp_path / "model/1")
    return tmp_path / "model/1"


def failure(path):
    metrics = Metrics()
    loader = Loader(Options(), metrics, Batching(Options(), metrics))
    with pytest.raises(ServingError) as raised:
        loader.load(str(path), "m")
    return str(raised.value)


def test_a_graph_without_the_values_of_its_variables_is_not_loaded(version):
    shutil.rmtree(version / "variables")
    assert failure(version) == (
        f"FAILED_PRECONDITION: {version} is not complete: its graph has variables, but there is "
        "no variables/variables.index. It is loaded once the folder is whole."
    )


@pytest.mark.parametrize(
    "name", ["saved_model.pb", "variables/variables.index", "variables/variables.data*"]
)
@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_a_file_cut_short_is_not_loaded(version, name, share):
    (file,) = version.glob(name)
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])
    assert failure(version)


def test_files_are_told_by_path_size_and_time(version):
    stamp = folder.stamp(str(version))
    assert stamp == folder.stamp(str(version))
    with open(version / "saved_model.pb", "ab") as file:
        file.write(b"x")
    longer = folder.stamp(str(version))
    (version / "saved_model.pb").unlink()
    assert len({stamp, longer, folder.stamp(str(version)), folder.stamp("/none")}) == 4


def test_a_version_that_changes_while_it_is_loaded_is_not_served(version):
    closed = threading.Event()

    class Servable:
        close = staticmethod(closed.set)

    def load(path, _):
        (version / "late").write_text("late")
        return Servable

    manager = Manager(load, threads=1, retry=NEVER)
    manager.aspire("m", {1: str(version)})
    manager.wait_until_settled()
    (status,) = manager.status("m")
    assert status.state is State.END
    assert "changed while it was being loaded" in str(status.error)
    assert closed.is_set()
    manager.close()


def test_a_failed_version_is_tried_again_once_its_folder_has_changed_and_rests(version):
    attempts = []

    def load(path, _):
        attempts.append(path)
        raise invalid("not yet")

    manager = Manager(load, threads=1, retry=NEVER)

    def poll():
        manager.aspire("m", {1: str(version)})
        manager.wait_until_settled()
        return len(attempts)

    assert [poll(), poll(), poll()] == [1, 1, 1]
    (version / "more").write_text("more")
    assert poll() == 1, "it may still be changing"
    (version / "more").write_text("more and more")
    assert poll() == 1
    assert [poll(), poll(), poll()] == [2, 2, 2]
    manager.close()


def test_a_version_copied_file_by_file_is_served_once_it_is_whole(
    version, options, tmp_path, save_half_plus
):
    chosen = options(model_base_path=str(version.parent), model_name="m")
    save_half_plus(tmp_path / "new", 5.0)
    files = sorted(file for file in (tmp_path / "new").rglob("*") if file.is_file())
    with Server(chosen), Client(f"localhost:{chosen.port}") as client:
        answers = []
        for file in files:
            target = version.parent / "2" / file.relative_to(tmp_path / "new")
            target.parent.mkdir(parents=True, exist_ok=True)
            content = file.read_bytes()
            target.write_bytes(content[: len(content) // 2])
            answers.append(client.predict("m", {"x": [0.0]})["y"].tolist())
            threading.Event().wait(0.12)
            target.write_bytes(content)
        assert {tuple(answer) for answer in answers} == {(2.0,)}
        while client.predict("m", {"x": [0.0]})["y"].tolist() != [5.0]:
            threading.Event().wait(0.02)
