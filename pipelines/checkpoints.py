"""Checkpoints: written whole or not at all, restored wholly or not at all."""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import tensorflow as tf

from keras_models.tasks.task import Task

# What TensorFlow raises for a checkpoint that is torn or gone.
_UNREADABLE = (tf.errors.OpError, IndexError)
_VALUE = "/.ATTRIBUTES/VARIABLE_VALUE"


class DamagedCheckpoint(OSError):
    """No checkpoint of a run can be read."""


class OtherModel(ValueError):
    """A checkpoint is of another model."""


class CheckpointNotSaved(OSError):
    """A checkpoint could not be written; those before are as they were."""


class Checkpoints:
    """The last checkpoints of a run, each with all that it takes to go on exactly.

    Args:
        folder: Where they are.
        keep: How many are kept.
        weights: Variables by name; those of another model are told by their names and shapes.
        state: What else there is to save.
    """

    def __init__(self, folder: Path, keep: int, weights: Mapping[str, tf.Variable], **state):
        self._folder, self._keep, self._weights = folder, keep, weights
        self._checkpoint = tf.train.Checkpoint(weights=dict(weights), **state)
        self._saved: list[int] = []  # steps; those that cannot be read are not among them

    def save(self, step: int) -> None:
        """Writes a checkpoint, then removes those that are not to be kept.

        Raises:
            CheckpointNotSaved: On a full disk, say.
        """
        self._checkpoint.save_counter.assign(step)  # which TensorFlow expects in a checkpoint
        with _told(step, self._folder):
            self._checkpoint.write(str(self._folder / f"ckpt-{step}"), _here())
            before = [each for each in self._saved if each != step]
            self._saved = [*before, step][-self._keep :]
            remove_others(self._folder, self._saved)

    def restore_latest(self) -> list[str]:
        """Restores the last checkpoint that is whole, all of it; nothing where none was saved.

        Returns:
            What was wrong with each later one.

        Raises:
            DamagedCheckpoint: If there are checkpoints and none is whole.
            OtherModel: If a checkpoint's weights have other names or shapes.
        """
        passed_over, steps = [], steps_in(self._folder)
        while steps:
            path = self._folder / f"ckpt-{steps[-1]}"
            try:
                _require_same_model(path, self._weights)
                self._checkpoint.restore(str(path), _here()).assert_consumed()
                self._saved = steps
                return passed_over
            except _UNREADABLE as error:
                passed_over.append(f"{path} cannot be read: {error}")
                steps.pop()
        if passed_over:
            raise DamagedCheckpoint(
                f"One of the checkpoints in {self._folder} must be whole. Received: "
                f"{'; '.join(passed_over)}. Delete that folder to start anew."
            )
        return []


def weights_of(task: Task) -> dict[str, tf.Variable]:
    """Returns a model's variables by names that are the same in every process.

    One by one: of a task, a checkpoint would miss the layers that Keras keeps in lists.
    """
    paths = [re.sub(r"_\d+(?=/|$)", "", each.path) for each in task.model.variables]
    values = [each.value for each in task.model.variables]
    names = [f"{i:03d}:{path.replace('/', ':')}" for i, path in enumerate(paths)]
    return dict(zip(names, values, strict=True))


def write_weights(weights: Mapping[str, tf.Variable], folder: Path, step: int) -> None:
    """Writes weights alone.

    Raises:
        CheckpointNotSaved: On a full disk, say.
    """
    with _told(step, folder):
        tf.train.Checkpoint(weights=dict(weights)).write(str(folder / f"ckpt-{step}"), _here())


def read_weights(weights: Mapping[str, tf.Variable], path: Path) -> None:
    """Gives variables what was written, by `write_weights` or in a whole checkpoint.

    Raises:
        DamagedCheckpoint: If it cannot be read.
        OtherModel: If it is of another model.
    """
    try:
        _require_same_model(path, weights)
        status = tf.train.Checkpoint(weights=dict(weights)).read(str(path), _here())
        status.expect_partial().assert_existing_objects_matched()
    except _UNREADABLE as error:
        raise DamagedCheckpoint(f"{path} must be whole. Received: {_first_line(error)}") from error


def remove_others(folder: Path, steps: Sequence[int]) -> None:
    """Removes what is not of these steps: the index first, without which data are no checkpoint."""
    keep = {f"ckpt-{step}" for step in steps}
    for path in sorted(folder.glob("ckpt-*"), key=lambda path: path.suffix != ".index"):
        if path.is_dir():  # what was being written when a process was killed
            shutil.rmtree(path)
        elif path.stem not in keep:
            path.unlink()


def steps_in(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, rising.

    By their names: the list that TensorFlow would keep is one more file that may be torn.
    """
    names = [re.fullmatch(r"ckpt-(\d+)", path.stem) for path in folder.glob("ckpt-*.index")]
    return sorted(int(name[1]) for name in names if name)


def _require_same_model(path: Path, weights: Mapping[str, tf.Variable]) -> None:
    """Raises OtherModel unless a checkpoint's weights have the names and shapes of `weights`."""
    saved = {
        key.split("/")[1]: list(shape)
        for key, shape in tf.train.load_checkpoint(str(path)).get_variable_to_shape_map().items()
        if key.startswith("weights/") and key.endswith(_VALUE)
    }
    here = {name: variable.shape.as_list() for name, variable in weights.items()}
    differing = [
        f"{name} is {saved.get(name, 'not there')} in it and {here.get(name, 'not there')} here"
        for name in sorted(saved.keys() | here.keys())
        if saved.get(name) != here.get(name)
    ]
    if differing:
        raise OtherModel(
            f"{path} must be a checkpoint of this model. Received another one's: "
            f"{'; '.join(differing)}."
        )


def _here() -> tf.train.CheckpointOptions:
    """Returns that this process is to read and write, wherever the variables are."""
    with tf.device("CPU:0"):
        return tf.train.CheckpointOptions(experimental_io_device=tf.constant(0).device)


@contextmanager
def _told(step: int, folder: Path):
    try:
        yield
    except (tf.errors.OpError, OSError) as error:
        raise CheckpointNotSaved(
            f"The checkpoint of step {step} could not be written to {folder}: "
            f"{_first_line(error)}. Checkpoints before it are as they were; once it can be "
            "written, the same command goes on from the last of them."
        ) from error


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]
