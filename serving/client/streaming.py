"""Streams over plain requests: a model's `stream_start`, `stream_step` and `stream_end`."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from serving.client import inputs as inputs_lib

_STATE = "state_"
Arrays = Mapping[str, np.ndarray]


class Streamed(NamedTuple):
    """The outputs of a stream so far, by name, and whether they are the final ones."""

    outputs: dict[str, np.ndarray]
    final: bool


def stream(
    ask: Callable[[str, Arrays, int | None], tuple[int, Arrays]],
    signature: Callable[[], inputs_lib.Signature],
    chunks: Iterable[Any],
    version: int | None,
) -> Iterator[Streamed]:
    """Yields what `Client.stream` does.

    Args:
        ask: Returns the version that answered and its outputs, for the name of a signature, its
            inputs and a version.
        signature: Returns what `stream_step` takes and gives; called only where it is needed.
        chunks: Inputs, or values of the only one.
        version: The version to be asked; None: the latest, and then always the same.
    """
    state: Arrays | None = None
    alone = False
    for chunk in chunks:
        arrays = inputs_lib.arrays(chunk, lambda: _without_state(signature()))
        if state is None:
            alone = not any(array.ndim for array in arrays.values())
            rows = 1 if alone else len(next(iter(arrays.values())))
            sizes = np.ones(rows, np.int32)  # of any rank but 0, which servers that batch refuse
            version, state = ask("stream_start", {"batch_size": sizes}, version)
        if alone:
            arrays = {name: array[np.newaxis] for name, array in arrays.items()}
        _, outputs = ask("stream_step", {**arrays, **state}, version)
        state = {name: array for name, array in outputs.items() if name.startswith(_STATE)}
        yield Streamed(_answers(outputs, alone), final=False)
    if state is not None:
        _, outputs = ask("stream_end", state, version)
        yield Streamed(_answers(outputs, alone), final=True)


def _without_state(signature: inputs_lib.Signature) -> inputs_lib.Signature:
    inputs = signature["inputs"].items()
    return {**signature, "inputs": {n: info for n, info in inputs if not n.startswith(_STATE)}}


def _answers(outputs: Arrays, alone: bool) -> dict[str, np.ndarray]:
    answers = {name: array for name, array in outputs.items() if not name.startswith(_STATE)}
    return {name: array[0] for name, array in answers.items()} if alone else answers
