"""Language models: how likely a text is, and how it may go on."""

from __future__ import annotations

import math
from pathlib import Path

import tensorflow as tf

from keras_models.configs.language_modeling import LanguageModeling
from keras_models.decoding.sampling import Sampling, sample, uniform
from keras_models.frontends.padding import LENGTHS, pad
from keras_models.frontends.text import TextFrontend
from keras_models.language_model import BOUNDARY
from keras_models.tasks.task import Task


class LanguageModel(Task):
    """A model of texts: each a record by itself, or all records one text that goes on.

    Args:
        config: Name of the text, how it is cut, whether it goes on.
        model: Config of a model as `RecurrentLanguageModel` is one.
        folder: Holds the vocabulary.
    """

    def __init__(self, config: LanguageModeling, model, folder: Path):
        super().__init__()
        self._config, self._text, self.chunk = config, config.text.field, config.chunk
        self._frontend = TextFrontend(config.text, folder)
        self.frontends = {self._text: self._frontend}
        self.model = model.build(self._frontend.size)
        if self.chunk is not None and self.model.stop != "symbol":
            raise ValueError(
                "Where all records are one text, `task.chunk`, its parts must end by a symbol. "
                f"Received: `model.stop` is {self.model.stop!r}"
            )

    def features(self, records):
        """Returns the symbols of each text; of one that goes on, with the boundary after it."""
        text = self._frontend.encode(records[self._text])
        if self.chunk is not None:
            text = tf.concat([text, tf.fill([text.nrows(), 1], BOUNDARY)], axis=1)
        return {self._text: text}

    def feasible(self, features):
        return self.model.feasible(features[self._text].row_lengths())

    def refuses(self, records):
        return tf.zeros_like(records[self._text], tf.bool)

    def losses(self, batch, dropout_seed=None):
        """Returns -log P of each text and, but for one that goes on, of its end."""
        text, lengths = batch[self._text], batch[self._text + LENGTHS]
        state = self.model.zero_state(tf.shape(text)[0], lengths)
        if dropout_seed is None:
            losses, state = self.model.read(text, lengths, state)
        else:
            losses, state = self.model.losses(text, lengths, state, dropout_seed)
        if self.chunk is not None:
            return losses
        losses += self.model.end_losses(state, dropout_seed)
        return losses + self.model.length_losses(lengths)

    def zero_state(self, rows):
        return self.model.zero_state(rows)

    def chunk_losses(self, batch, state, dropout_seed=None):
        text, lengths = batch[self._text], batch[self._text + LENGTHS]
        return self.model.losses(text, lengths, state, dropout_seed)

    def weights(self, batch):
        """Returns the number of symbols, and of what ends them."""
        lengths = tf.cast(batch[self._text + LENGTHS], tf.float32)
        return lengths + (self.chunk is None)

    def predict(self, batch):
        return (-self.losses(batch),)

    def answer(self, inputs):
        """Returns the `log_probability` of each text, in nats.

        That of a record by itself is of its end, too; a text that goes on has none.
        """
        (log_probability,) = self.predict(self._encoded(inputs))
        return {"log_probability": log_probability}

    def generate(self, inputs):
        """Returns each text as it may go on, drawn at random.

        `log_probability` is that of what came to it, as the model has it; `ended` says whether the
        text came to its end, and not just to `max_length` more symbols. The same text and seed
        have the same answer, whatever is asked beside it.

        Args:
            inputs: Texts `[B]`, under the name of the field; `temperature`, `top_k` and `top_p`,
                as `Sampling` has them, `seed` and `max_length`: each `[B]`, or `[1]` for all.
        """
        text = inputs[self._text]
        rows, most = tf.shape(text), self._config.max_length
        how = Sampling(
            _within(inputs, "temperature", rows, 0.0),
            _within(inputs, "top_k", rows, 0),
            _within(inputs, "top_p", rows, 0.0, 1.0),
        )
        uniforms = uniform(tf.broadcast_to(inputs["seed"], rows), 1 + most)
        batch = self._encoded(inputs)
        state = self.model.after(batch[self._text], batch[self._text + LENGTHS], uniforms[:, 0])
        drawn = sample(
            self.model.scores,
            self.model.advance,
            state,
            how,
            uniforms[:, 1:],
            _within(inputs, "max_length", rows, 0, most),
        )
        return {
            self._text: self._frontend.join(text, self._frontend.decode(drawn.symbols)),
            "log_probability": drawn.log_probability,
            "ended": drawn.ended,
        }

    def signatures(self):
        """Returns `serving_default`, and `generate`, of which all but the text has a default."""
        default = {
            "temperature": tf.constant([1.0]),
            "top_k": tf.constant([0]),
            "top_p": tf.constant([1.0]),
            "seed": tf.constant([0], tf.int64),
            "max_length": tf.constant([self._config.max_length]),
        }
        options = [tf.TensorSpec([None], value.dtype, name) for name, value in default.items()]

        @tf.function(input_signature=[*self.input_signature.values(), *options])
        def generate(
            text,
            temperature=default["temperature"],
            top_k=default["top_k"],
            top_p=default["top_p"],
            seed=default["seed"],
            max_length=default["max_length"],
        ):
            given = (text, temperature, top_k, top_p, seed, max_length)
            return self.generate(dict(zip((self._text, *default), given, strict=True)))

        return {**super().signatures(), "generate": generate}

    def _encoded(self, inputs):
        """Returns padded symbols, with their lengths."""
        return pad({self._text: self._frontend.encode(inputs[self._text])})

    @property
    def input_signature(self):
        return {self._text: tf.TensorSpec([None], tf.string, self._text)}

    @property
    def output_name(self):
        return "log_probability"

    @property
    def reference_name(self):
        return self._text

    @property
    def metrics(self):
        unit = self._config.text.unit
        return (f"nats_per_{unit}", f"bits_per_{unit}")

    def measure(self, answers, references):
        """Returns -log P of all texts over the number of their known symbols, by its names."""
        texts = tf.constant([text for (text,) in references])
        symbols = int(tf.size(self._frontend.encode(texts).flat_values))
        nats = -math.fsum(answers) / max(1, symbols)
        return dict(zip(self.metrics, (nats, nats / math.log(2)), strict=True))


def _within(inputs, name, shape, least, most=None) -> tf.Tensor:
    """Returns an input in that shape, or refuses one that is too small or too large."""
    value = inputs[name]
    fits = value >= least if most is None else (value >= least) & (value <= most)
    bounds = f"at least {least}" if most is None else f"in {least} … {most}"
    message = f"`{name}` must be {bounds}. Received:"
    with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(fits), [message, value])]):
        return tf.broadcast_to(value, shape)
