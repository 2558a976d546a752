import threading
from types import SimpleNamespace

import pytest

from serving.model_server.errors import ServingError, not_found
from serving.model_server.lifecycle import State
from serving.model_server.manager import Manager, Retry


class Loader:
    """Loads servables that only note what became of them."""

    def __init__(self):
        self.events = []
        self.bad = set()

    def __call__(self, path, _):
        self.events.append(f"load {path}")
        if path in self.bad:
            raise not_found(f"{path}/vocabulary.txt")
        return SimpleNamespace(
            path=path,
            cancel=lambda: self.events.append(f"cancel {path}"),
            close=lambda: self.events.append(f"close {path}"),
        )


@pytest.fixture
def loader():
    return Loader()


@pytest.fixture
def manager(loader):
    manager = Manager(loader, threads=4, retry=Retry(count=0))
    yield manager
    manager.close()


def aspire(manager, *numbers, name="m"):
    manager.aspire(name, {number: str(number) for number in numbers})
    manager.wait_until_settled()


def states(manager, name="m"):
    return {status.version: status.state for status in manager.status(name)}


def test_the_highest_version_answers_by_default(manager):
    aspire(manager, 1, 2)
    with manager.use("m") as (number, servable):
        assert (number, servable.path) == (2, "2")
    with manager.use("m", 1) as (number, _):
        assert number == 1


def test_the_highest_new_version_loads_first(manager, loader):
    aspire(manager, 1, 3, 2)
    assert loader.events == ["load 3", "load 2", "load 1"]


def test_a_new_version_loads_before_the_old_one_goes(manager, loader):
    aspire(manager, 1)
    aspire(manager, 2)
    assert loader.events == ["load 1", "load 2", "close 1"]
    assert states(manager) == {2: State.AVAILABLE, 1: State.END}


def test_an_old_version_stays_while_the_new_one_cannot_load(manager, loader):
    loader.bad = {"2"}
    aspire(manager, 1)
    aspire(manager, 2)
    assert states(manager) == {2: State.END, 1: State.AVAILABLE}
    with manager.use("m") as (number, _):
        assert number == 1


def test_a_version_that_is_wanted_again_is_kept(manager, loader):
    loader.bad = {"2"}
    aspire(manager, 1)
    aspire(manager, 2)
    aspire(manager, 1)
    assert loader.events == ["load 1", "load 2"]


def test_a_version_that_was_unloaded_loads_again(manager, loader):
    aspire(manager, 1)
    aspire(manager)
    aspire(manager, 1)
    assert loader.events == ["load 1", "close 1", "load 1"]


def test_a_model_without_versions_is_unloaded(manager):
    aspire(manager, 1, 2)
    aspire(manager)
    assert states(manager) == {1: State.END, 2: State.END}


def test_a_failure_is_kept_with_its_version_and_logged_with_its_path(manager, loader, caplog):
    loader.bad = {"1"}
    aspire(manager, 1)
    aspire(manager, 5, name="other")
    (status,) = manager.status("m")
    assert (status.state, str(status.error)) == (State.END, "NOT_FOUND: 1/vocabulary.txt")
    assert "model m version 1 from 1: NOT_FOUND: 1/vocabulary.txt" in caplog.text
    assert states(manager, "other") == {5: State.AVAILABLE}


def test_a_failed_version_is_not_loaded_at_every_poll(manager, loader):
    loader.bad = {"1"}
    aspire(manager, 1)
    aspire(manager, 1)
    assert loader.events == ["load 1"]


def test_a_failed_version_is_loaded_where_it_has_moved_to(manager, loader):
    loader.bad = {"1"}
    aspire(manager, 1)
    manager.aspire("m", {1: "elsewhere"})
    manager.wait_until_settled()
    assert states(manager) == {1: State.AVAILABLE}


def test_loading_is_waited_for_and_unloading_is_not(manager, loader):
    aspire(manager, 1)
    with manager.use("m"):
        manager.aspire("m", {2: "2"})
        manager.wait_until_loaded(["m", "unknown"])
        assert manager.is_available("m", 2)
        assert "close 1" not in loader.events


