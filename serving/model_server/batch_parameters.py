"""How requests are to be batched, as BatchingParameters says it."""

import os
from typing import NamedTuple

from serving.model_server import protos
from serving.model_server.batch_padding import Padding
from serving.model_server.errors import invalid
from serving.model_server.flags import Options

_OF_VERSION = "batching_params.pbtxt"


class Parameters(NamedTuple):
    """How the requests of one version are batched; the defaults are TF Serving's."""

    largest_request: int = 1000  # Rows.
    largest_batch: int = 1000  # Rows that the graph sees at once.
    timeout: float = 0.0  # Seconds that a batch waits for more.
    most_batches: int = 10  # Batches that may wait in one queue.
    allowed_sizes: tuple[int, ...] = ()  # Rising; a batch is filled up to the next of them.
    pad: bool = False  # Whether inputs of other lengths join a batch.
    paddings: tuple[Padding, ...] = ()  # How inputs are lengthened, where that is declared.
    splits: bool = False  # Whether a request may be longer than a batch.

    def padded_size(self, size: int) -> int:
        """Returns the number of rows to which `size` rows are filled up."""
        return next((allowed for allowed in self.allowed_sizes if allowed >= size), size)


class Pool(NamedTuple):
    """The threads that run batches."""

    threads: int
    name: str


def of_server(options: Options) -> tuple[Parameters, Pool]:
    """Returns the parameters of every version that has none of its own, and of the threads."""
    message = protos.BatchingParameters(thread_pool_name={"value": "model_server_batch_threads"})
    if options.batching_parameters_file:
        message = protos.read(options.batching_parameters_file, protos.BatchingParameters)
    threads = _number(message, "num_batch_threads", os.cpu_count() or 1)
    name = message.thread_pool_name.value or "batch_threads"
    return _parameters(message), Pool(max(threads, 1), name)


def of_version(path: str) -> Parameters | None:
    """Returns the parameters that a version's folder holds; None where it holds none."""
    file = os.path.join(path, _OF_VERSION)
    if not os.path.exists(file):
        return None
    return _parameters(protos.read(file, protos.BatchingParameters))


def _parameters(message) -> Parameters:
    default = Parameters()
    largest = _number(message, "max_batch_size", default.largest_request)
    split = message.enable_large_batch_splitting.value
    parameters = Parameters(
        largest_request=largest,
        largest_batch=_number(message, "max_execution_batch_size", largest) if split else largest,
        timeout=_number(message, "batch_timeout_micros", 0) / 1e6,
        most_batches=_number(message, "max_enqueued_batches", default.most_batches),
        allowed_sizes=tuple(message.allowed_batch_sizes),
        pad=message.pad_variable_length_inputs,
        paddings=tuple(map(_padding, message.padding)),
        splits=split,
    )
    _check(parameters)
    return parameters


def _padding(message) -> Padding:
    allowed = tuple(message.allowed_lengths)
    if not message.input:
        raise invalid("A padding must name its input")
    if list(allowed) != sorted(set(allowed)):
        raise invalid(f"Entries of allowed_lengths must rise. Received: {list(allowed)}")
    outputs = tuple(message.outputs)
    return Padding(message.input, message.value, message.text, message.lengths, outputs, allowed)


def _number(message, name: str, default: int) -> int:
    return getattr(message, name).value if message.HasField(name) else default


def _check(parameters: Parameters) -> None:
    if parameters.largest_batch < 1 or parameters.most_batches < 1 or parameters.timeout < 0:
        raise invalid("Sizes and numbers of batches must be positive, and the timeout not negative")
    allowed = parameters.allowed_sizes
    if not allowed:
        return
    if list(allowed) != sorted(set(allowed)):
        raise invalid(f"Entries of allowed_batch_sizes must rise. Received: {list(allowed)}")
    if allowed[-1] != parameters.largest_batch:
        whole, pieces = "match max_batch_size", "be equal to max_execution_batch_size"
        limit = pieces if parameters.splits else whole
        raise invalid(
            f"Last entry in allowed_batch_sizes must {limit}; last entry was {allowed[-1]}; "
            f"expected {parameters.largest_batch}"
        )
