"""Tagging: a text in, a tag for each of its tokens out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import zip_longest
from pathlib import Path

import tensorflow as tf

from keras_models import PADDING
from keras_models.configs.tagging import Tagging
from keras_models.frontends.limit import within_limit
from keras_models.frontends.padding import LENGTHS, pad
from keras_models.frontends.text import TextFrontend
from keras_models.losses.cross_entropy import cross_entropy
from keras_models.tasks.task import Task


class Tagger(Task):
    """A model that scores the tags of each token of a text.

    Args:
        config: Names of the text and its tags, how tokens become symbols, a limit.
        model: Config whose `build_aligned(symbols, tags)` gives a layer from symbols `[B, T]`,
            their lengths and a dropout seed to scores `[B, T, tags]`.
        folder: Holds the vocabulary of each field.
    """

    higher_is_better = frozenset({"token_accuracy", "sentence_accuracy"})

    def __init__(self, config: Tagging, model, folder: Path):
        super().__init__()
        self._config = config
        self._text, self._tags = (TextFrontend(text, folder) for text in config.texts)
        self.frontends = {config.text: self._text, config.tags: self._tags}
        # One more symbol stands for all that are unknown, and padding is no tag.
        self.model = model.build_aligned(self._text.size + 1, self._tags.size - 1)

    def features(self, records):
        return {name: front.encode_all(records[name]) for name, front in self.frontends.items()}

    def feasible(self, features):
        """Returns `[B]` bool: whether there are tokens, each with a tag that training knows."""
        text, tags = features[self._config.text], features[self._config.tags]
        lengths = text.row_lengths()
        known = tf.reduce_all(tags < self._tags.size, axis=1)
        return known & (lengths == tags.row_lengths()) & (lengths > 0)

    def refuses(self, records):
        tokens = self._text.encode_all(records[self._config.text])
        return tokens.row_lengths() > self._config.max_length

    @property
    def refusal(self):
        return f"longer than --task.max_length, which is {self._config.max_length}"

    def losses(self, batch, dropout_seed=None):
        """Returns the sum of the losses of each text's tokens, in nats."""
        scores, tags = self._scores(batch, dropout_seed), batch[self._config.tags]
        both = tf.minimum(tf.shape(scores)[1], tf.shape(tags)[1])  # either may be padded further
        classes = tf.maximum(tags[:, :both] - 1, 0)
        losses = cross_entropy(scores[:, :both], classes, self._config.label_smoothing)
        real = tf.sequence_mask(batch[self._config.text + LENGTHS], both)
        return tf.reduce_sum(tf.where(real, losses, 0.0), axis=1)

    def weights(self, batch):
        """Returns the number of each text's tokens: the mean loss is of a token."""
        return tf.cast(batch[self._config.text + LENGTHS], tf.float32)

    def predict(self, batch):
        """Returns the likeliest tags `[B, T]` int32, and what they have as log-probability `[B]`.

        Past a text's length the tags are 0.
        """
        scores = tf.cast(self._scores(batch), tf.float32)
        real = tf.sequence_mask(batch[self._config.text + LENGTHS], tf.shape(scores)[1])
        tags = tf.argmax(scores, axis=-1, output_type=tf.int32) + 1
        best = tf.reduce_max(tf.nn.log_softmax(scores), axis=-1)
        summed = tf.reduce_sum(tf.where(real, best, 0.0), axis=1)
        return tf.where(real, tags, PADDING), summed

    def _scores(self, batch, dropout_seed=None):
        """Returns the scores of each token, `[B, T, tags]`."""
        name = self._config.text
        return self.model(batch[name], batch[name + LENGTHS], dropout_seed=dropout_seed)

    def answer(self, inputs):
        """Returns the tags of each text, a blank between, and their `log_probability`."""
        name = self._config.text
        tokens = self._text.encode_all(inputs[name])
        limited = within_limit(tokens, self._config.max_length, name, "tokens")
        tags, log_probability = self.predict(pad({name: limited}))
        return {self._config.tags: self._tags.decode(tags), "log_probability": log_probability}

    @property
    def input_signature(self):
        return {self._config.text: tf.TensorSpec([None], tf.string, self._config.text)}

    @property
    def output_name(self):
        return self._config.tags

    @property
    def metrics(self):
        return ("token_accuracy", "sentence_accuracy")

    def measure(self, answers, references):
        """Returns the share of tokens that have the right tag, and of texts that have only such."""
        rows = list(_rows(answers, references))
        right = sum(found == tag for row in rows for found, tag in row)
        whole = sum(all(found == tag for found, tag in row) for row in rows)
        tokens = sum(map(len, rows))
        return {"token_accuracy": right / tokens, "sentence_accuracy": whole / len(rows)}

    def confusions(self, answers, references):
        pairs = (pair for row in _rows(answers, references) for pair in row)
        return Counter((tag, found) for found, tag in pairs if found != tag)


def _rows(
    answers: Sequence[str], references: Sequence[Sequence[str]]
) -> Iterator[list[tuple[str, str]]]:
    """Yields (tag found, right tag) of each text's tokens."""
    for answer, (reference,) in zip(answers, references, strict=True):
        yield list(zip_longest(answer.split(), reference.split(), fillvalue=""))
