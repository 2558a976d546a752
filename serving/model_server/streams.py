"""The three signatures of a model whose state goes in and out, run one after the other."""

from collections.abc import Iterable, Mapping, Sequence

import numpy as np
from tensorflow_serving.apis.model_pb2 import ModelSpec

from serving.model_server import predict
from serving.model_server.calls import Call, Runner
from serving.model_server.errors import invalid
from serving.model_server.sequences import END, START, STEP, State, is_state

Outputs = dict[str, np.ndarray]
_ROWS = "batch_size"


async def begin(runner: Runner, inputs: Mapping[str, np.ndarray], call: Call) -> State:
    """Returns the state before the first step.

    Args:
        runner: The model.
        inputs: Those of the first step, which say how many rows there are; one where they do not.
        call: Says how to wait.
    """
    rows = next((len(array) for array in inputs.values() if array.ndim), 1)
    shape = predict.signature(runner, START).inputs[_ROWS].tensor_shape
    if shape.unknown_rank or shape.dim:
        size = np.ones(rows, np.int32)  # A row a stream, so that streams begin in one batch.
    else:
        runner, size = runner.alone, np.array(rows, np.int32)
    return await predict.run(runner, ModelSpec(signature_name=START), {_ROWS: size}, (), call)


async def step(
    runner: Runner,
    state: State,
    inputs: Mapping[str, np.ndarray],
    wanted: Sequence[str],
    call: Call,
) -> tuple[Outputs, State]:
    """Returns the outputs of one step, those that are wanted, and the state after it."""
    for name in inputs:
        if is_state(name):
            raise invalid(f"Input {name} must be left out, as the server holds the state")
    given = predict.signature(runner, STEP).outputs
    names = [*(wanted or _plain(given)), *filter(is_state, given)]
    spec = ModelSpec(signature_name=STEP)
    outputs = await predict.run(runner, spec, {**inputs, **state}, names, call)
    after = {name: outputs.pop(name) for name in given if is_state(name)}
    return outputs, after


async def end(runner: Runner, state: State, wanted: Sequence[str], call: Call) -> Outputs:
    """Returns what is left to say after the last step; nothing where a model says nothing."""
    if END not in runner.signatures:
        return {}
    signature = predict.signature(runner, END)
    known = {name: state[name] for name in signature.inputs if name in state}
    names = [name for name in wanted if name in signature.outputs]
    if wanted and not names:
        return {}
    return await predict.run(runner, ModelSpec(signature_name=END), known, names, call)


async def alone(
    runner: Runner, inputs: Mapping[str, np.ndarray], wanted: Sequence[str], call: Call
) -> None:
    """Runs a sequence of one request, whatever went before it when it was asked."""
    state = await begin(runner, inputs, call)
    if inputs:
        _, state = await step(runner, state, inputs, wanted, call)
    await end(runner, state, wanted, call)


def _plain(names: Iterable[str]) -> list[str]:
    return sorted(name for name in names if not is_state(name))


def is_stream(runner: Runner, spec: ModelSpec) -> bool:
    """Tells whether a request is for a model's steps, which it may leave unnamed."""
    return STEP in runner.signatures and spec.signature_name in ("", STEP)
