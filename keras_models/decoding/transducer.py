"""Searches for the labels of a transducer, each example on its own way through its lattice."""

from collections.abc import Callable
from typing import NamedTuple

import tensorflow as tf

from keras_models import BLANK, PADDING


class Steps(NamedTuple):
    """A model as a search walks it: one hypothesis a row, `N` rows.

    A greedy search has a row an example, a beam `K`: first those of the first example. Hypotheses
    of an example with the same labels must have the same state, as a beam takes them together.
    """

    score: Callable
    """Function `(frames [N], state) -> [N, V]` float: the log-probability of each symbol at these
    frames, after the labels that the state has seen; or any other score, of which a hypothesis
    has the sum. Frames are int32 and within the lengths, but that an example without frames is
    asked for frame 0."""
    advance: Callable
    """Function `(labels [N], state) -> state`: the state after one more label. The result is kept
    for the rows that emitted that label; for the others the label is 0. It is not called where
    no row emits."""
    initial_state: object
    """Nest of tensors `[B, …]`: the state before any label. What a score needs to know of its
    example belongs there, as a row's state follows it and its number does not."""


class Hypotheses(NamedTuple):
    """What a search found: one hypothesis an example or, of a beam, `K`, the best one first."""

    tokens: tf.Tensor  # [B, U] or [B, K, U] int32, padded with PADDING
    lengths: tf.Tensor  # [B] or [B, K] int32
    log_probability: tf.Tensor  # [B] or [B, K] float32, in nats; -inf where there is none
    frames: tf.Tensor  # [B, U] or [B, K, U] int32, where each token was emitted; padded with 0


class Continuations(NamedTuple):
    """What a search finds in a part of an input: `K` hypotheses an example, the best one first."""

    origins: tf.Tensor  # [B, K] int32, which hypothesis of the part before each goes on from
    tokens: tf.Tensor  # [B, K, U] int32, the labels that follow, padded with PADDING
    lengths: tf.Tensor  # [B, K] int32, how many they are
    log_probability: tf.Tensor  # [B, K] float32, of all labels so far


def only_continuation(found: Hypotheses, before: tf.Tensor) -> Continuations:
    """Returns what a greedy search found in a part; those before had log-probability `before`."""
    return Continuations(
        origins=tf.zeros_like(found.lengths)[:, tf.newaxis],
        tokens=found.tokens[:, tf.newaxis],
        lengths=found.lengths[:, tf.newaxis],
        log_probability=(before + found.log_probability)[:, tf.newaxis],
    )


class _Search(NamedTuple):
    frames: tf.Tensor  # [B], the frame each example is at
    symbols: tf.Tensor  # [B], emitted at that frame
    state: object  # nest of [B, …]
    tokens: tf.Tensor  # [B, U + 1]
    token_frames: tf.Tensor  # [B, U + 1]
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
        score: as in `Steps`, and so are the next two.
        advance: likewise.
        initial_state: likewise.
        frame_lengths: `[B]` integers, frames of each example.
        blank: the symbol that consumes a frame.
        max_symbols_per_frame: bound on the labels emitted at one frame, at least 1.
        max_length: bound on the labels of a hypothesis, and the number of columns of `tokens`:
            an integer or a scalar tensor, which XLA has to know from shapes. By default there
            is no such bound, and `tokens` are as wide as the longest hypothesis.

    Returns:
        `Hypotheses`, and the state after their labels: from there the search of more frames goes
        on as if all had been there at once. `log_probability` is that of the one path taken, and
        so a lower bound on that of its labels, for which all paths would have to be summed.

    Raises:
        ValueError: `frame_lengths` is not of rank 1, or a bound is out of range.
    """
    frame_lengths = tf.cast(frame_lengths, tf.int32)
    check_arguments(frame_lengths, blank, max_symbols_per_frame, max_length)
    width = max_length
    if width is None:
        width = tf.reduce_max(tf.pad(frame_lengths, [[0, 1]])) * max_symbols_per_frame
    last_frames = tf.maximum(frame_lengths - 1, 0)

    def step(search):
        running = search.frames < frame_lengths
        scores = score(tf.minimum(search.frames, last_frames), search.state)
        scores = check_scores(tf.cast(scores, tf.float32), blank)
        symbol = tf.argmax(scores, axis=-1, output_type=tf.int32)
        full = (search.symbols >= max_symbols_per_frame) | (search.lengths >= width)
        symbol = tf.where(full, blank, symbol)
        emits = running & (symbol != blank)
        label = tf.where(emits, symbol, PADDING)
        log_probability = tf.gather(scores, symbol, batch_dims=1)
        return _Search(
            frames=search.frames + tf.cast(running & ~emits, tf.int32),
            symbols=tf.where(emits, search.symbols + 1, 0),
            state=advance_where(emits, advance, label, search.state),
            tokens=_write(search.tokens, search.lengths, label),
            token_frames=_write(
                search.token_frames, search.lengths, tf.where(emits, search.frames, 0)
            ),
            lengths=search.lengths + tf.cast(emits, tf.int32),
            log_probability=search.log_probability + tf.where(running, log_probability, 0.0),
        )

    zeros = tf.zeros_like(frame_lengths)
    # One column more, to be written to by those that do not emit.
    empty = tf.fill([tf.shape(frame_lengths)[0], width + 1], PADDING)
    start = _Search(
        frames=zeros,
        symbols=zeros,
        state=tf.nest.map_structure(tf.convert_to_tensor, initial_state),
        tokens=empty,
        token_frames=empty,
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
    found = Hypotheses(
        end.tokens[:, :width], end.lengths, end.log_probability, end.token_frames[:, :width]
    )
    return found, end.state


def advance_where(emits, advance, label, state):
    """Returns the state with the rows that emit a label advanced by it."""

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


def check_scores(scores, blank):
    """Returns the scores, after a check that they have a column for the blank."""
    size = scores.shape[-1]
    if size is not None and blank >= size:
        raise ValueError(f"`blank` must be in [0, {size}). Received: blank={blank}")
    return scores


def check_arguments(frame_lengths, blank, max_symbols_per_frame, max_length):
    """Raises ValueError for arguments that no search takes."""
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
