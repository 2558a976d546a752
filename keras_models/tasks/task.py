"""Task: what joins frontend, model, loss, decoder and served signatures."""

from __future__ import annotations

import abc
from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import keras
import tensorflow as tf

from keras_models.frontends.text import TextFrontend
from keras_models.tasks.explanation import Explanation, NotExplained

Tensors = Mapping[str, tf.Tensor]


class Task(tf.Module, abc.ABC):
    """One kind of job, from raw records to answers.

    The engine trains by `features`, `feasible` and `losses`; evaluation and the served model
    answer by one function, `answer`.

    Attributes:
        model: The Keras layer with all the variables.
        frontends: By field, what turns raw records into features, with its assets.
        higher_is_better: Those numbers of `measure` that are to become large.
        many_references: Whether records of the same input are all right answers to it, as the
            pronunciations of a word are. Else each record is an example of its own.
        chunk: Where training goes through all examples as one sequence, the steps that it takes at
            once, from the state that those before have left. None: each example is by itself.
    """

    model: keras.layers.Layer
    frontends: dict[str, tf.Module]
    higher_is_better: frozenset[str] = frozenset()
    many_references: bool = False
    chunk: int | None = None

    @abc.abstractmethod
    def features(self, records: Tensors) -> dict[str, tf.Tensor | tf.RaggedTensor]:
        """Returns the model's inputs for raw records, each `[B]`; sequences are ragged."""

    @abc.abstractmethod
    def feasible(self, features: Tensors) -> tf.Tensor:
        """Returns `[B]` bool: whether an example can be learnt from at all."""

    @abc.abstractmethod
    def refuses(self, records: Tensors) -> tf.Tensor:
        """Returns `[B]` bool: whether `answer` would refuse a raw input, as too long, say."""

    @property
    def refusal(self) -> str:
        """What is wrong with inputs that `refuses` is true of, in words."""
        return "that it refuses"

    def unknown(self, records: Tensors) -> dict[str, tf.Tensor]:
        """Returns, by field of text, how many symbols are unknown and how many there are, `[2]`."""
        texts = {n: front for n, front in self.frontends.items() if isinstance(front, TextFrontend)}
        return {name: front.unknown(records[name]) for name, front in texts.items()}

    def augmented(self, batch: Tensors, seed: tf.Tensor) -> Tensors:
        """Returns padded features as training is to see them: changed at random, if at all.

        Args:
            batch: Features after `frontends.padding.pad`.
            seed: `[2]` int32, another one for each batch; all that is random comes from it.
        """
        return batch

    @abc.abstractmethod
    def losses(self, batch: Tensors, dropout_seed: tf.Tensor | None = None) -> tf.Tensor:
        """Returns the loss of each example, `[B]` float32, of padded features.

        Args:
            batch: Features after `frontends.padding.pad`.
            dropout_seed: `[2]` int32, a seed for this step; None leaves dropout out.
        """

    def zero_state(self, rows: int):
        """Returns the state before any chunk, a nest of `[rows, …]`.

        It is of floats of 32 bits or less, and of integers below 2²⁴.
        """
        raise NotImplementedError(f"A {type(self).__name__} does not train by chunks.")

    def chunk_losses(self, batch: Tensors, state, dropout_seed: tf.Tensor | None = None):
        """Returns the loss of each row of a batch of chunks, and the state after it.

        Args:
            batch: Features of `[B, chunk]`.
            state: What the chunks before them have left, or `zero_state`.
            dropout_seed: As for `losses`.
        """
        raise NotImplementedError(f"A {type(self).__name__} does not train by chunks.")

    def weights(self, batch: Tensors) -> tf.Tensor:
        """Returns what each example counts in the mean loss, `[B]`: one, or its tokens, say."""
        return tf.ones([tf.shape(next(iter(batch.values())))[0]])

    @abc.abstractmethod
    def predict(self, batch: Tensors) -> tuple[tf.Tensor, ...]:
        """Returns what `answer` puts into words: the decoder's numbers, for padded inputs.

        XLA compiles it where the shapes are static.
        """

    @abc.abstractmethod
    def answer(self, inputs: Tensors) -> dict[str, tf.Tensor]:
        """Returns the final answers, `[B]` each, to raw inputs `[B]`: the served signature."""

    @property
    @abc.abstractmethod
    def input_signature(self) -> dict[str, tf.TensorSpec]:
        """What `answer` takes."""

    @property
    @abc.abstractmethod
    def output_name(self) -> str:
        """The name, in `answer`, of what is measured: texts, or numbers `[B, …]`."""

    @property
    def reference_name(self) -> str:
        """The name, in records, of what answers are measured by: by default the same."""
        return self.output_name

    @property
    @abc.abstractmethod
    def metrics(self) -> tuple[str, ...]:
        """The names of what `measure` returns, the one to select a model by first."""

    @abc.abstractmethod
    def measure(self, answers: Sequence, references: Sequence[Sequence]) -> dict[str, float]:
        """Returns the `metrics` by name.

        Args:
            answers: The model's answer to each example: a text, a number or an array.
            references: For each of them all that count as right.
        """

    def confusions(
        self, answers: Sequence, references: Sequence[Sequence]
    ) -> Counter[tuple[str, str]]:
        """Returns how often each part of a reference was answered by which other part."""
        return Counter()

    def answers(self) -> dict[str, Callable[[Tensors], dict[str, tf.Tensor]]]:
        """Returns by signature name what is served of raw inputs."""
        return {"serving_default": self.answer}

    def explain(self, inputs: Tensors, answers: tf.Tensor) -> list[Explanation]:
        """Returns how answers `[B]`, right or wrong, go back to raw inputs `[B]`.

        Raises:
            NotExplained: If that cannot be said of such answers, or of any of this kind of task.
        """
        raise NotExplained(f"A {type(self).__name__} has no explanations of its answers.")

    def signatures(self) -> dict[str, tf.types.experimental.PolymorphicFunction]:
        """Returns the functions of the exported model by signature name."""
        names = list(self.input_signature)

        def served(answer):
            @tf.function(input_signature=[self.input_signature[name] for name in names])
            def serve(*inputs):
                return answer(dict(zip(names, inputs, strict=True)))

            return serve

        return {name: served(answer) for name, answer in self.answers().items()}
