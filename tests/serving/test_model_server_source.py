import os
import threading

import pytest

from serving.model_server import config, source
from serving.model_server.errors import ServingError
from serving.model_server.flags import Options


def make_folders(root, *paths):
    for path in paths:
        (root / path).mkdir(parents=True)


def test_versions_are_the_folders_whose_names_are_numbers(tmp_path):
    make_folders(tmp_path, "1", "00000123", "tmp-4", ".5", "6a", "-7", "٣", str(2**63))
    (tmp_path / "8").write_text("a file")
    assert source.versions_in(str(tmp_path)) == {
        1: str(tmp_path / "1"),
        123: str(tmp_path / "00000123"),
    }


def test_of_two_names_of_a_number_the_last_counts(tmp_path):
    make_folders(tmp_path, "7", "007")
    assert source.versions_in(str(tmp_path)) == {7: str(tmp_path / "7")}


@pytest.mark.parametrize(
    ("policy", "versions"),
    [
        (source.latest(1), {10}),
        (source.latest(0), {10}),
        (source.latest(2), {9, 10}),
        (source.latest(5), {1, 9, 10}),
        (source.every, {1, 9, 10}),
        (source.specific([9, 1, 7]), {1, 9}),
        (source.specific([]), set()),
    ],
)
def test_the_policy_says_which_versions_are_wanted(policy, versions):
    found = {1: "m/1", 9: "m/9", 10: "m/10"}
    wanted = source.wanted(source.Model("m", "m", policy), found)
    assert wanted == {version: found[version] for version in versions}


def test_models_are_the_folders_with_versions(tmp_path):
    make_folders(tmp_path, "b/1", "a/2", "empty", ".hidden/1", "other/text")
    assert [model.name for model in source.models_in(str(tmp_path))] == ["a", "b"]


def poller(root, told):
    return source.Source(
        lambda: source.models_in(str(root)),
        lambda name, versions: told.append((name, set(versions))),
        wait_seconds=0,
    )


def test_a_poll_tells_of_every_model(tmp_path):
    make_folders(tmp_path, "a/1", "b/2")
    told = []
    poller(tmp_path, told).poll()
    assert sorted(told) == [("a", {1}), ("b", {2})]


def test_a_negative_wait_looks_never(tmp_path):
    make_folders(tmp_path, "a/1")
    told = []
    never = source.Source(lambda: [], lambda *found: told.append(found), wait_seconds=-1)
    never.start()
    never.watch(lambda: source.models_in(str(tmp_path)))
    never.stop()
    assert told == []


def test_a_model_that_goes_is_told_without_versions(tmp_path):
    make_folders(tmp_path, "a/1", "b/2")
    told = []
    poll = poller(tmp_path, told).poll
    poll()
    (tmp_path / "a" / "1").rmdir()
    told.clear()
    poll()
    assert sorted(told) == [("a", set()), ("b", {2})]


def test_a_root_that_goes_changes_nothing(tmp_path, caplog):
    make_folders(tmp_path / "root", "a/1")
    told = []
    poll = poller(tmp_path / "root", told).poll
    poll()
    (tmp_path / "root").rename(tmp_path / "away")
    told.clear()
    poll()
    poll()
    assert told == []
    assert len(caplog.records) == 1  # Said once, not at every poll.


def test_a_missing_base_path_is_told_and_stops_no_other_model(tmp_path):
    make_folders(tmp_path, "b/2", "empty")
    told = []
    models = [source.Model(name, str(tmp_path / name)) for name in ("none", "empty", "b")]
    watcher = source.Source(
        lambda: models, lambda name, versions: told.append((name, set(versions))), wait_seconds=0
    )
    watcher.poll()
    assert sorted(told) == [("b", {2}), ("empty", set())]
    assert "Could not find base path" in str(watcher.error("none"))
    assert "No versions of servable empty found under base path" in str(watcher.error("empty"))
    assert watcher.error("b") is None


def test_a_disk_that_does_not_answer_stops_no_other_model(tmp_path, monkeypatch):
    make_folders(tmp_path, "a/1", "b/2")
    answers, told = threading.Event(), []
    scandir = os.scandir

    def hang(path):
        if str(path).endswith("a"):
            answers.wait(20)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", hang)
    monkeypatch.setattr(source, "_PATIENCE_SECONDS", 0.1)
    models = [source.Model(name, str(tmp_path / name)) for name in "ab"]
    watcher = source.Source(lambda: models, lambda *found: told.append(found), wait_seconds=0)
    watcher.poll()
    watcher.poll()
    assert [name for name, _ in told] == ["b", "b"]
    assert str(watcher.error("a")) == f"UNAVAILABLE: Base path {tmp_path}/a does not answer"
    models.pop(0)
    watcher.poll()
    answers.set()
    watcher._looks["a"].join()
    assert ("a", {1: f"{tmp_path}/a/1"}) not in told, "it is not wanted any more"


@pytest.mark.parametrize(
    ("flag", "folders", "said"),
    [
        ("model_root", [], "Expected there: NAME/VERSION/saved_model.pb"),
        ("model_root", ["1"], "it is the folder of one model. Give --model_base_path="),
        ("model_root", ["m/latest"], "Expected there: NAME/VERSION/saved_model.pb"),
        ("model_base_path", [], "Expected there: VERSION/saved_model.pb"),
        ("model_base_path", ["m/1"], "Expected there: VERSION/saved_model.pb"),
    ],
)
def test_a_folder_without_models_says_what_is_expected(tmp_path, flag, folders, said):
    make_folders(tmp_path, *folders)
    with pytest.raises(ServingError) as raised:
        config.from_flags(Options(**{flag: str(tmp_path)}))
    assert said in str(raised.value)
    assert str(tmp_path) in str(raised.value)


@pytest.mark.parametrize("flag", ["model_root", "model_base_path"])
def test_a_folder_that_is_not_there_is_named(tmp_path, flag):
    with pytest.raises(ServingError, match=r"Could not find base path .*/none: No such file"):
        config.from_flags(Options(**{flag: str(tmp_path / "none")}))
