"""Segmentation: an image in, the class of each of its pixels out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import tensorflow as tf

from keras_models.configs.segmentation import Segmentation
from keras_models.frontends.label import LabelFrontend
from keras_models.layers.convolution import size_mask
from keras_models.losses.cross_entropy import cross_entropy
from keras_models.tasks.one_input import OneInputTask

# What stands in a mask for places that are outside of its image.
OUTSIDE = -1


class Segmenter(OneInputTask):
    """A model that scores classes for every pixel.

    Args:
        config: Names of image and mask, the classes.
        model: Config whose `build_dense(shape, classes)` gives a layer for images of a `shape`,
            which is called as a `Classifier`'s is, and gives scores `[B, H, W, classes]`.
        folder: Holds the names of the classes, an asset of the exported model, and what the image's
            frontend knows of the training data.
    """

    higher_is_better = frozenset({"mean_iou", "pixel_accuracy"})

    def __init__(self, config: Segmentation, model, folder: Path):
        super().__init__(config.input, folder)
        self._classes, self._mask = config.classes, config.mask
        self._smoothing = config.label_smoothing
        names = LabelFrontend(config.mask, folder)
        self.frontends = {self._input: self._frontend, self._mask: names}
        self.model = model.build_dense(self._frontend.shape, len(config.classes))

    def features(self, records):
        return {
            self._input: self._frontend.encode(records[self._input]),
            self._mask: records[self._mask],
        }

    def feasible(self, features):
        """Returns `[B]` bool: whether every pixel is of one of the classes."""
        known = tf.cast(features[self._mask], tf.int32) < len(self._classes)
        return tf.reduce_all(known, axis=[1, 2, 3])

    def augmented(self, batch, seed):
        """Returns images and masks changed alike; what comes in from outside is of class 0."""
        return {
            self._input: self._frontend.augmented(batch[self._input], seed),
            self._mask: self._frontend.augmented(batch[self._mask], seed, "NEAREST"),
        }

    def losses(self, batch, dropout_seed=None):
        """Returns the mean over the pixels of each image, `[B]` float32."""
        scores = self.model(*self._frontend.inputs(batch), dropout_seed=dropout_seed)
        classes = tf.cast(batch[self._mask][..., 0], tf.int32)
        losses = cross_entropy(scores, classes, self._smoothing)
        return tf.reduce_mean(losses, axis=[1, 2])

    def predict(self, batch):
        """Returns the likeliest class of each pixel, `[B, H, W]` int32, `OUTSIDE` past an end."""
        pixels, sizes = self._frontend.inputs(batch)
        scores = self.model(pixels, sizes)
        best = tf.argmax(scores, axis=-1, output_type=tf.int32)
        if sizes is None:
            return (best,)
        return (tf.where(size_mask(sizes, pixels)[..., 0] > 0, best, OUTSIDE),)

    def _answer(self, batch):
        """Returns the class of each pixel, `[B, H, W]` int32: the lines of the asset `MASK.txt`.

        Where images are of different sizes, places past the end of one have -1.
        """
        (best,) = self.predict(batch)
        return {self._mask: best}

    @property
    def output_name(self):
        return self._mask

    @property
    def metrics(self):
        return ("mean_iou", "pixel_accuracy")

    def measure(self, answers, references):
        """Returns the classes' mean intersection over union, and the share of right pixels.

        Both are counted over all pixels of all images; a class that is in neither answers nor
        references does not count.
        """
        counts = self._counts(answers, references)
        right, every = np.diag(counts), counts.sum(0) + counts.sum(1)
        unions = every - right
        ious = right[unions > 0] / unions[unions > 0]
        return {"mean_iou": float(ious.mean()), "pixel_accuracy": float(right.sum() / counts.sum())}

    def confusions(self, answers, references):
        """Returns how many pixels of a class were taken for another one."""
        counts, names = self._counts(answers, references), self._classes
        pairs = zip(*np.nonzero(counts), strict=True)
        return Counter({(names[r], names[a]): int(counts[r, a]) for r, a in pairs if r != a})

    def _counts(self, answers, references) -> np.ndarray:
        """Returns the number of pixels by class and by what was answered, `[classes, classes]`."""
        size = len(self._classes)
        counts = np.zeros([size, size], np.int64)
        for answer, (reference, *_) in zip(answers, references, strict=True):
            np.add.at(counts, (reference[..., 0], answer), 1)
        return counts
