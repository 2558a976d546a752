"""What the server remembers between the requests of a sequence, as OpenVINO Model Server does it.

A model whose state goes in and out has the signatures

    stream_start(batch_size) → state_*
    stream_step(inputs…, state_*) → outputs so far…, state_*
    stream_end(state_*) → final outputs…                       (or none)

where `batch_size` is a number, or as many ones. A request to `stream_step` may leave the state to
the server: in its place it has `sequence_id`, uint64 [1], and `sequence_control_input`, uint32 [1]:
1 for the first request of a sequence, 2 for the last, 0 or nothing in between. Every answer has
`sequence_id`, which a first request may leave out or give as 0 to be given one. The codes and
messages are OpenVINO Model Server's.
"""

import collections
import enum
import secrets
import threading
import time
from collections.abc import AsyncIterator, Mapping
from concurrent.futures import Future
from contextlib import asynccontextmanager

import numpy as np

from serving.model_server.calls import Call
from serving.model_server.errors import Code, ServingError, invalid, not_found
from serving.model_server.metrics import Metrics

ID = "sequence_id"
CONTROL = "sequence_control_input"
START, STEP, END = "stream_start", "stream_step", "stream_end"
_STATE = "state_"
_LARGEST_ID = 2**53  # So that every reader of JSON can hold what the server chooses.

State = Mapping[str, np.ndarray]


class Control(enum.IntEnum):
    """What a request is to its sequence."""

    CONTINUE = 0
    START = 1
    END = 2


def is_asked(inputs: Mapping[str, np.ndarray]) -> bool:
    """Tells whether a request leaves its state to the server."""
    return CONTROL in inputs or ID in inputs


def own_inputs(inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Returns the inputs of a request that are the model's own."""
    return {name: inputs[name] for name in inputs if name not in (ID, CONTROL)}


def is_state(name: str) -> bool:
    """Tells whether an input or output holds state."""
    return name.startswith(_STATE)


def control(inputs: Mapping[str, np.ndarray]) -> tuple[Control, int]:
    """Returns what a request is to its sequence, and the sequence's number; 0 where it has none.

    Raises:
        ServingError: They are of other types, or are not there where they must be.
    """
    wanted = _single(inputs, CONTROL, np.uint32, "sequence control input")
    number = _single(inputs, ID, np.uint64, "sequence id")
    if wanted not in Control.__members__.values():
        raise invalid("Unexpected value of sequence control input")
    if wanted != Control.START and not number:
        raise invalid("Sequence ID has not been provided in request inputs")
    return Control(wanted), number


def _single(inputs: Mapping[str, np.ndarray], name: str, dtype, what: str) -> int:
    if name not in inputs:
        return 0
    array = inputs[name]
    if array.dtype != dtype:
        field = f"{np.dtype(dtype).name}_val"
        raise invalid(f"Could not find {what} in expected tensor proto field {field}")
    if array.shape != (1,):
        raise invalid("Special input proto does not contain tensor shape information")
    return int(array[0])


class Sequence:
    """One sequence; who has its turn may read and change its state."""

    def __init__(self, number: int, version: int):
        self.number = number
        self.version = version
        self.state: State = {}
        self.ending = False
        self.gone = False
        self.used = time.monotonic()
        self.busy = False
        self.line: collections.deque[Future] = collections.deque()


class Sequences:
    """The sequences of all models.

    Args:
        most: Most sequences of one model.
        seconds: After which a sequence that nobody goes on with is forgotten.
        metrics: Says how many there are.
    """

    def __init__(self, most: int, seconds: float, metrics: Metrics):
        self._most = most
        self._seconds = seconds
        self._metrics = metrics
        self._models: dict[str, dict[int, Sequence]] = {}
        self._lock = threading.Lock()
        self._timer: threading.Timer | None = None

    def begin(self, model: str, number: int, version: int) -> Sequence:
        """Returns a new sequence.

        Raises:
            ServingError: There is one of that number, or there are too many.
        """
        with self._lock:
            known = self._models.setdefault(model, {})
            self._forget_idle()
            if number in known:
                raise ServingError(Code.ALREADY_EXISTS, "Sequence with provided ID already exists")
            if len(known) >= self._most:
                raise ServingError(
                    Code.UNAVAILABLE,
                    "Max sequence number has been reached. Could not create new sequence.",
                )
            while not number or number in known:
                number = secrets.randbelow(_LARGEST_ID)
            known[number] = Sequence(number, version)
            self._counted(model)
            self._watch()
            return known[number]

    def find(self, model: str, number: int, last: bool) -> Sequence:
        """Returns a sequence; after its last request it is found no more.

        Raises:
            ServingError: There is none, or none any more.
        """
        with self._lock:
            self._forget_idle()
            sequence = self._models.get(model, {}).get(number)
            if sequence is None:
                raise _missing()
            if sequence.ending:
                raise ServingError(
                    Code.FAILED_PRECONDITION,
                    "Sequence last request is being processed and it's not available anymore",
                )
            sequence.ending = last
            return sequence

    def forget(self, model: str, number: int) -> None:
        """Drops a sequence and its state, if it is there."""
        with self._lock:
            sequence = self._models.get(model, {}).pop(number, None)
            if sequence:
                sequence.gone = True
                self._counted(model)

    @asynccontextmanager
    async def turn(self, sequence: Sequence, call: Call) -> AsyncIterator[None]:
        """Waits until the requests of a sequence that came before are answered.

        Raises:
            ServingError: The sequence ended meanwhile.
        """
        before = self._stand_in_line(sequence)
        try:
            if before:
                await call.wait(before)
        except BaseException:
            if not before.cancel():
                self._next(sequence)
            raise
        try:
            if sequence.gone:
                raise _missing()
            yield
        finally:
            self._next(sequence)

    def close(self) -> None:
        """Watches no more."""
        with self._lock:
            self._models.clear()
            if self._timer:
                self._timer.cancel()

    def _stand_in_line(self, sequence: Sequence) -> Future | None:
        with self._lock:
            if not sequence.busy:
                sequence.busy = True
                return None
            sequence.line.append(Future())
            return sequence.line[-1]

    def _next(self, sequence: Sequence) -> None:
        with self._lock:
            sequence.used = time.monotonic()
            while sequence.line:
                future = sequence.line.popleft()
                if future.set_running_or_notify_cancel():
                    return future.set_result(None)
            sequence.busy = False

    def _forget_idle(self) -> None:
        limit = time.monotonic() - self._seconds
        for model, known in self._models.items():
            idle = [each for each in known.values() if each.used < limit and not each.busy]
            for sequence in idle:
                sequence.gone = True
                del known[sequence.number]
            if idle:
                self._counted(model)

    def _counted(self, model: str) -> None:
        self._metrics.sequences.set(model, to=len(self._models[model]))

    def _watch(self) -> None:
        """Looks again in a while, so that memory is given back even if nobody asks."""
        if self._timer is None and any(self._models.values()):
            self._timer = threading.Timer(self._seconds, self._look)
            self._timer.daemon = True
            self._timer.start()

    def _look(self) -> None:
        with self._lock:
            self._timer = None
            self._forget_idle()
            self._watch()


def _missing() -> ServingError:
    return not_found("Sequence with provided ID does not exist")
