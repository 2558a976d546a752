"""MNIST with its pixels in another order, the same one in every image: a TFDS builder."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import tensorflow_datasets as tfds

_DESCRIPTION = """
The images of MNIST with their 784 pixels permuted, all by the same permutation, which was drawn
once. What is next to what tells nothing any more; all else is as it was.
"""

_SIDE, _SEED = 28, 1


class ShuffledDigits(tfds.core.GeneratorBasedBuilder):
    """Builds the data set."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=_DESCRIPTION,
            features=tfds.features.FeaturesDict(
                {
                    "image": tfds.features.Image(shape=(_SIDE, _SIDE, 1)),
                    "label": tfds.features.ClassLabel(num_classes=10),
                }
            ),
            supervised_keys=("image", "label"),
            homepage="http://yann.lecun.com/exdb/mnist/",
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        digits = tfds.builder("mnist", data_dir=self.data_dir_root)
        digits.download_and_prepare()
        return {split: self._generate_examples(digits, split) for split in ("train", "test")}

    def _generate_examples(self, digits, split: str) -> Iterator[tuple[int, dict]]:
        images, labels = digits.as_dataset(split, batch_size=-1, as_supervised=True)
        shuffled = permuted(images.numpy())
        for number, (image, label) in enumerate(zip(shuffled, labels.numpy(), strict=True)):
            yield number, {"image": image, "label": label}


def permuted(images: np.ndarray) -> np.ndarray:
    """Returns images `[N, H, W, C]` with their pixels in another order, the same for all."""
    flat = images.reshape(len(images), -1, images.shape[-1])
    order = np.random.default_rng(_SEED).permutation(flat.shape[1])
    return flat[:, order].reshape(images.shape)
