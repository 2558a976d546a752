"""Inputs of other lengths in one array: by what they are lengthened, and what tells the lengths.

TF Serving lengthens every input with the input's own first element, tells the model nothing of
it, and leaves outputs as long as they come. Where a padding is declared, the value is the one
declared, an input of the true lengths is fed, and outputs are cut back.
"""

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef

from serving.model_server.errors import Code, ServingError, invalid

_HIGHEST_RANK = 6


class Padding(NamedTuple):
    """How one input of a model is lengthened.

    Lengths are those along the input's second axis, `[B, T, …]`.
    """

    input: str
    value: float = 0.0
    text: bytes = b""  # In place of the value, for strings.
    lengths: str = ""  # The input that takes the true lengths, [B]; nothing where there is none.
    outputs: tuple[str, ...] = ()  # Those as long as the input, which are cut back.
    allowed_lengths: tuple[int, ...] = ()  # Rising; lengths are filled up to the next of them.

    def padded_length(self, length: int) -> int:
        """Returns the length up to which `length` is filled."""
        return next((allowed for allowed in self.allowed_lengths if allowed >= length), length)


class ByTensor(NamedTuple):
    """The paddings of a graph, by the names of its tensors."""

    inputs: Mapping[str, Padding] = {}
    outputs: Mapping[str, str] = {}  # The input that an output is as long as.


def by_tensor(paddings: Sequence[Padding], signatures: Mapping[str, SignatureDef]) -> ByTensor:
    """Returns what is declared for the inputs of signatures, for the tensors behind them."""
    inputs, outputs = {}, {}
    for signature in signatures.values():
        for padding in paddings:
            if padding.input not in signature.inputs:
                continue
            name = signature.inputs[padding.input].name
            inputs[name] = padding
            for output in padding.outputs:
                if output in signature.outputs:
                    outputs[signature.outputs[output].name] = name
    return ByTensor(inputs, outputs)


def with_lengths(
    signature: SignatureDef, inputs: Mapping[str, np.ndarray], paddings: Sequence[Padding]
) -> Mapping[str, np.ndarray]:
    """Returns inputs with the lengths that a caller has left out: those of the caller's arrays."""
    added = {}
    for padding in paddings:
        name = padding.lengths
        if name in signature.inputs and name not in inputs and padding.input in inputs:
            array = inputs[padding.input]
            if array.ndim < 2:
                raise invalid(
                    f"Input {padding.input} must have a second axis, which {name} tells the "
                    f"length of. Received: shape {list(array.shape)}."
                )
            dtype = tf.as_dtype(signature.inputs[name].dtype).as_numpy_dtype
            added[name] = np.full(array.shape[0], array.shape[1], dtype)
    return {**inputs, **added} if added else inputs


def stack(rows: Sequence[np.ndarray], padding: Padding) -> np.ndarray:
    """Returns rows of unlike lengths, `[T, …]` each, in one array."""
    return np.concatenate(lengthen([row[None] for row in rows], padding))


def lengthen(arrays: Sequence[np.ndarray], padding: Padding | None) -> list[np.ndarray]:
    """Returns arrays `[B, …]` made as long as the longest in every dimension.

    Args:
        arrays: Arrays of one rank and type.
        padding: What is declared; TF Serving's way where nothing is.

    Raises:
        ServingError: They cannot be lengthened.
    """
    longest = np.max([array.shape[1:] for array in arrays], axis=0).tolist()
    if padding and longest:
        longest[0] = padding.padded_length(longest[0])
    return [_lengthened(array, longest, padding) for array in arrays]


def cut_back(
    outputs: Mapping[str, np.ndarray],
    request: Mapping[str, np.ndarray],
    batch: Mapping[str, np.ndarray],
    inputs: Mapping[str, str],
) -> list[np.ndarray]:
    """Returns the outputs of a request, those of a declared length as long as its inputs were.

    Args:
        outputs: Arrays by tensor name.
        request: What the request fed.
        batch: What the batch fed.
        inputs: The input that an output is as long as.

    Raises:
        ServingError: An output is not as long as it was declared to be.
    """
    return [
        _cut(name, array, request[inputs[name]], batch[inputs[name]])
        if inputs.get(name) in request
        else array
        for name, array in outputs.items()
    ]


def _cut(name: str, array: np.ndarray, request: np.ndarray, batch: np.ndarray) -> np.ndarray:
    if request.ndim < 2:
        return array
    if array.ndim < 2 or array.shape[1] != batch.shape[1]:
        raise ServingError(
            Code.FAILED_PRECONDITION,
            f"Output {name} is declared to be as long as an input, {batch.shape[1]} along its "
            f"second axis, but has shape {list(array.shape)}.",
        )
    return array[:, : request.shape[1]]


def _lengthened(array: np.ndarray, longest: list[int], padding: Padding | None) -> np.ndarray:
    shape = (len(array), *longest)
    if shape == array.shape:
        return array
    if array.ndim > _HIGHEST_RANK:
        raise invalid("Only tensors with rank from 1 to 6 can be padded.")
    longer = np.full(shape, _filler(array, padding), array.dtype)
    longer[tuple(map(slice, array.shape))] = array
    return longer


def _filler(array: np.ndarray, padding: Padding | None):
    if padding:
        return padding.text if array.dtype == object else padding.value
    if not array.size:
        raise invalid("Got empty tensor in batch of non-empty tensors.")
    return array.flat[0]
