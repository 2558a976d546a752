"""Transcription: text in, text out."""

from __future__ import annotations

from pathlib import Path

import tensorflow as tf

from keras_models.configs.transcription import TextToText
from keras_models.frontends.limit import within_limit
from keras_models.frontends.padding import LENGTHS, pad
from keras_models.metrics import confusions, error_rates
from keras_models.tasks.explanation import Explanation, NotExplained
from keras_models.tasks.streaming import TextStream, stream_signatures
from keras_models.tasks.task import Task


class Transcriber(Task):
    """A model between two texts.

    Args:
        config: Names of the two texts, how they are cut, limits.
        model: Config of a model with `losses`, `search`, `n_best`, `explain`, `feasible` and
            `streams`, as `Transducer`, `CTC` and `Seq2Seq` have them.
        folder: Holds the vocabulary of each field.
    """

    many_references = True

    def __init__(self, config: TextToText, model, folder: Path):
        super().__init__()
        self._config = config
        self._input, self._output = config.input.field, config.output.field
        self.frontends = {text.field: text.frontend(folder) for text in config.texts}
        self.model = model.build(*(frontend.size for frontend in self.frontends.values()))

    def features(self, records):
        return {name: front.encode(records[name]) for name, front in self.frontends.items()}

    def feasible(self, features):
        return self.model.feasible(features[self._input], features[self._output])

    def refuses(self, records):
        return self.frontends[self._input].encode(records[self._input]).row_lengths() > self._limit

    @property
    def refusal(self):
        return f"longer than --task.max_length, which is {self._config.max_length}"

    def losses(self, batch, dropout_seed=None):
        inputs, input_lengths = batch[self._input], batch[self._input + LENGTHS]
        labels, label_lengths = batch[self._output], batch[self._output + LENGTHS]
        return self.model.losses(inputs, input_lengths, labels, label_lengths, dropout_seed)

    def weights(self, batch):
        """Returns one an example, or the number of its output tokens where losses are per token."""
        if self._config.loss_per == "example":
            return super().weights(batch)
        return tf.cast(batch[self._output + LENGTHS], tf.float32)

    def answer(self, inputs):
        """Returns the output text, and its `log_probability` as far as the search has summed it."""
        answers = self.timestamps(inputs)
        return {name: answers[name] for name in (self._output, "log_probability")}

    def timestamps(self, inputs):
        """Returns what `answer` does, and where each token was emitted.

        `tokens` `[B, U]` are those of the output text, and "" past its end; `frames` `[B, U]` the
        numbers, from 0, of the input symbols that they were emitted at, the unknown not counted.
        Where the model has attention so has this: `[B, U, T]`, of each token to each input symbol.
        """
        return self._answers(self.predict(self._encoded(inputs)))

    def n_best(self, inputs):
        """Returns what `timestamps` does for the `K` best answers, `[B, K, …]`, best first.

        Where there are fewer, the rest has a `log_probability` of -inf.
        """
        return self._answers(self.model.n_best(*self._sequence(self._encoded(inputs))))

    def answers(self):
        return {**super().answers(), "timestamps": self.timestamps, "n_best": self.n_best}

    def predict(self, batch):
        return self.model.search(*self._sequence(batch))

    def _encoded(self, inputs):
        """Returns padded input symbols, with their lengths."""
        text = self.frontends[self._input].encode(inputs[self._input])
        return pad({self._input: self._within_limit(text)})

    def _sequence(self, batch):
        """Returns input symbols `[B, T]` and their lengths `[B]`."""
        return batch[self._input], batch[self._input + LENGTHS]

    def _answers(self, found):
        frontend = self.frontends[self._output]
        longest = tf.reduce_max(tf.pad(tf.reshape(found.lengths, [-1]), [[0, 1]]))
        found = found._replace(
            tokens=found.tokens[..., :longest], frames=found.frames[..., :longest]
        )
        answers = {
            self._output: frontend.decode(found.tokens),
            "log_probability": found.log_probability,
            "tokens": frontend.spell(found.tokens),
            "frames": found.frames,
        }
        if "attention" in found._fields:
            answers["attention"] = found.attention[..., :longest, :]
        return answers

    def explain(self, inputs, answers):
        """Returns how known symbols of the answers go back to those of the inputs."""
        features = self.features({**inputs, self._output: answers})
        if tf.reduce_any(features[self._input].row_lengths() == 0):
            raise NotExplained(
                f"`{self._input}` must have a known symbol to align an answer with. "
                f"Received: {[text.decode() for text in inputs[self._input].numpy()]}"
            )
        if not tf.reduce_all(Transcriber.feasible(self, features)):
            raise NotExplained(
                f"`{self._output}` must not be longer than what the model can say of "
                f"`{self._input}`. Received: {[text.decode() for text in answers.numpy()]}"
            )
        batch = pad(features)
        explained = self.model.explain(
            *(batch[name + part] for name in features for part in ("", LENGTHS))
        )
        rows = zip(*(self._symbols(features, name) for name in features), explained, strict=True)
        return [Explanation(inputs, outputs, *rest) for inputs, outputs, rest in rows]

    def _symbols(self, features, name) -> list[tuple[str, ...]]:
        symbols = self.frontends[name].symbols
        return [tuple(symbols[number] for number in row) for row in features[name].to_list()]

    def signatures(self):
        """Returns `serving_default` and, where the model can, those of `streaming`.

        Parts of words are not streamed: whether a word goes on is known when the next one begins.
        """
        signatures = super().signatures()
        if self.model.streams and self._config.output.unit != "subword":
            stream = TextStream(self.model, *self.frontends.values(), self._within_limit)
            signatures |= stream_signatures(stream, self.input_signature)
        return signatures

    @property
    def input_signature(self):
        return {self._input: tf.TensorSpec([None], tf.string, self._input)}

    @property
    def output_name(self):
        return self._output

    @property
    def metrics(self):
        return tuple(f"{part}_error_rate" for part in (self._config.token, self._config.sequence))

    def measure(self, answers, references):
        """Returns the rate of wrong tokens and that of wrong sequences, by their names."""
        rates = error_rates(*self._spaced(answers, references))
        values = (rates.token_error_rate, rates.sequence_error_rate)
        return dict(zip(self.metrics, values, strict=True))

    def confusions(self, answers, references):
        return confusions(*self._spaced(answers, references))

    def _spaced(self, answers, references):
        """Returns the same with white space between any two tokens."""
        if self._config.output.unit != "character":
            return answers, references
        spaced = [[" ".join(reference) for reference in accepted] for accepted in references]
        return [" ".join(answer) for answer in answers], spaced

    @property
    def _limit(self) -> int:
        return self._config.max_length

    def _within_limit(self, text: tf.RaggedTensor) -> tf.RaggedTensor:
        return within_limit(text, self._limit, self._input)
