"""The life of a version, and what is to be done next: decisions, no threads.

Every version is a small state machine, START → LOADING → AVAILABLE → UNLOADING → END.
"""

import enum
from collections.abc import Mapping
from typing import NamedTuple

from serving.model_server import folder
from serving.model_server.calls import Runner
from serving.model_server.errors import ServingError


class State(enum.IntEnum):
    """Where a version is in its life; the numbers are the protocol's."""

    START = 10
    LOADING = 20
    AVAILABLE = 30
    UNLOADING = 40
    END = 50


class VersionStatus(NamedTuple):
    """What is told of a version."""

    version: int
    state: State
    error: ServingError | None


class Version:
    """One version of one model; the manager's lock guards it."""

    def __init__(self, number: int, path: str):
        self.number = number
        self.path = path
        self.state = State.START
        self.error: ServingError | None = None
        self.failures = 0
        self.is_tried_again = False
        self.servable: Runner | None = None
        self.users = 0
        self._tried: folder.Stamp = frozenset()
        self._seen: folder.Stamp = frozenset()

    def note_try(self) -> None:
        """Notes what the folder holds now that it is being loaded."""
        self._tried = folder.stamp(self.path)

    def is_as_tried(self) -> bool:
        """Tells whether the folder holds what it held when the loading began."""
        return folder.stamp(self.path) == self._tried

    def has_settled_anew(self) -> bool:
        """Tells whether the folder has changed since it was tried, and no more since last asked."""
        before, self._seen = self._seen, folder.stamp(self.path)
        return self._tried != self._seen == before


class Model:
    """The versions of one model, and those that it should have."""

    def __init__(self, name: str):
        self.name = name
        self.versions: dict[int, Version] = {}
        self.aspired: dict[int, str] = {}
        self.busy = False
        self.unloading = 0


def note_aspired(model: Model, versions: Mapping[int, str]) -> None:
    """Sets which versions `model` should have; one that failed is tried anew elsewhere only."""
    for number, path in versions.items():
        known = model.versions.get(number)
        new = number not in model.aspired
        ended = known is not None and known.state is State.END
        if known is None or (ended and (new or known.error is None or known.path != path)):
            model.versions[number] = Version(number, path)
    for number in model.versions.keys() - versions.keys():
        if model.versions[number].state is State.START:
            model.versions[number].state = State.END
    model.aspired = dict(versions)


def next_step(model: Model) -> tuple[Version, State] | None:
    """Returns the next version to load or to unload, or None.

    A version goes only when another that should be there is ready, so that the model can always
    answer: load the new one first, then unload the old one.
    """
    ready = [v for v in model.versions.values() if v.state is State.AVAILABLE]
    stale = sorted((v for v in ready if v.number not in model.aspired), key=_number)
    if stale and (len(stale) < len(ready) or not model.aspired or len(stale) > 1):
        return stale[0], State.UNLOADING
    new = [v for n, v in model.versions.items() if n in model.aspired and v.state is State.START]
    if new:
        return max(new, key=_number), State.LOADING
    return None


def is_loading(model: Model) -> bool:
    """Tells whether a version that `model` should have is still to be loaded."""
    states = {model.versions[n].state for n in model.aspired}
    return model.busy and not states.isdisjoint({State.START, State.LOADING})


def failed(model: Model) -> list[Version]:
    """Returns the versions that `model` should have and that could not be loaded."""
    ended = [v for v in model.versions.values() if v.state is State.END and v.error]
    return [version for version in ended if version.number in model.aspired]


def begin_anew(model: Model, version: Version) -> bool:
    """Has a version that ended be loaded again, unless another has taken its place."""
    version.is_tried_again = False
    if model.versions.get(version.number) is not version or version.state is not State.END:
        return False
    version.state = State.START
    return True


def is_between_tries(model: Model, version: Version) -> bool:
    """Tells whether a version that could not be loaded is going to be tried again."""
    return version.is_tried_again and version.number in model.aspired


def told_state(model: Model, version: Version) -> State:
    """Returns the state that others are told: until its last try a version is being loaded."""
    return State.LOADING if is_between_tries(model, version) else version.state


def has_given_up(model: Model) -> bool:
    """Tells whether nothing that `model` should have is loaded, or is still to be."""
    wanted = [model.versions[number] for number in model.aspired]
    return not is_loading(model) and not any(
        version.state is State.AVAILABLE or is_between_tries(model, version) for version in wanted
    )


def note_unloaded(model: Model, version: Version) -> None:
    """Ends a version; where it is wanted again by now, it begins anew."""
    version.state = State.END
    if version.number in model.aspired:
        path = model.aspired[version.number]
        model.versions[version.number] = Version(version.number, path)


def _number(version: Version) -> int:
    return version.number
