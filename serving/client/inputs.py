"""From what a caller has at hand to the arrays that a signature takes."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from serving.client import tensors
from serving.client.errors import InvalidInput

Signature = Mapping[str, Any]  # {"inputs": {name: {"dtype": …, "shape": …}}, "outputs": …}


def arrays(inputs: Any, signature: Callable[[], Signature]) -> dict[str, np.ndarray]:
    """Returns arrays by input name.

    An array goes as it is. Python's numbers and lists have no type of their own, so they take
    the signature's.

    Args:
        inputs: Values by input name, or the one value of a signature with one input that has no
            default.
        signature: Returns the signature; called only where it is needed.
    """
    if not isinstance(inputs, Mapping):
        inputs = {_only_input(signature()): inputs}
    return {name: _array(name, value, signature) for name, value in inputs.items()}


def describe(arrays: Mapping[str, np.ndarray]) -> str:
    """Returns names, types and shapes in words."""
    return ", ".join(
        f"{name} {_kind(array)} {list(array.shape)}" for name, array in sorted(arrays.items())
    )


def describe_signature(side: Mapping[str, Mapping[str, Any]]) -> str:
    """Returns names, types and shapes of a signature's inputs or outputs in words."""
    return ", ".join(f"{name} {info['dtype']} {info['shape']}" for name, info in side.items())


def _only_input(signature: Signature) -> str:
    names = [name for name, info in signature["inputs"].items() if "default" not in info]
    if len(names) == 1:
        return names[0]
    raise _invalid(
        "`inputs` must be a dict of name to value, for the signature takes "
        f"{len(signature['inputs'])} inputs: {describe_signature(signature['inputs'])}."
    )


def _array(name: str, value: Any, signature: Callable[[], Signature]) -> np.ndarray:
    if isinstance(value, str | bytes):
        return _scalar(value)
    if isinstance(value, np.ndarray | np.generic):
        return np.asarray(value)
    try:
        array = np.asarray(value)
    except ValueError:
        raise _invalid(
            f"Input `{name}` must have lists of the same length at every level; pad the shorter "
            f"ones. Received: {_short(value)}."
        ) from None
    if array.dtype.kind in "OSU":
        return np.asarray(value, object)
    return _typed(name, array, signature()["inputs"].get(name))


def _scalar(value: str | bytes) -> np.ndarray:
    array = np.empty((), object)
    array[()] = value
    return array


def _typed(name: str, array: np.ndarray, info: Mapping[str, Any] | None) -> np.ndarray:
    if info is None:
        return array  # The server tells of the unknown input.
    wanted = tensors.numpy_type(info["dtype"])
    if array.size and not _may_become(array.dtype, wanted):
        raise _mistyped(name, array, info)
    converted = array.astype(wanted)
    if wanted.kind in "iu" and not np.array_equal(converted, array):
        raise _mistyped(name, array, info)  # An integer out of the type's range.
    return converted


def _may_become(dtype: np.dtype, wanted: np.dtype) -> bool:
    integers = dtype.kind in "iu" and wanted.kind in "iu"
    return wanted.kind != "O" and (integers or np.can_cast(dtype, wanted, "same_kind"))


def _mistyped(name: str, array: np.ndarray, info: Mapping[str, Any]) -> InvalidInput:
    return _invalid(
        f"Input `{name}` must hold {info['dtype']}, of shape {info['shape']}. "
        f"Received: {_short(array.tolist())}."
    )


def _invalid(text: str) -> InvalidInput:
    return InvalidInput("INVALID_ARGUMENT", text, text)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _kind(array: np.ndarray) -> str:
    return "string" if array.dtype.kind in "OSU" else array.dtype.name
