"""Numbers to mean 0 and deviation 1, by what is learnt of the training data, and back."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import tensorflow as tf


def write_statistics(
    batches: Iterable[tf.Tensor | tf.RaggedTensor], channels: int, field: str, folder: Path
) -> None:
    """Writes mean and standard deviation of each channel over all finite numbers.

    The deviation of a channel that never changes is written as 1.

    Args:
        batches: `[B, …]` float each, its last axis or, with one channel, all numbers alike.
        channels: How many numbers belong together.
        field: What the numbers are called.
        folder: Where to write `FIELD.json`.
    """
    count, mean, squares = (np.zeros(channels) for _ in range(3))
    for batch in batches:
        flat = batch.flat_values if isinstance(batch, tf.RaggedTensor) else batch
        values = flat.numpy().astype(np.float64).reshape(-1, channels)
        values = np.ma.masked_invalid(values)
        more = values.count(axis=0)
        # Chan, Golub and LeVeque 1979: sums of squares about the mean of two sets together.
        difference = values.mean(axis=0).filled(0.0) - mean
        total = np.maximum(count + more, 1)
        squares += values.var(axis=0).filled(0.0) * more + difference**2 * count * more / total
        mean += difference * more / total
        count += more
    deviation = np.sqrt(squares / np.maximum(count, 1))
    deviation[deviation == 0] = 1.0
    folder.mkdir(parents=True, exist_ok=True)
    statistics = {"mean": mean.tolist(), "deviation": deviation.tolist()}
    statistics_path(field, folder).write_text(json.dumps(statistics) + "\n", encoding="utf-8")


def statistics_path(field: str, folder: Path) -> Path:
    """Returns where the statistics of a field lie."""
    return folder / f"{field}.json"


class Normalization(tf.Module):
    """Takes the mean from numbers and divides them by the deviation, and the reverse.

    Args:
        field: What the numbers are called.
        folder: Holds the statistics, as `write_statistics` left them. The file becomes an asset of
            an exported model.
    """

    def __init__(self, field: str, folder: Path):
        super().__init__()
        path = statistics_path(field, folder)
        statistics = json.loads(path.read_text(encoding="utf-8"))
        self._mean = np.array(statistics["mean"], np.float32)
        self._deviation = np.array(statistics["deviation"], np.float32)
        self._file = tf.saved_model.Asset(str(path))

    def normalized(self, values: tf.Tensor) -> tf.Tensor:
        """Returns `[…, channels]` float32 for the same."""
        return (values - self._mean) / self._deviation

    def restored(self, values: tf.Tensor) -> tf.Tensor:
        """Returns the `values` of which `normalized` gives these."""
        return values * self._deviation + self._mean
