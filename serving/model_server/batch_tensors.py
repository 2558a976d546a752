"""Rows of several requests in one array, and back."""

from collections.abc import Hashable, Mapping, Sequence

import numpy as np

from serving.model_server import batch_padding
from serving.model_server.batch_padding import Padding
from serving.model_server.errors import Code, ServingError, invalid

Feeds = Mapping[str, np.ndarray]
Paddings = Mapping[str, Padding]  # By the name of an input's tensor.


def rows(feeds: Feeds) -> int:
    """Returns how many rows a request has.

    Raises:
        ServingError: It cannot be put in a batch.
    """
    if not feeds:
        raise invalid("Batching Run() must have at least one input tensor")
    if not all(array.ndim for array in feeds.values()):
        raise invalid("Batching Run() input tensors must have at least one dimension")
    sizes = {len(array) for array in feeds.values()}
    if len(sizes) > 1:
        raise invalid("Batching Run() input tensors must have equal 0th-dimension size")
    return sizes.pop()


def kind(feeds: Feeds, pad: bool, paddings: Paddings) -> Hashable:
    """Returns what requests must have in common to share a batch."""
    return tuple(
        (name, array.dtype, _inner(array, pad, paddings.get(name)))
        for name, array in sorted(feeds.items())
    )


def _inner(array: np.ndarray, pad: bool, padding: Padding | None) -> Hashable:
    if padding and padding.allowed_lengths and array.ndim > 1:
        return array.ndim, padding.padded_length(array.shape[1])
    return array.ndim if pad or padding else array.shape[1:]


def cut(feeds: Feeds, size: int) -> list[dict[str, np.ndarray]]:
    """Returns a request in pieces of `size` rows at most."""
    return [
        {name: array[start : start + size] for name, array in feeds.items()}
        for start in range(0, rows(feeds), size)
    ]


def merge(
    requests: Sequence[Feeds], size: int, pad: bool, paddings: Paddings
) -> dict[str, np.ndarray]:
    """Returns the rows of all requests in one array an input, filled up to `size` rows.

    What it is filled up with is the first row of the last request, as in TF Serving.

    Args:
        requests: Requests of one kind.
        size: As many rows as they have in all, or more.
        pad: Lengthen every input to the longest of its name.
        paddings: How to lengthen, where that is declared.
    """
    merged = {}
    for name in requests[0]:
        arrays = [request[name] for request in requests]
        if pad or name in paddings:
            arrays = batch_padding.lengthen(arrays, paddings.get(name))
        missing = size - sum(map(len, arrays))
        if missing:
            arrays.append(np.repeat(arrays[-1][:1], missing, axis=0))
        merged[name] = np.concatenate(arrays) if len(arrays) > 1 else arrays[0]
    return merged


def split(outputs: Sequence[np.ndarray], sizes: Sequence[int], size: int) -> list[list[np.ndarray]]:
    """Returns the rows of `outputs` that are each request's.

    Args:
        outputs: Arrays of `size` rows.
        sizes: How many rows each request has.
        size: How many rows the batch had.

    Raises:
        ServingError: The graph does not give a row for a row.
    """
    for array in outputs:
        if not array.ndim:
            raise _not_by_rows("Batched output tensor has 0 dimensions")
        if len(array) != size:
            raise _not_by_rows(
                "Batched output tensor's 0th dimension does not equal the sum of the 0th dimension "
                "sizes of the input tensors"
            )
    ends = np.cumsum(sizes).tolist()
    return [
        [array[end - count : end] for array in outputs]
        for count, end in zip(sizes, ends, strict=True)
    ]


def join(pieces: Sequence[Sequence[np.ndarray]]) -> list[np.ndarray]:
    """Returns the outputs of a request from those of its pieces."""
    if len(pieces) == 1:
        return list(pieces[0])
    return [np.concatenate(arrays) for arrays in zip(*pieces, strict=True)]


def _not_by_rows(message: str) -> ServingError:
    return ServingError(Code.FAILED_PRECONDITION, message)
