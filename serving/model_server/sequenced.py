"""Predictions whose state the server holds."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager

import numpy as np
from tensorflow_serving.apis.model_pb2 import ModelSpec

from serving.model_server import sequences, streams
from serving.model_server.calls import Call, Runner
from serving.model_server.errors import Code, ServingError
from serving.model_server.sequences import Control, Sequences

Lend = Callable[[ModelSpec], AbstractContextManager[tuple[int, Runner]]]
Note = Callable[[ModelSpec, int, Runner, str], AbstractContextManager[None]]


class Sequenced:
    """Goes on with sequences.

    Args:
        lend: Lends the version that a specification names.
        note: Notes a run of it, for so long as the context lasts.
        sequences: Remembers.
    """

    def __init__(self, lend: Lend, note: Note, sequences: Sequences):
        self._lend = lend
        self._note = note
        self._sequences = sequences

    async def predict(
        self,
        spec: ModelSpec,
        inputs: Mapping[str, np.ndarray],
        wanted: Sequence[str],
        call: Call,
    ) -> tuple[int, streams.Outputs]:
        """Returns the version that answers, and its outputs, `sequence_id` among them.

        A first request without inputs of the model's own only begins; a last one only ends.
        """
        control, number = sequences.control(inputs)
        given = sequences.own_inputs(inputs)
        sequence = self._sequence(spec, control, number)
        with self._undone_where_it_fails(spec.name, sequence, control):
            async with self._sequences.turn(sequence, call):
                outputs = await self._go_on(spec.name, sequence, control, given, wanted, call)
        if control is Control.END:
            self._sequences.forget(spec.name, sequence.number)
        outputs[sequences.ID] = np.array([sequence.number], np.uint64)
        return sequence.version, outputs

    def forget(self, model: str, number: int) -> None:
        """Drops a sequence, if it is there."""
        self._sequences.forget(model, number)

    def _sequence(self, spec: ModelSpec, control: Control, number: int) -> sequences.Sequence:
        if control is Control.START:
            with self._lend(spec) as (version, _):
                return self._sequences.begin(spec.name, number, version)
        return self._sequences.find(spec.name, number, last=control is Control.END)

    async def _go_on(
        self,
        model: str,
        sequence: sequences.Sequence,
        control: Control,
        given: Mapping[str, np.ndarray],
        wanted: Sequence[str],
        call: Call,
    ) -> streams.Outputs:
        spec = ModelSpec(name=model, signature_name=sequences.STEP)
        spec.version.value = sequence.version  # A state means nothing to other versions.
        with (
            self._lend(spec) as (version, runner),
            self._note(spec, version, runner, "Predict"),
        ):
            state = sequence.state
            if control is Control.START:
                state = await streams.begin(runner, given, call)
            outputs: streams.Outputs = {}
            if given:
                outputs, state = await streams.step(runner, state, given, wanted, call)
            if control is Control.END:
                outputs |= await streams.end(runner, state, wanted, call)
        sequence.state = state
        return outputs

    @contextmanager
    def _undone_where_it_fails(
        self, model: str, sequence: sequences.Sequence, control: Control
    ) -> Iterator[None]:
        """Leaves a sequence as it was before a request that fails, so that it may be asked anew."""
        try:
            yield
        except BaseException as error:
            sequence.ending = False
            unloaded = isinstance(error, ServingError) and error.code is Code.NOT_FOUND
            if control is Control.START or unloaded:
                self._sequences.forget(model, sequence.number)
            raise
