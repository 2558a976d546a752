"""An encoder and a decoder (Sutskever et al. 2014, arXiv 1409.3215) with attention between them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import keras
import tensorflow as tf

from keras_models.configs.seq2seq import Seq2SeqConfig
from keras_models.decoding.sequence import END, START, Decoding, beam_search, repeated
from keras_models.layers.attention import Attention
from keras_models.layers.dropout import dropout, fold_in
from keras_models.layers.recurrent import LSTMState, StackedLSTM
from keras_models.losses.cross_entropy import cross_entropy
from keras_models.tasks.explanation import NotExplained


class Memory(NamedTuple):
    """What the decoder knows of an input."""

    values: tf.Tensor  # [B, T, F], the encoder's outputs
    keys: tf.Tensor  # [B, T, …], as attention takes them
    lengths: tf.Tensor  # [B]
    summary: tf.Tensor  # [B, F], the encoder's last state from either end


class DecoderState(NamedTuple):
    """What the decoder carries from symbol to symbol."""

    lstm: tuple[LSTMState, ...]  # of each layer, [B, D]
    attended: tf.Tensor  # [B, …], what was scored last


class Found(NamedTuple):
    """The output of a search: one hypothesis an example or, with `K`, the best one first."""

    tokens: tf.Tensor  # [B, U] or [B, K, U] int32, padded with PADDING
    lengths: tf.Tensor  # [B] or [B, K] int32
    log_probability: tf.Tensor  # [B] or [B, K] float32, in nats; -inf where there is none
    frames: tf.Tensor  # [B, U] or [B, K, U] int32, what each token attended to most; padded with 0
    attention: tf.Tensor  # [B, U, T] or [B, K, U, T] float32, padded with 0


class Seq2Seq(keras.layers.Layer):
    """LSTM encoder, LSTM decoder and attention over symbols.

    The decoder begins with symbol 0, which pads sequences, and ends with it.

    Args:
        config: Sizes and choices.
        input_size: Number of input symbols, padding counted.
        output_size: Number of output symbols, padding counted.
    """

    streams = False  # the encoder reads from both ends

    def __init__(self, config: Seq2SeqConfig, input_size: int, output_size: int):
        super().__init__()
        self._config, self._size = config, output_size
        width = config.embedding_units
        self._input_embedding = keras.layers.Embedding(input_size, width)
        self._output_embedding = keras.layers.Embedding(output_size, width)
        self._encoder = StackedLSTM(
            config.encoder_units, config.encoder_layers, bidirectional=True, dropout=config.dropout
        )
        self._decoder = StackedLSTM(
            config.decoder_units, config.decoder_layers, dropout=config.dropout
        )
        self._attended_units = width if config.tied_embeddings else config.decoder_units
        self._attended = keras.layers.Dense(self._attended_units, "tanh")
        self._build(width, self._encoder.output_width)
        self.built = True

    def _build(self, width: int, encoded: int) -> None:
        """Makes the weights, given the widths of embeddings and of the encoder's outputs."""
        config = self._config
        self._input_embedding.build()
        self._output_embedding.build()
        self._encoder.build((None, None, width))
        as_input = encoded if config.context != "state" else 0
        fed = self._attended_units if config.input_feeding else 0
        self._decoder.build((None, None, width + as_input + fed))
        self._bridge = self._attention = self._kernel = None
        if config.context != "input":
            self._bridge = keras.layers.Dense(2 * config.decoder_layers * config.decoder_units)
            self._bridge.build((None, encoded))
        if config.attention != "none":
            self._attention = Attention(
                config.attention, config.attention_units, config.decoder_units, encoded
            )
        attended = encoded if self._attention is not None else 0
        self._attended.build((None, config.decoder_units + attended))
        if not config.tied_embeddings:
            self._kernel = self.add_weight(
                (self._attended_units, self._size), name="kernel", autocast=False
            )
        self._bias = self.add_weight(
            (self._size,), initializer="zeros", name="bias", autocast=False
        )

    def call(
        self, inputs, input_lengths, labels, label_lengths, dropout_seed=None
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns scores `[B, U + 1, V]` after each prefix of the labels, and attention to inputs.

        Attention `[B, U + 1, T]` float32 is that paid for each label, and for the end.

        Args:
            inputs: `[B, T]` int32, input symbols.
            input_lengths: `[B]` int32.
            labels: `[B, U]` int32, output symbols.
            label_lengths: `[B]` int32.
            dropout_seed: `[2]` int32, a seed for this step; None leaves out dropout and the
                decoder's own labels.
        """
        memory = self.encode(inputs, input_lengths, dropout_seed)
        hidden, attention = self._decode(memory, labels, label_lengths, dropout_seed)
        return self._scores(hidden), attention

    def feasible(self, inputs: tf.RaggedTensor, labels: tf.RaggedTensor) -> tf.Tensor:
        """Returns `[B]` bool: whether there is an input where there are labels."""
        return (inputs.row_lengths() > 0) | (labels.row_lengths() == 0)

    def losses(self, inputs, input_lengths, labels, label_lengths, dropout_seed=None) -> tf.Tensor:
        """Returns the cross entropy `[B]` of the labels and their end, in nats. Takes `call`'s."""
        scores, _ = self(inputs, input_lengths, labels, label_lengths, dropout_seed)
        width = tf.shape(labels)[1]
        targets = tf.where(tf.sequence_mask(label_lengths, width), labels, END)
        targets = tf.pad(targets, [[0, 0], [0, 1]], constant_values=END)
        losses = cross_entropy(scores, targets, self._config.label_smoothing)
        return tf.reduce_sum(losses * tf.sequence_mask(label_lengths + 1, width + 1, tf.float32), 1)

    def search(self, inputs, input_lengths) -> Found:
        """Returns the best labels found for inputs `[B, T]` int32 of lengths `[B]`.

        Where `T` is static so is the width of what is returned, and XLA can compile it.
        """
        found = self._found(inputs, input_lengths, self._config.beam, best=1)
        return Found(*(values[:, 0] for values in found))

    def n_best(self, inputs, input_lengths) -> Found:
        """Returns the `K` best labels found for each input, `[B, K, …]`, best first."""
        beam = max(self._config.n_best, self._config.beam)
        return self._found(inputs, input_lengths, beam, best=self._config.n_best)

    def explain(self, inputs, input_lengths, labels, label_lengths) -> Iterator[tuple]:
        """Yields for each example what an `Explanation` has beside the symbols. Takes `call`'s.

        Raises:
            NotExplained: If there is no attention to explain by.
        """
        if self._attention is None:
            raise NotExplained("A model without attention has no explanations of its answers.")
        _, attention = self(inputs, input_lengths, labels, label_lengths)
        for count, labels, each in zip(input_lengths, label_lengths, attention, strict=True):
            weights = each.numpy()[:labels]  # [U, T], and 0 past the inputs
            frames, certainties = weights.argmax(1).tolist(), weights.max(1).tolist()
            yield weights[:, :count].T, tuple(frames), tuple(certainties)

    def encode(self, inputs, input_lengths, dropout_seed=None) -> Memory:
        """Returns what the decoder knows of inputs. Takes `call`'s."""
        embedded = self._drop(self._input_embedding(inputs), dropout_seed, 0)
        values, states = self._encoder(
            embedded, input_lengths, dropout_seed=fold_in(dropout_seed, 1)
        )
        values = self._drop(values, dropout_seed, 2)
        keys = values if self._attention is None else self._attention.project(values)
        summary = tf.concat([state.hidden for state in states[-1]], axis=-1)
        return Memory(values, keys, input_lengths, self._drop(summary, dropout_seed, 3))

    def start(self, memory: Memory) -> DecoderState:
        """Returns the decoder's state before `START`."""
        batch = tf.shape(memory.lengths)[0]
        attended = tf.zeros([batch, self._attended_units], self.compute_dtype)
        if self._bridge is None:
            return DecoderState(self._decoder.zero_state(batch), attended)
        parts = tf.split(tf.tanh(self._bridge(memory.summary)), 2 * self._config.decoder_layers, -1)
        pairs = zip(parts[::2], parts[1::2], strict=True)
        return DecoderState(tuple(LSTMState(*pair) for pair in pairs), attended)

    def step(self, labels, state: DecoderState, memory: Memory):
        """Returns what follows one more label of each of `K` hypotheses an input.

        Args:
            labels: `[B, K]` int32.
            state: After the labels before; `[B, K, …]`.
            memory: Of `encode`.

        Returns:
            Log-probabilities `[B, K, V]`, attention `[B, K, T]` and the state.
        """
        hidden, attention, state = self._step(self._output_embedding(labels), state, memory)
        return tf.nn.log_softmax(tf.cast(self._scores(hidden), tf.float32)), attention, state

    def _found(self, inputs, input_lengths, beam: int, best: int) -> Found:
        """Returns the best of the hypotheses of a beam, `[B, best, …]`."""
        config = self._config
        memory = self.encode(inputs, input_lengths)
        limits = config.output_ratio * input_lengths + config.output_extra
        limits = tf.where(input_lengths > 0, limits, 0)  # nothing is answered by nothing
        found = beam_search(
            lambda labels, state: self.step(labels, state, memory),
            self.start(memory),
            limits,
            tf.sequence_mask(input_lengths, tf.shape(inputs)[1]),
            beam=beam,
            width=config.output_ratio * _width(inputs) + config.output_extra,
            length_penalty=config.length_penalty,
            coverage_penalty=config.coverage_penalty,
        )
        found = Decoding(*(values[:, :best] for values in found))
        attention = self._attention_of(memory, found.tokens, found.lengths)
        frames = tf.argmax(attention, axis=-1, output_type=tf.int32)
        return Found(*found, frames, attention)

    def _attention_of(self, memory: Memory, tokens, lengths) -> tf.Tensor:
        """Returns the attention `[B, K, U, T]` paid for `[B, K, U]` tokens, 0 past their end."""
        memory = Memory(*(_rows(repeated(values, tokens.shape[1])) for values in memory))
        _, attention = self._decode(memory, _rows(tokens), _rows(lengths))
        attention = tf.reshape(
            attention[:, :-1], tf.concat([tf.shape(tokens), tf.shape(attention)[2:]], 0)
        )
        mask = tf.sequence_mask(lengths, tf.shape(tokens)[2])
        return tf.where(mask[..., tf.newaxis], attention, 0.0)

    def _decode(self, memory: Memory, labels, label_lengths, dropout_seed=None):
        """Returns what is scored after each prefix, `[B, U + 1, …]`, and the attention."""
        prefixes = tf.pad(labels, [[0, 0], [1, 0]], constant_values=START)
        kept = self._kept(prefixes, self._config.embedding_units, dropout_seed, 4)
        kept_hidden = self._kept(prefixes, self._attended_units, dropout_seed, 5)
        own = self._own(prefixes, dropout_seed)
        seed = fold_in(dropout_seed, 6)
        embedded = self._output_embedding(prefixes) * kept
        if own is not None or self._config.input_feeding:
            return self._one_by_one(memory, embedded, own, kept, kept_hidden, seed)
        state = self.start(memory)
        rows = self._decoder_inputs(embedded, state.attended, memory)
        outputs, _ = self._decoder(rows, label_lengths + 1, state.lstm, seed)
        hidden, attention = self._attend(outputs, memory)
        return hidden * kept_hidden, attention

    def _one_by_one(self, memory, embedded, own, kept, kept_hidden, seed):
        """Returns what `_decode` does, each step after the one before it."""
        steps = tf.shape(embedded)[1]

        def body(u, label, state, hiddens, attentions):
            now = _at(embedded, u)
            if own is not None:
                said = self._output_embedding(label) * _at(kept, u)
                now = tf.where(_at(own, u)[..., tf.newaxis], said, now)
            hidden, attention, state = self._step(now, state, memory, fold_in(seed, u))
            hidden *= _at(kept_hidden, u)
            state = state._replace(attended=hidden)
            if own is not None:
                label = tf.argmax(self._scores(hidden), axis=-1, output_type=tf.int32)
            hiddens = hiddens.write(u, hidden[:, 0])
            return u + 1, label, state, hiddens, attentions.write(u, attention[:, 0])

        state = tf.nest.map_structure(lambda x: x[:, tf.newaxis], self.start(memory))
        arrays = [
            tf.TensorArray(dtype, steps, element_shape=shape)
            for dtype, shape in (
                (self.compute_dtype, [None, self._attended_units]),
                ("float32", [None, None]),
            )
        ]
        label = tf.fill([tf.shape(embedded)[0], 1], START)
        *_, hiddens, attentions = tf.while_loop(
            lambda u, *_: u < steps,
            body,
            (0, label, state, *arrays),
            maximum_iterations=steps,
        )
        return tuple(tf.transpose(x.stack(), [1, 0, 2]) for x in (hiddens, attentions))

    def _step(self, embedded, state: DecoderState, memory: Memory, seed=None):
        """Returns what is scored, attention and state after one more symbol `[B, K, …]` each."""
        beam = embedded.shape[1]
        rows = _rows(self._decoder_inputs(embedded, state.attended, memory))
        outputs, lstm = self._decoder.step(rows, tf.nest.map_structure(_rows, state.lstm), seed)
        outputs, lstm = tf.nest.map_structure(
            lambda x: tf.reshape(x, [-1, beam, x.shape[-1]]), (outputs, lstm)
        )
        hidden, attention = self._attend(outputs, memory)
        return hidden, attention, DecoderState(lstm, hidden)

    def _decoder_inputs(self, embedded, attended, memory: Memory) -> tf.Tensor:
        """Returns `[B, U, …]`: symbols, and what else the decoder sees at each step."""
        parts = [embedded]
        if self._config.context != "state":
            summary = memory.summary[:, tf.newaxis]
            if embedded.shape[1] != 1:  # in a loop XLA cannot have the gradient of a repetition
                summary = tf.repeat(summary, tf.shape(embedded)[1], axis=1)
            parts.append(summary)
        if self._config.input_feeding:
            parts.append(attended)
        return tf.concat(parts, axis=-1)

    def _attend(self, outputs, memory: Memory):
        """Returns what is scored, `[B, U, …]`, for the decoder's outputs, and their attention."""
        if self._attention is None:
            sizes = [*tf.unstack(tf.shape(outputs)[:2]), tf.shape(memory.values)[1]]
            return self._attended(outputs), tf.zeros(sizes)
        contexts, attention = self._attention(outputs, memory.keys, memory.values, memory.lengths)
        return self._attended(tf.concat([contexts, outputs], axis=-1)), attention

    def _scores(self, hidden) -> tf.Tensor:
        """Returns `[B, U, V]`, for `[B, U, …]`."""
        tied = self._kernel is None
        kernel = self._output_embedding.embeddings if tied else self._kernel
        kernel = tf.cast(tf.convert_to_tensor(kernel), hidden.dtype)
        scores = tf.einsum("bud,vd->buv" if tied else "bud,dv->buv", hidden, kernel)
        return scores + tf.cast(self._bias, hidden.dtype)

    def _own(self, prefixes, seed) -> tf.Tensor | None:
        """Returns `[B, U + 1]` bool: where the decoder sees its own labels, if anywhere."""
        share = self._config.own_labels
        if seed is None or share == 0:
            return None
        ones = tf.ones_like(prefixes, tf.float32)
        own = ones > 0 if share == 1 else dropout(ones, share, fold_in(seed, 7)) == 0
        return own & (tf.range(tf.shape(prefixes)[1]) > 0)

    def _kept(self, prefixes, width: int, seed, place: int) -> tf.Tensor:
        """Returns what dropout multiplies each of a decoder's steps by, `[B, U + 1, width]`."""
        ones = tf.ones([*tf.unstack(tf.shape(prefixes)), width], self.compute_dtype)
        return self._drop(ones, seed, place)

    def _drop(self, values: tf.Tensor, seed: tf.Tensor | None, place: int) -> tf.Tensor:
        return dropout(values, self._config.dropout, fold_in(seed, place))


def _at(values: tf.Tensor, u: tf.Tensor) -> tf.Tensor:
    """Returns `[B, 1, …]` of step `u` for `[B, U, …]`."""
    return values[:, u][:, tf.newaxis]


def _rows(values: tf.Tensor) -> tf.Tensor:
    """Returns `[B · K, …]` for `[B, K, …]`."""
    return tf.reshape(values, tf.concat([[-1], tf.shape(values)[2:]], 0))


def _width(inputs: tf.Tensor):
    """Returns `T`: an integer where it is static, as XLA wants it."""
    return tf.shape(inputs)[1] if inputs.shape[1] is None else inputs.shape[1]