def test_a_failed_version_is_tried_again_as_often_as_told(loader):
    loader.bad = {"1"}
    manager = Manager(loader, threads=1, retry=Retry(count=2, seconds=0.01))
    aspire(manager, 1)
    deadline = threading.Event()
    while len(loader.events) < 3 and not deadline.wait(0.01):
        pass
    deadline.wait(0.1)
    manager.close()
    assert loader.events == ["load 1"] * 3


def test_a_version_is_being_loaded_until_its_last_try_has_failed(loader):
    loader.bad = {"1"}
    manager = Manager(loader, threads=1, retry=Retry(count=1, seconds=60))
    aspire(manager, 1)
    assert states(manager) == {1: State.LOADING}
    manager.wait_until_loaded(["m"])  # A reload tells of the first failure.
    aspire(manager)
    assert states(manager) == {1: State.END}
    manager.close()


@pytest.mark.parametrize(("tries_to_fail", "state"), [(2, State.AVAILABLE), (3, State.END)])
def test_something_loaded_is_waited_for_until_the_last_try(loader, tries_to_fail, state):
    def load(path, name):
        loader.bad = {"1"} if len(loader.events) < tries_to_fail else set()
        return loader(path, name)

    manager = Manager(load, threads=1, retry=Retry(count=2, seconds=0.01))
    manager.aspire("m", {1: "1"})
    manager.wait_until_something_is_loaded()
    assert states(manager) == {1: state}
    manager.close()


def test_a_version_in_use_is_closed_only_when_given_back(manager, loader):
    aspire(manager, 1)
    with manager.use("m"):
        manager.aspire("m", {2: "2"})
        while states(manager).get(2) is not State.AVAILABLE:
            threading.Event().wait(0.01)
        threading.Event().wait(0.05)
        assert states(manager)[1] is State.UNLOADING
        assert "close 1" not in loader.events
    manager.wait_until_settled()
    assert loader.events[-1] == "close 1"


def test_a_version_in_use_keeps_no_other_from_going(loader):
    manager = Manager(loader, threads=1, retry=Retry(count=0), unload_threads=1)
    aspire(manager, 1)
    aspire(manager, 1, name="n")
    with manager.use("m"):
        manager.aspire("m", {})
        manager.aspire("n", {})
        while states(manager, "n") != {1: State.END}:
            threading.Event().wait(0.01)
        assert states(manager) == {1: State.UNLOADING}
    manager.close()


def test_a_version_wanted_again_while_it_goes_comes_back(manager, loader):
    aspire(manager, 1)
    with manager.use("m"):
        manager.aspire("m", {})
        while states(manager) != {1: State.UNLOADING}:
            threading.Event().wait(0.01)
        manager.aspire("m", {1: "1"})
    manager.wait_until_settled()
    assert states(manager) == {1: State.AVAILABLE}
    assert loader.events == ["load 1", "close 1", "load 1"]


def test_closing_cancels_what_takes_longer_than_it_may(loader):
    manager = Manager(loader, threads=1, retry=Retry(count=0))
    aspire(manager, 1)
    entered, cancelled = threading.Event(), threading.Event()

    def run():
        with manager.use("m"):
            entered.set()
            while "cancel 1" not in loader.events:
                threading.Event().wait(0.01)
            cancelled.set()

    threading.Thread(target=run).start()
    assert entered.wait(10)
    manager.close(grace_seconds=0.1)
    assert cancelled.is_set()
    assert loader.events == ["load 1", "cancel 1", "close 1"]


def test_who_loads_and_who_goes_is_told(loader):
    told = []
    manager = Manager(
        *(loader, 1, Retry(count=0)),
        on_loaded=lambda *which: told.append(which),
        on_unloaded=lambda *which: told.append(which),
    )
    aspire(manager, 1)
    manager.close()
    assert told == [("m", 1, "1"), ("m", 1)]


@pytest.mark.parametrize(
    ("name", "version", "which"),
    [("n", None, "Latest(n)"), ("m", 7, "Specific(m, 7)"), ("n", 1, "Specific(n, 1)")],
)
def test_what_is_not_there_cannot_be_used(manager, name, version, which):
    aspire(manager, 1)
    with pytest.raises(ServingError) as raised, manager.use(name, version):
        pass
    assert str(raised.value) == f"NOT_FOUND: Servable not found for request: {which}"
