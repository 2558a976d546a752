"""Data sets made of MNIST: canvases of digits with their masks, and shuffled pixels."""

import numpy as np

from pipelines.datasets.cluttered_digits import canvas
from pipelines.datasets.shuffled_digits import permuted

LABELS = np.arange(10)


def _digits():
    """Returns ten blots: each is where it is, of an intensity of its own."""
    images = np.zeros([10, 28, 28], np.uint8)
    for n, image in enumerate(images):
        image[5 : 20 - n // 2, 4 : 12 + n] = 100 + n
        image[8:12, 5 : 10 + n] = 200 + n
    return images


def test_a_canvas_is_the_same_whenever_it_is_drawn():
    one, same, other = (canvas(_digits(), LABELS, np.random.default_rng(n)) for n in (4, 4, 5))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)


def test_a_mask_has_the_bright_pixels_of_one_or_two_whole_digits():
    digits = _digits()
    bright = [(digit >= 128).sum() for digit in digits]
    numbers, scraps = set(), 0
    for seed in range(100):
        image, mask = canvas(digits, LABELS, np.random.default_rng(seed))
        assert image.shape == mask.shape == (48, 48)
        present = np.unique(mask[mask > 0]) - 1
        numbers.update(present.tolist())
        pieces = [(mask == 1 + n).sum() / bright[n] for n in present]
        assert set(pieces) <= {1.0, 2.0}
        assert 1 <= sum(pieces) <= 2
        assert np.all(image[mask > 0] == 199 + mask[mask > 0])
        scraps += ((image >= 128) & (mask == 0)).any()
    assert numbers == set(range(10))
    assert scraps > 90


def test_all_images_are_permuted_alike_and_nothing_is_lost():
    images = np.random.default_rng(0).integers(0, 256, (3, 6, 5, 1), np.uint8)
    shuffled = permuted(images)
    assert shuffled.shape == images.shape
    columns, before = shuffled.reshape(3, -1).T.tolist(), images.reshape(3, -1).T.tolist()
    assert sorted(columns) == sorted(before)
    assert columns != before
