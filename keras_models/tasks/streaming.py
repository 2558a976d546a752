"""Streaming: answers to an input that is still coming, by functions that keep nothing.

A model that streams serves three signatures beside `serving_default`. What is to be kept from one
call to the next goes out to the caller and comes back, so that any server of SavedModels serves
any number of streams, and each request may hold some that are at different places:

    stream_start(batch_size)     → state_…
    stream_step(INPUT, state_…)  → answers so far, state_…
    stream_end(state_…)          → final answers

`INPUT` is the next part of what `serving_default` takes under that name, `[B]`. Answers are named
as there, and the final ones are the same; those so far are the likeliest, and may be taken back
where the model keeps several hypotheses. A tensor of the state has one name, one dtype and one
shape `[B, …]` wherever it goes in or out; no other name begins with `state_`. `batch_size` is
int32, the number of streams: a scalar or, as servers that batch take no scalars, `[B]` ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple, Protocol

import tensorflow as tf

from keras_models.frontends.padding import LENGTHS, pad
from keras_models.frontends.text import TextFrontend
from keras_models.tasks.task import Tensors


class Stream(Protocol):
    """What the signatures of a stream are made of; its state is a nest of named tuples."""

    def start(self, batch_size: tf.Tensor):
        """Returns the state of so many streams before any input, each tensor `[B, …]`."""

    def step(self, inputs: Tensors, state):
        """Returns the answers so far, by name, and the state after the next inputs `[B]`."""

    def end(self, state) -> Tensors:
        """Returns the final answers, by name."""


def stream_signatures(
    stream: Stream, inputs: Mapping[str, tf.TensorSpec]
) -> dict[str, tf.types.experimental.PolymorphicFunction]:
    """Returns the signatures of a stream by name, for the inputs that a step takes."""
    structure = _structure(stream.start)
    states = _named(structure)
    sizes = tf.TensorSpec(None, tf.int32, "batch_size")

    def packed(tensors):
        return tf.nest.pack_sequence_as(structure, tensors)

    @tf.function(input_signature=[sizes])
    def stream_start(batch_size):
        return _named(stream.start(tf.reduce_sum(batch_size)))

    @tf.function(input_signature=[*inputs.values(), *states.values()])
    def stream_step(*tensors):
        given, state = tensors[: len(inputs)], tensors[len(inputs) :]
        answers, state = stream.step(dict(zip(inputs, given, strict=True)), packed(state))
        return {**answers, **_named(state)}

    @tf.function(input_signature=[*states.values()])
    def stream_end(*state):
        return stream.end(packed(state))

    functions = (stream_start, stream_step, stream_end)
    return {function.__name__: function for function in functions}


class TextState(NamedTuple):
    """What a stream of texts carries from one part to the next."""

    rest: tf.Tensor  # [B] string, text that is not settled
    answers: tf.Tensor  # [B, K] string, of the hypotheses that the model keeps
    model: object  # nest of [B, …]


class TextStream:
    """Text in, text out, as it comes.

    Args:
        model: A model with `beam`, `stream_start` and `stream`, as `Transducer` has them.
        source: Cuts the text that goes in; its field names the input.
        target: Joins the text that comes out; its field names the answer.
        limit: Returns symbols `[B, (symbols)]` within the limit of one part, or refuses them.
    """

    def __init__(
        self,
        model,
        source: TextFrontend,
        target: TextFrontend,
        limit: Callable[[tf.RaggedTensor], tf.RaggedTensor],
    ):
        self._model, self._source, self._target, self._limit = model, source, target, limit

    def start(self, batch_size):
        answers = tf.fill([batch_size, self._model.beam], "")
        return TextState(tf.fill([batch_size], ""), answers, self._model.stream_start(batch_size))

    def step(self, inputs, state):
        text = state.rest + inputs[self._source.field]
        settled, rest = self._source.settle(text)
        answers, state = self._read(settled, state)
        return answers, state._replace(rest=rest)

    def end(self, state):
        answers, _ = self._read(state.rest, state, final=True)
        return answers

    def _read(self, text, state, final=False):
        """Returns the answers by name, the best for each text, and the state after it."""
        batch = pad({"text": self._limit(self._source.encode(text))})
        found, model = self._model.stream(
            batch["text"], batch["text" + LENGTHS], state.model, final
        )
        answers = tf.gather(state.answers, found.origins, batch_dims=1)
        answers = self._target.join(answers, self._target.decode(found.tokens))
        best = {self._target.field: answers[:, 0], "log_probability": found.log_probability[:, 0]}
        return best, state._replace(answers=answers, model=model)


def _structure(start: Callable):
    """Returns the state as a nest of `TensorSpec`, each named as it is served."""
    traced = tf.function(start).get_concrete_function(tf.TensorSpec([], tf.int32))
    state = traced.structured_outputs
    specs = [
        tf.TensorSpec([None, *tensor.shape[1:]], tensor.dtype, name)
        for name, tensor in _named(state).items()
    ]
    return tf.nest.pack_sequence_as(state, specs)


def _named(value, name: str = "state") -> dict:
    """Returns the leaves of nested tuples by their path, in the order of `tf.nest.flatten`."""
    if not isinstance(value, tuple):
        return {name: value}
    fields = getattr(value, "_fields", range(len(value)))
    parts = (_named(part, f"{name}_{field}") for field, part in zip(fields, value, strict=True))
    return {path: leaf for part in parts for path, leaf in part.items()}
