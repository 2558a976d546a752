"""Handwritten digits among scraps of others, and which pixel is of which: a TFDS builder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import tensorflow_datasets as tfds

from pipelines.datasets.splits import SPLITS

_DESCRIPTION = """
Digits of MNIST on canvases, with the class of each pixel.

A canvas of 48 by 48 pixels has one or two digits, and up to eight scraps of others, 8 by 8 pixels
each; nothing overlaps. A pixel of the mask is 0 on the background, to which scraps belong, and 1
more than the digit where a digit's own pixel has half of the full intensity at least.

Digits are MNIST's: the first 50,000 of its training images for the training split, the rest for
validation, its test images for test. All else is drawn from generators seeded by the number of the
canvas, so that the data set is always the same.
"""

_SIDE, _DIGIT, _SCRAP, _MARGIN = 48, 28, 8, 4
_SCRAPS, _TRIALS, _HALF = 8, 20, 128
# What is read of MNIST, and how many canvases are made of it.
_SOURCES = {
    "train": ("train[:50000]", 10_000),
    "validation": ("train[50000:]", 1_000),
    "test": ("test", 1_000),
}
_CLASSES = ["background", *map(str, range(10))]


class ClutteredDigits(tfds.core.GeneratorBasedBuilder):
    """Builds the data set."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        image = tfds.features.Image(shape=(_SIDE, _SIDE, 1))
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": image,
                    "mask": tfds.features.LabeledImage(labels=_CLASSES, shape=(_SIDE, _SIDE, 1)),
                }
            ),
            supervised_keys=("image", "mask"),
            homepage="http://yann.lecun.com/exdb/mnist/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        digits = tfds.builder("mnist", data_dir=self.data_dir_root)
        digits.download_and_prepare()
        return {split: self._generate_examples(digits, split) for split in SPLITS}

    def _generate_examples(self, digits, split: str) -> Iterator[tuple[int, dict]]:
        source, count = _SOURCES[split]
        images, labels = digits.as_dataset(source, batch_size=-1, as_supervised=True)
        images, labels = images.numpy()[..., 0], labels.numpy()
        for number in range(count):
            generator = np.random.default_rng([SPLITS.index(split), number])
            image, mask = canvas(images, labels, generator)
            yield number, {"image": image[..., np.newaxis], "mask": mask[..., np.newaxis]}


def canvas(
    images: np.ndarray, labels: Sequence[int], generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Returns a canvas and its mask, `[48, 48]` uint8 each.

    Args:
        images: `[N, 28, 28]` uint8, digits to draw from.
        labels: `[N]`, what they are.
        generator: All that is random comes from it.
    """
    image, mask = np.zeros([2, _SIDE, _SIDE], np.uint8)
    free = np.ones([_SIDE, _SIDE], bool)

    def put(what: np.ndarray) -> tuple[slice, slice] | None:
        place = _place(generator, what.shape)
        if not free[place].all():
            return None
        image[place], free[place] = what, False
        return place

    wanted = generator.integers(1, 2, endpoint=True)
    for number in generator.integers(len(images), size=_TRIALS):
        digit = _trimmed(images[number])
        if wanted and (place := put(digit)):
            mask[place] = np.where(digit >= _HALF, 1 + labels[number], 0)
            wanted -= 1
    for number in generator.integers(len(images), size=_SCRAPS):
        put(_scrap(images[number], generator))
    return image, mask


def _trimmed(digit: np.ndarray) -> np.ndarray:
    """Returns the rows and columns from the first to the last that hold anything."""
    rows, columns = (np.flatnonzero(digit.any(axis)) for axis in (1, 0))
    return digit[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _scrap(digit: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Returns a piece from the middle of a digit."""
    top, left = generator.integers(_MARGIN, _DIGIT - _SCRAP - _MARGIN, size=2, endpoint=True)
    return digit[top : top + _SCRAP, left : left + _SCRAP]


def _place(generator: np.random.Generator, size: Sequence[int]) -> tuple[slice, slice]:
    """Returns rows and columns somewhere on the canvas."""
    begins = [generator.integers(_SIDE - side, endpoint=True) for side in size]
    return tuple(slice(b, b + side) for b, side in zip(begins, size, strict=True))
