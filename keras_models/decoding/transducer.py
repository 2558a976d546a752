"""Searches for the labels of a transducer, each example on its own way through its lattice."""

from typing import NamedTuple

import tensorflow as tf

from keras_models import BLANK, PADDING


class Hypotheses(NamedTuple):
    """One hypothesis an example."""

    tokens: tf.Tensor  # [B, U] int32, padded with PADDING
    lengths: tf.Tensor  # [B] int32
    log_probability: tf.Tensor  # [B] float32, in nats


class _Search(NamedTuple):
    frames: tf.Tensor  # [B], the frame each example is at
    symbols: tf.Tensor  # [B], emitted at that frame
    state: object  # nest of [B, …]
    tokens: tf.Tensor  # [B, U + 1]
    lengths: tf.Tensor  # [B]
    log_probability: tf.Tensor  # [B]


def greedy_transducer_search(
    score,
    advance,
    initial_state,
    frame_lengths,
    *,
    blank=BLANK,
    max_symbols_per_frame=10,
    max_length=None,
):
    """Returns the hypotheses found by taking the likeliest symbol at every node.

    A label is emitted and the example stays at its frame; a blank takes it to the next frame,
    and the blank of its last frame ends it. Every example moves at its own pace. Where
    `max_symbols_per_frame` or `max_length` labels have been emitted the blank is taken, whatever
    its probability. The search is one `tf.while_loop` of at most
    `T * (max_symbols_per_frame + 1)` steps: it runs in a graph, in an exported one, and eagerly;
    with `max_length` also under XLA.

    Args:
        score: function `(frames [B], state) -> logits [B, V]`: unnormalised, at these frames and
            after the labels that the state has seen. Frames are int32 and within the lengths,
            but that an example without frames is asked for frame 0.
        advance: function `(labels [B], state) -> state`: the state after one more label. The
            result is kept for the examples that emitted that label; for the others the label
            is 0. It is not called where no example emits.
        initial_state: nest of tensors `[B, …]`, the state before any label.
        frame_lengths: `[B]` integers, frames of each example.
        blank: the symbol that consumes a frame.
        max_symbols_per_frame: bound on the labels emitted at one frame, at least 1.
        max_length: bound on the labels of a hypothesis, and the number of columns of `tokens`:
            an integer or a scalar tensor, which XLA has to know from shapes. By default there
            is no such bound, and `tokens` are as wide as the longest hypothesis.

    Returns:
        `Hypotheses`. `log_probability` is that of the one path taken, and so a lower bound on
        that of its labels, for which all paths would have to be summed.

    Raises:
        ValueError: `frame_lengths` is not of rank 1, or a bound is out of range.
    """
    frame_lengths = tf.cast(frame_lengths, tf.int32)
    _check_arguments(frame_lengths, blank, max_symbols_per_frame, max_length)
    width = max_length
    if width is None:
        width = tf.reduce_max(tf.pad(frame_lengths, [[0, 1]])) * max_symbols_per_frame
    last_frames = tf.maximum(frame_lengths - 1, 0)

    def step(search):
        running = search.frames < frame_lengths
        logits = score(tf.minimum(search.frames, last_frames), search.state)
        logits = _check_logits(tf.cast(logits, tf.float32), blank)
        symbol = tf.argmax(logits, axis=-1, output_type=tf.int32)
        full = (search.symbols >= max_symbols_per_frame) | (search.lengths >= width)
        symbol = tf.where(full, blank, symbol)
        emits = running & (symbol != blank)
        label = tf.where(emits, symbol, PADDING)
        log_probability = _log_probability(logits, symbol)
        return _Search(
            frames=search.frames + tf.cast(running & ~emits, tf.int32),
            symbols=tf.where(emits, search.symbols + 1, 0),
            state=_advance_where(emits, advance, label, search.state),
            tokens=_write(search.tokens, search.lengths, label),
            lengths=search.lengths + tf.cast(emits, tf.int32),
            log_probability=search.log_probability + tf.where(running, log_probability, 0.0),
        )

    zeros = tf.zeros_like(frame_lengths)
    start = _Search(
        frames=zeros,
        symbols=zeros,
        state=tf.nest.map_structure(tf.convert_to_tensor, initial_state),
        # One column more, to be written to by those that do not emit.
        tokens=tf.fill([tf.shape(frame_lengths)[0], width + 1], PADDING),
        lengths=zeros,
        log_probability=tf.zeros_like(frame_lengths, tf.float32),
    )
    end = tf.while_loop(
        lambda *search: tf.reduce_any(_Search(*search).frames < frame_lengths),
        lambda *search: step(_Search(*search)),
        start,
    )
    end = _Search(*end)
    if max_length is None:
        width = tf.reduce_max(tf.pad(end.lengths, [[0, 1]]))
    return Hypotheses(end.tokens[:, :width], end.lengths, end.log_probability)


def _log_probability(logits, symbol):
    """Returns the log-probability of one symbol an example, `[B]`."""
    return tf.gather(logits, symbol, batch_dims=1) - tf.reduce_logsumexp(logits, axis=-1)


def _advance_where(emits, advance, label, state):
    """Returns the state with the examples that emit a label advanced by it."""

    def select(new, old):
        condition = tf.reshape(emits, [-1] + [1] * (old.shape.rank - 1))
        return tf.ensure_shape(tf.where(condition, new, old), old.shape)

    return tf.cond(
        tf.reduce_any(emits),
        lambda: tf.nest.map_structure(select, advance(label, state), state),
        lambda: tf.nest.map_structure(tf.identity, state),
    )


def _write(tokens, lengths, label):
    """Returns the tokens with each example's label behind its hypothesis.

    There PADDING may be written again and again: nothing counts before it is in the length.
    """
    indices = tf.stack([tf.range(tf.shape(tokens)[0]), lengths], axis=1)
    return tf.tensor_scatter_nd_update(tokens, indices, label)


def _check_logits(logits, blank):
    size = logits.shape[-1]
    if size is not None and blank >= size:
        raise ValueError(f"`blank` must be in [0, {size}). Received: blank={blank}")
    return logits


def _check_arguments(frame_lengths, blank, max_symbols_per_frame, max_length):
    if frame_lengths.shape.rank != 1:
        raise ValueError(f"`frame_lengths` must have rank 1. Received: {frame_lengths.shape}")
    if blank < 0:
        raise ValueError(f"`blank` must be at least 0. Received: blank={blank}")
    if max_symbols_per_frame < 1:
        raise ValueError(
            "`max_symbols_per_frame` must be at least 1. "
            f"Received: max_symbols_per_frame={max_symbols_per_frame}"
        )
    if isinstance(max_length, int) and max_length < 0:
        raise ValueError(f"`max_length` must be at least 0. Received: max_length={max_length}")
