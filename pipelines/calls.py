"""Calls of a step: here, one after another, or by whichever worker is free."""

from __future__ import annotations

from collections import deque

import tensorflow as tf

# Calls that a worker has before it beside the one that it is at.
_AHEAD = 2


class Calls:
    """Calls of functions in this process: each is done when it returns."""

    def __call__(self, function, *arguments) -> list:
        """Calls a function, and returns what those calls gave that are done since."""
        return [function(*arguments)]

    def join(self) -> list:
        """Returns what all other calls gave, once they are done."""
        return []


class ScheduledCalls(Calls):
    """Calls of functions by workers, which take them as they are free.

    One that a lost worker was at is made anew by another one, or by that one when it is back.

    Args:
        strategy: Whose workers.
        workers: How many there are.
    """

    def __init__(self, strategy: tf.distribute.ParameterServerStrategy, workers: int):
        self._coordinator = tf.distribute.coordinator.ClusterCoordinator(strategy)
        self._under_way: deque = deque()
        self._most = workers * (1 + _AHEAD)

    def __call__(self, function, *arguments) -> list:
        self._under_way.append(self._coordinator.schedule(function, arguments))
        return self._but(self._most)

    def join(self) -> list:
        return self._but(0)

    def _but(self, left: int) -> list:
        """Returns what the first calls gave, once they are done, all but those that are left."""
        first = range(len(self._under_way) - left)
        return [self._under_way.popleft().get() for _ in first]
