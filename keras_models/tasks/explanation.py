"""What a task can say of how an answer goes back to its input."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class NotExplained(Exception):
    """A kind of task cannot say how an answer goes back to its input, or not for this one."""


class Explanation(NamedTuple):
    """How the parts of one answer go back to the parts of its input.

    `weights` `[T, U]` are what each part of the answer has of each part of the input, in `[0, 1]`.
    Or, `[T, U + 1]`, they are the probabilities of the places of a lattice: each has read up to a
    part of the input and said so many parts of the answer, from none to all.
    """

    inputs: tuple[str, ...]  # T parts
    outputs: tuple[str, ...]  # U parts
    weights: np.ndarray
    frames: tuple[int, ...]  # [U], the part of the input that each goes back to most likely
    certainties: tuple[float, ...]  # [U], how likely
