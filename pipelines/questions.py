"""What is asked on a command line, as the inputs of a served model's signature."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from pipelines.errors import UsageError

_LENGTHS = "_lengths"


def inputs(
    asked: Sequence[str | bytes], others: Mapping[str, str], signature: Mapping[str, Any]
) -> dict[str, Any]:
    """Returns values by input name.

    What is asked goes to the one input that is left, or the one of strings. An input of numbers is
    asked in JSON; lists of different lengths are padded where the signature takes `NAME_lengths`.

    Args:
        asked: Texts, or what files hold.
        others: Further inputs by name, in JSON, each for all that is asked.
        signature: What the model's signature takes, by name: `{"dtype": …, "shape": …}`.

    Raises:
        UsageError: If that does not fit the signature.
    """
    unknown = sorted(others.keys() - signature.keys())
    if unknown:
        raise UsageError(f"`given` must name inputs of {_list(signature)}. Received: {unknown}")
    name = _asked_input(set(signature) - set(others), signature)
    values = {other: _given(other, text, len(asked), signature) for other, text in others.items()}
    if signature[name]["dtype"] == "string":
        return {name: list(asked), **values}
    return {**_numbers(name, [_json(text) for text in asked], signature), **values}


def _asked_input(left: set[str], signature: Mapping[str, Any]) -> str:
    names = {name for name in left if name.removesuffix(_LENGTHS) not in left - {name}}
    texts = {name for name in names if signature[name]["dtype"] == "string"}
    for candidates in (names, texts):
        if len(candidates) == 1:
            return candidates.pop()
    raise UsageError(
        "All inputs but one must be `given`, or all but one of strings. The signature takes "
        f"{_list(signature)}."
    )


def _given(name: str, text: str, count: int, signature: Mapping[str, Any]) -> Any:
    value = text if signature[name]["dtype"] == "string" else _json(text)
    return [value] * count if len(signature[name]["shape"] or ()) > np.ndim(value) else value


def _json(text: str | bytes) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise UsageError(
            f"Numbers must be asked in JSON, as in '[0.5, 1, 2]'. Received: {text[:80]!r}"
        ) from None


def _numbers(name: str, asked: Sequence[Any], signature: Mapping[str, Any]) -> dict[str, Any]:
    if name + _LENGTHS not in signature:
        return {name: list(asked)}
    lengths = [len(value) if isinstance(value, list) else 0 for value in asked]
    if not all(lengths):
        raise UsageError(f"`{name}` must be lists of numbers. Received: {asked!r:.80}")
    fill = np.zeros_like(asked[0][0]).tolist()
    padded = [value + [fill] * (max(lengths) - len(value)) for value in asked]
    return {name: padded, name + _LENGTHS: lengths}


def _list(signature: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} ({info['dtype']})" for name, info in sorted(signature.items()))
