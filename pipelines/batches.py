"""Endless batches, each a function of its number: made here, or by whoever is asked for some."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import tensorflow as tf

Batch = Mapping[str, tf.Tensor]
_AHEAD = 4
# Batches whose examples are drawn at once, which takes about as long as to draw those of one.
_DRAWN_TOGETHER = 64
_LAST = 2**62


class Batches(NamedTuple):
    """Endless batches, each a function of its number.

    Attributes:
        draw: Returns what it takes to make the batches of numbers `[S]` int64: tensors `[S, …]`.
        make: Returns a batch of its number and what was drawn for it.
    """

    draw: Callable[[tf.Tensor], tuple[tf.Tensor | tf.RaggedTensor, ...]]
    make: Callable[..., Batch]

    def since(self, number: int) -> tf.data.Dataset:
        """Returns the batches from a number on, some of them ready before their time."""
        made = self._made(tf.data.Dataset.counter(number, _DRAWN_TOGETHER), _DRAWN_TOGETHER)
        return made.map(lambda number, batch: batch).prefetch(_AHEAD)

    def in_blocks(self, number: int, size: int) -> tf.data.Dataset:
        """Returns pairs of a number and its batch, of which a service can give blocks to workers.

        Args:
            number: The first.
            size: How many batches make a block.
        """
        return self._made(tf.data.Dataset.range(number, _LAST, size), size)

    def _made(self, firsts: tf.data.Dataset, together: int) -> tf.data.Dataset:
        def drawn(first: tf.Tensor) -> tf.data.Dataset:
            numbers = tf.range(first, first + together)
            return tf.data.Dataset.from_tensor_slices((numbers, *self.draw(numbers)))

        def made(number: tf.Tensor, *drawn: tf.Tensor) -> tuple[tf.Tensor, Batch]:
            return number, self.make(number, *drawn)

        return firsts.flat_map(drawn).map(made, tf.data.AUTOTUNE, deterministic=True)
