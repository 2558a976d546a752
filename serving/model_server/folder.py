"""What a version's folder holds, and whether all of it is there."""

import os

from serving.model_server.errors import Code, ServingError

_INDEX = os.path.join("variables", "variables.index")
_NO_CHECKPOINT = "The passed save_path is not a valid checkpoint"

Stamp = frozenset[tuple[str, int, int]]


def stamp(path: str) -> Stamp:
    """Returns path, size and time of every file under `path`: what changes where a file does."""
    return frozenset(_files(path))


def _files(path: str):
    for folder, _, names in os.walk(path, followlinks=True):
        for name in names:
            file = os.path.join(folder, name)
            try:
                found = os.stat(file)
            except OSError:
                continue  # It has just gone.
            yield file, found.st_size, found.st_mtime_ns


def incomplete(path: str, error: Exception) -> ServingError | None:
    """Returns what `error` means where the values of the graph's variables are not there yet."""
    if _NO_CHECKPOINT not in str(error):
        return None
    return ServingError(
        Code.FAILED_PRECONDITION,
        f"{path} is not complete: its graph has variables, but there is no {_INDEX}. "
        "It is loaded once the folder is whole.",
    )


def changed_meanwhile(path: str) -> ServingError:
    """Returns the error of a folder whose files changed while they were read."""
    return ServingError(
        Code.FAILED_PRECONDITION,
        f"{path} changed while it was being loaded. It is loaded once the folder is left alone.",
    )
