import itertools

import numpy as np
import pytest

from keras_models.decoding.alignment import best_alignment
from keras_models.losses.transducer import transducer_occupancies


def by_enumeration(logits, labels):
    """Returns the frames of the labels on the path of greatest probability."""
    scores = logits - np.logaddexp.reduce(logits, axis=-1, keepdims=True)
    frames = len(scores)

    def score(emitted):
        """Of the path that emits each label at these frames."""
        total = sum(scores[t, u, label] for u, (t, label) in enumerate(zip(emitted, labels)))  # noqa: B905
        said = [sum(t <= at for t in emitted) for at in range(frames)]
        return total + sum(scores[t, u, 0] for t, u in enumerate(said))

    every = itertools.combinations_with_replacement(range(frames), len(labels))
    return max(every, key=score)


@pytest.mark.parametrize(("frames", "labels"), [(1, 0), (1, 3), (4, 0), (5, 1), (4, 3), (3, 6)])
def test_the_alignment_is_the_likeliest_of_all(frames, labels):
    random = np.random.default_rng(frames)
    for _ in range(5):
        logits = 3 * random.normal(size=(frames, labels + 1, 5)).astype(np.float32)
        symbols = random.integers(1, 5, labels)
        found = transducer_occupancies(logits[None], symbols[None], [frames], [labels])
        alignment = best_alignment(found.blanks[0], found.labels[0])
        assert tuple(alignment) == by_enumeration(logits.astype(np.float64), symbols)


def test_a_long_and_certain_alignment_is_followed_to_its_end():
    frames, labels = 400, 150
    emitted = np.sort(np.random.default_rng(0).integers(0, frames, labels))
    logits = np.zeros((1, frames, labels + 1, 3), np.float32)
    logits[..., 0] = 30
    logits[0, emitted, np.arange(labels)] = [0, 0, 60]
    found = transducer_occupancies(logits, np.full((1, labels), 2), [frames], [labels])
    np.testing.assert_array_equal(best_alignment(found.blanks[0], found.labels[0]), emitted)
