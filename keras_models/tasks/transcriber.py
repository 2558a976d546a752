"""Transcription: text in, text out, aligned by a transducer."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from keras_models.configs.transcription import Transcription
from keras_models.configs.transducer import TransducerConfig
from keras_models.decoding.transducer import greedy_transducer_search
from keras_models.frontends.padding import LENGTHS, pad
from keras_models.frontends.text import TextFrontend
from keras_models.losses.transducer import transducer_loss
from keras_models.metrics import error_rates
from keras_models.tasks.task import Task


class Transcriber(Task):
    """A transducer between two texts.

    Args:
        config: Names of the two texts, how they are cut, limits.
        model: Sizes of the transducer.
        folder: Holds the vocabulary of each field.
    """

    def __init__(self, config: Transcription, model: TransducerConfig, folder: Path):
        super().__init__()
        self._config = config
        self._input, self._output = config.input.field, config.output.field
        self.frontends = {text.field: TextFrontend(text, folder) for text in config.texts}
        self.model = model.build(*(frontend.size for frontend in self.frontends.values()))

    def features(self, records):
        return {name: front.encode(records[name]) for name, front in self.frontends.items()}

    def feasible(self, features):
        """A label needs a frame to be read at; many may share one."""
        frames, labels = (features[name].row_lengths() for name in (self._input, self._output))
        return (frames > 0) | (labels == 0)

    def losses(self, batch, dropout_seed=None):
        inputs, input_lengths = batch[self._input], batch[self._input + LENGTHS]
        labels, label_lengths = batch[self._output], batch[self._output + LENGTHS]
        scores = self.model(inputs, input_lengths, labels, label_lengths, dropout_seed)
        return transducer_loss(scores, labels, input_lengths, label_lengths)

    def answer(self, inputs):
        """Returns the output text, and `log_probability` of the best alignment that was found."""
        text = self.frontends[self._input].encode(inputs[self._input])
        batch = pad({self._input: self._within_limit(text)})
        encoding = self.model.encode(batch[self._input], batch[self._input + LENGTHS])
        found = greedy_transducer_search(
            lambda frames, state: self.model.score(encoding, frames, state),
            self.model.advance,
            self.model.start(tf.shape(encoding)[0]),
            batch[self._input + LENGTHS],
            max_symbols_per_frame=self._config.max_symbols_per_frame,
        )
        decoded = self.frontends[self._output].decode(found.tokens)
        return {self._output: decoded, "log_probability": found.log_probability}

    @property
    def input_signature(self):
        return {self._input: tf.TensorSpec([None], tf.string, self._input)}

    @property
    def output_name(self):
        return self._output

    def measure(self, answers, references):
        """Returns the rate of wrong tokens and that of wrong sequences, by their names."""
        spaced = self._spaced
        rates = error_rates(
            [spaced(answer) for answer in answers],
            [[spaced(reference) for reference in accepted] for accepted in references],
        )
        return {
            f"{self._config.token}_error_rate": rates.token_error_rate,
            f"{self._config.sequence}_error_rate": rates.sequence_error_rate,
        }

    def _spaced(self, text: str) -> str:
        return text if self._config.output.unit == "token" else " ".join(text)

    def _within_limit(self, text: tf.RaggedTensor) -> tf.RaggedTensor:
        limit = self._config.max_length
        message = f"`{self._input}` must have at most {limit} symbols. Received more, in symbols:"
        longest = tf.reduce_max(tf.concat([text.row_lengths(), [0]], 0))
        check = tf.debugging.Assert(longest <= limit, [message, longest])
        with tf.control_dependencies([check]):
            return tf.identity(text)
