"""Classification: an input of any kind in, one of the known labels out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import tensorflow as tf

from keras_models.configs.classification import Classification
from keras_models.frontends.label import LabelFrontend
from keras_models.losses.cross_entropy import cross_entropy
from keras_models.tasks.one_input import OneInputTask


class Classifier(OneInputTask):
    """A model that scores the classes of a whole input.

    Args:
        config: Names of input and label, what an input is, label smoothing.
        model: Config whose `build(shape, classes)` gives a layer for inputs of the frontend's
            `shape`. It is called by what the frontend's `inputs` gives and a `dropout_seed`, and
            gives scores `[B, classes]`.
        folder: Holds the classes, and what the input's frontend knows of the training data.
    """

    higher_is_better = frozenset({"accuracy"})

    def __init__(self, config: Classification, model, folder: Path):
        super().__init__(config.input, folder)
        self._config, self._label = config, config.label
        self._labels = LabelFrontend(config.label, folder)
        self.frontends = {self._input: self._frontend, self._label: self._labels}
        self.model = model.build(self._frontend.shape, len(self._labels.classes))

    def features(self, records):
        return {
            self._input: self._frontend.encode(records[self._input]),
            self._label: self._labels.encode(records[self._label]),
        }

    def feasible(self, features):
        """Returns `[B]` bool: whether the input is whole, and its label a known class."""
        return self._frontend.feasible(features[self._input]) & (features[self._label] >= 0)

    def losses(self, batch, dropout_seed=None):
        scores = self._scores(batch, dropout_seed)
        return cross_entropy(scores, batch[self._label], self._config.label_smoothing)

    def predict(self, batch):
        """Returns the likeliest class `[B]` int32, and the probability of each, `[B, classes]`."""
        scores = tf.cast(self._scores(batch), tf.float32)
        return tf.argmax(scores, axis=-1, output_type=tf.int32), tf.nn.softmax(scores)

    def _scores(self, batch, dropout_seed=None):
        return self.model(*self._frontend.inputs(batch), dropout_seed=dropout_seed)

    def _answer(self, batch):
        """Returns the likeliest label, and as `scores` the probability of each, `[B, classes]`.

        They are in the order of the asset `LABEL.txt`, and of what `classify` gives as `classes`.
        """
        best, probabilities = self.predict(batch)
        return {self._label: self._labels.decode(best), "scores": probabilities}

    def signatures(self):
        """Returns those of every task of one input, and `classify`."""
        return {**super().signatures(), "classify": self._classify()}

    def _classify(self):
        """Returns what TensorFlow Serving's Classify wants of a signature, for `tf.Example`s."""

        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
        def serve(examples):
            scores = self.answer(self._frontend.parse(examples))["scores"]
            classes = tf.broadcast_to(tf.constant(self._labels.classes), tf.shape(scores))
            return {"classes": classes, "scores": scores}

        return serve

    @property
    def output_name(self):
        return self._label

    @property
    def metrics(self):
        return ("accuracy",)

    def measure(self, answers, references):
        """Returns the share of answers that are among their references."""
        right = sum(answer in each for answer, each in zip(answers, references, strict=True))
        return {"accuracy": right / len(answers)}

    def confusions(self, answers, references):
        """Returns how often a label was taken for another one."""
        pairs = zip(answers, references, strict=True)
        return Counter((each[0], answer) for answer, each in pairs if answer not in each)
