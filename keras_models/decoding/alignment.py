"""The likeliest alignments of labels with frames, by the posterior over all of them."""

from collections.abc import Iterator

import numpy as np


def alignments(occupancies, input_lengths, label_lengths) -> Iterator[tuple]:
    """Yields of each example its nodes, and of each label the frame and how likely it is there.

    Args:
        occupancies: `TransducerOccupancies` of examples that have a frame and a path.
        input_lengths: `[B]` integers.
        label_lengths: `[B]` integers.
    """
    lengths = (each.numpy().tolist() for each in (input_lengths, label_lengths))
    for frames, count, *padded in zip(*lengths, *occupancies, strict=True):
        nodes, blanks, labels = (part.numpy()[:frames, : count + 1] for part in padded)
        path = best_alignment(blanks, labels).tolist()
        yield nodes, tuple(path), tuple(labels[path, range(count)].tolist())


def best_alignment(blanks, labels):
    """Returns the frame at which each label is emitted on the likeliest path, `[U]` integers.

    Given the labels, paths are a Markov chain: at a node, each arc is taken with its share of the
    node's occupancy. The product of these shares is the posterior probability of a path, and here
    the path is found for which it is greatest.

    Args:
        blanks: `[T, U + 1]` floats, the occupancies of the blanks of one example, as
            `transducer_occupancies` returns them, without padding. T is at least 1.
        labels: `[T, U + 1]` floats, those of its labels.
    """
    blanks, labels = np.asarray(blanks, np.float64), np.asarray(labels, np.float64)
    nodes = np.maximum(blanks + labels, np.finfo(np.float64).tiny)
    with np.errstate(divide="ignore"):
        by_blank, by_label = np.log(blanks / nodes), np.log(labels / nodes)
    frames, width = blanks.shape
    best = np.full((frames, width), -np.inf)  # of all paths to a node
    emitted = np.zeros((frames, width), bool)  # whether the best one came by a label
    for t in range(frames):
        waited = best[t - 1] + by_blank[t - 1] if t else np.where(np.arange(width), -np.inf, 0.0)
        best[t, 0] = waited[0]
        for u in range(1, width):
            moved = best[t, u - 1] + by_label[t, u - 1]
            emitted[t, u] = moved > waited[u]
            best[t, u] = max(moved, waited[u])
    found, t = np.zeros(width - 1, np.int64), frames - 1
    for u in reversed(range(width - 1)):
        while not emitted[t, u + 1]:
            t -= 1
        found[u] = t
    return found
