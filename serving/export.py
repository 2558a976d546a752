"""A trained task to a SavedModel that takes raw input and gives final answers."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from pathlib import Path

import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from keras_models.tasks.task import Task

# What a signature of `inputs` gives that is for another method than Predict.
_METHODS = {"classify": {"classes", "scores"}, "regress": {"outputs"}}


class ExportError(OSError):
    """A model could not be exported. Nothing of it is left behind."""


def export(task: Task, root: Path, name: str, version: int | None = None) -> Path:
    """Returns `root/name/version`, a SavedModel of the task with its assets inside.

    The model is written beside its place under a name that no server takes for a version, and
    renamed when it is whole. A version that exists is never touched.

    Args:
        task: What to export; `task.signatures()` are the served functions.
        root: The folder of models.
        name: The model's name when served.
        version: A positive number; None: one more than the highest that exists.

    Raises:
        ExportError: If the version exists, or the folder cannot be written to.
    """
    model = root / name
    try:
        model.mkdir(parents=True, exist_ok=True)
        version = next_version(model) if version is None else version
        target = model / str(version)
        if target.exists():
            raise _taken(target)
        partial = Path(tempfile.mkdtemp(prefix=f".{version}-", dir=model))
        try:
            tf.saved_model.save(_Served(task), str(partial), signatures=task.signatures())
            _name_methods(partial / "saved_model.pb")
            partial.chmod(0o755)
            _rename(partial, target)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except (OSError, tf.errors.OpError) as error:
        raise _explained(error, model) from error
    return target


class _Served(tf.Module):
    """What the served functions need of a task, and nothing else.

    The weights are TensorFlow's own variables: of a Keras variable `tf.saved_model.save` makes a
    second one, and that is the one TF Serving restores.
    """

    def __init__(self, task: Task):
        super().__init__()
        self.weights = [variable.value for variable in task.model.variables]
        self.frontends = task.frontends


def _name_methods(path: Path) -> None:
    """Says of each signature which of TensorFlow Serving's methods it is for.

    Classify and Regress take inputs and give outputs of certain names. Any signature is for
    Predict, and is said to be for nothing else unless it has just those.
    """
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    for graph in model.meta_graphs:
        for signature in graph.signature_def.values():
            outputs = set(signature.outputs)
            if set(signature.inputs) == {"inputs"} and outputs in _METHODS.values():
                method = next(name for name, of in _METHODS.items() if of == outputs)
                signature.method_name = f"tensorflow/serving/{method}"
    path.write_bytes(model.SerializeToString(deterministic=True))


def next_version(model: Path) -> int:
    """Returns one more than the highest version in a model's folder, or 1."""
    names = (path.name for path in model.iterdir()) if model.exists() else ()
    return 1 + max((int(name) for name in names if name.isdecimal()), default=0)


def _rename(partial: Path, target: Path) -> None:
    """Gives a version its name, unless another export has taken it meanwhile."""
    try:
        os.rename(partial, target)
    except OSError as error:
        if target.exists():
            raise _taken(target) from error
        raise


def _taken(target: Path) -> ExportError:
    return ExportError(
        f"`version` must be new: versions are never overwritten. Received: {target}, which exists. "
        f"The next free one is {next_version(target.parent)}."
    )


def _explained(error: Exception, model: Path) -> ExportError:
    if isinstance(error, ExportError):
        return error
    full = getattr(error, "errno", None) == errno.ENOSPC or os.strerror(errno.ENOSPC) in str(error)
    reason = "its disk is full" if full else str(error)
    return ExportError(f"{model} must be a folder that can be written to. Received: {reason}")
