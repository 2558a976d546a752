"""Beam search for the labels of a transducer: three orders of the same steps."""

from typing import Literal, NamedTuple, get_args

import tensorflow as tf

from keras_models import BLANK, PADDING
from keras_models.decoding.transducer import (
    Continuations,
    Hypotheses,
    advance_where,
    check_arguments,
    check_scores,
)

Order = Literal["frame", "alignment", "adaptive"]

_NEVER = float("-inf")
# Multiplies the hash of a prefix (Knuth's MMIX generator).
_HASH_FACTOR = 6364136223846793005


class BeamState(NamedTuple):
    """K hypotheses an example that all wait for its next frame."""

    log_probability: tf.Tensor  # [B, K], of all paths; that of a place without one is -inf
    best_path: tf.Tensor  # [B, K], of the likeliest of them
    hashed: tf.Tensor  # [B, K] int64, of all labels
    lengths: tf.Tensor  # [B, K] int32, of all labels
    state: object  # nest of [B, K, …], that of `Steps`


class _Beam(NamedTuple):
    """K hypotheses an example, no two of which have labels, frame and `symbols` in common."""

    frames: tf.Tensor  # [B, K] int32, the frame each is at
    symbols: tf.Tensor  # [B, K] int32, emitted at that frame
    log_probability: tf.Tensor  # [B, K], of all its paths; that of a place without one is -inf
    best_path: tf.Tensor  # [B, K], of the likeliest of its paths
    hashed: tf.Tensor  # [B, K] int64, of its labels
    origins: tf.Tensor  # [B, K] int32, the number of the one that it was when the search began
    lengths: tf.Tensor  # [B, K] int32, labels since then
    tokens: tf.Tensor  # [B, K, U] int32, they themselves
    token_frames: tf.Tensor  # [B, K, U] int32, of its best path
    state: object  # nest of [B · K, …]


class _Candidates(NamedTuple):
    """What the hypotheses of a beam may become: as they are, or one label longer."""

    kept: tf.Tensor  # [B, K], log-probability after the blank, or after nothing
    kept_path: tf.Tensor  # [B, K], likewise of the best path
    kept_frames: tf.Tensor  # [B, K] int32
    longer: tf.Tensor  # [B, K · V], log-probability after each label
    by_label: tf.Tensor  # [B, K · V], log-probability of the label itself


def beam_transducer_search(
    score,
    advance,
    initial_state,
    frame_lengths,
    *,
    beam,
    order: Order,
    blank=BLANK,
    max_symbols_per_frame=10,
    max_length=None,
    length_normalization=0.0,
    expansion_beta=2,
    expansion_gamma=2.3,
):
    """Returns the `K` best hypotheses of each example, the probabilities of their paths summed.

    Every step takes some hypotheses of the beam and puts in their place what they become by the
    blank, at the next frame, and by each label, at the same frame. What comes by the blank to the
    same labels and frame is then one hypothesis, whose probability is the sum (prefix merging).
    The `K` likeliest stay. The orders differ in which hypotheses are taken:

        frame      all that have not had the blank of the earliest frame: the search of Graves
                   2012 (arXiv 1211.3711), which takes them one by one, here `K` at once
        alignment  all: those that compete have as many labels and blanks together (Saon et al.
                   2020, "Alignment-length synchronous decoding for RNN transducer")
        adaptive   as `frame`; and of the symbols that follow a hypothesis only the `beam +
                   expansion_beta` likeliest are looked at, within `expansion_gamma` nats of the
                   first (Kim et al. 2020, "Accelerating RNN transducer inference via adaptive
                   expansion search")

    In every order hypotheses that wait for others, at the next frame or at the end, keep a place
    in the beam only while they are among the `K` likeliest. So a beam of 1 takes the likeliest
    symbol at every node: it is the greedy search. A beam with room for all that there is at a time
    (labels, frame, and how many of the labels were emitted at that frame) finds every hypothesis
    with its exact probability; `adaptive` does where it has nothing to leave out, `beam +
    expansion_beta` being the number of symbols and `expansion_gamma` infinite.

    The search is one `tf.while_loop`: in a graph, in an exported one, eagerly, and with
    `max_length` under XLA.

    Args:
        score: as in `Steps`, and so are the next two.
        advance: likewise.
        initial_state: likewise.
        frame_lengths: `[B]` integers, frames of each example.
        beam: `K`, at least 1.
        order: see above.
        blank: the symbol that consumes a frame.
        max_symbols_per_frame: bound on the labels emitted at one frame, at least 1. Where it is
            reached the blank is taken, whatever its probability.
        max_length: bound on the labels of a hypothesis, and the number of columns of `tokens`,
            as in `greedy_transducer_search`.
        length_normalization: hypotheses are ranked, at the end, by `log_probability / U^this`:
            0 takes the probability, 1 the mean per label (Graves 2012).
        expansion_beta: see `adaptive`; at least 0.
        expansion_gamma: see `adaptive`; at least 0, in nats.

    Returns:
        `Hypotheses` `[B, K, …]`, best first. `frames` are those of the likeliest path. Where there
        are fewer hypotheses than `K`, the rest has a `log_probability` of -inf.

    Raises:
        ValueError: an argument is out of range.
    """
    found, _, _ = _search(
        score,
        advance,
        start_beam(initial_state, tf.shape(frame_lengths)[0], beam),
        frame_lengths,
        order=order,
        blank=blank,
        max_symbols_per_frame=max_symbols_per_frame,
        max_length=max_length,
        length_normalization=length_normalization,
        expansion_beta=expansion_beta,
        expansion_gamma=expansion_gamma,
    )
    return found


def start_beam(initial_state, batch_size, beam) -> BeamState:
    """Returns beams with one hypothesis, that of no labels, before any frame."""
    if beam < 1:
        raise ValueError(f"`beam` must be at least 1. Received: beam={beam}")
    zeros = tf.zeros([batch_size, beam], tf.int32)
    first = tf.where(tf.range(beam) + zeros == 0, 0.0, _NEVER)
    return BeamState(
        log_probability=first,
        best_path=first,
        hashed=tf.cast(zeros, tf.int64),
        lengths=zeros,
        state=tf.nest.map_structure(lambda x: _for_each(x, beam), initial_state),
    )


def _for_each(values, beam):
    """Returns `[B, K, …]` for `[B, …]`."""
    values = tf.expand_dims(values, 1)
    return tf.tile(values, [1, beam] + [1] * (values.shape.rank - 2))


def stream_beam(
    score,
    advance,
    state: BeamState,
    frame_lengths,
    *,
    order: Literal["frame", "adaptive"],
    **options,
) -> tuple[Continuations, BeamState]:
    """Returns what `beam_transducer_search` finds in some more frames of each example.

    After the last ones, hypotheses and probabilities are those of a search of all frames at once.
    In the order `alignment` that cannot be: a hypothesis that has come to the last frame would
    have to wait for frames to come while others go on, and these are at any frames before.

    Args:
        score: as in `Steps`, and so is the next; frames are counted from the first of these.
        advance: likewise.
        state: what the last call returned, or `start_beam`.
        frame_lengths: `[B]` integers, how many more frames there are.
        order: as in `beam_transducer_search`.
        **options: others of its arguments, but `beam` and `max_length`.

    Returns:
        `Continuations`, and the state after them.

    Raises:
        ValueError: an argument is out of range.
    """
    if order == "alignment":
        raise ValueError(
            "`order` must be 'frame' or 'adaptive' where frames come in parts. "
            f"Received: order={order!r}"
        )
    found, origins, state = _search(score, advance, state, frame_lengths, order=order, **options)
    return Continuations(origins, *found[:3]), state


def _search(
    score,
    advance,
    begun,
    frame_lengths,
    *,
    order,
    blank=BLANK,
    max_symbols_per_frame=10,
    max_length=None,
    length_normalization=0.0,
    expansion_beta=2,
    expansion_gamma=2.3,
):
    """Returns `Hypotheses` of these frames, where they go on from, and the state after them."""
    frame_lengths = tf.cast(frame_lengths, tf.int32)
    check_arguments(frame_lengths, blank, max_symbols_per_frame, max_length)
    _check_beam(order, expansion_beta, expansion_gamma)
    beam, width = begun.lengths.shape[1], max_length
    if width is None:
        width = tf.reduce_max(tf.pad(frame_lengths, [[0, 1]])) * max_symbols_per_frame
    last_frames = tf.maximum(frame_lengths - 1, 0)[:, tf.newaxis]

    def step(found):
        taken = _unfinished(found, frame_lengths)
        if order != "alignment":
            earliest = tf.where(taken, found.frames, tf.int32.max)
            taken &= found.frames == tf.reduce_min(earliest, axis=1, keepdims=True)
        scores = score(_rows(tf.minimum(found.frames, last_frames)), found.state)
        scores = check_scores(tf.cast(scores, tf.float32), blank)
        scores = tf.reshape(scores, [tf.shape(found.frames)[0], beam, scores.shape[-1]])
        full = (found.symbols >= max_symbols_per_frame) | (found.lengths >= width)
        if order == "adaptive":
            scores = _expansions(scores, full, blank, beam + expansion_beta, expansion_gamma)
        candidates = _candidates(found, taken, full, scores, blank)
        return _best(found, _merge_kept(found, candidates), advance)

    found = tf.while_loop(
        lambda *found: tf.reduce_any(_unfinished(_Beam(*found), frame_lengths)),
        lambda *found: step(_Beam(*found)),
        _begin(begun, width),
    )
    found = _Beam(*found)
    if max_length is None:
        width = tf.reduce_max(tf.pad(_rows(found.lengths), [[0, 1]]))
    return _ranked(found, begun, width, length_normalization)


def _begin(begun, width):
    """Returns the beam at the first frame, no label of which has been emitted."""
    beam = begun.lengths.shape[1]
    zeros = tf.zeros_like(begun.lengths)
    none = tf.fill([tf.shape(zeros)[0], beam, width], PADDING)
    return _Beam(
        frames=zeros,
        symbols=zeros,
        log_probability=begun.log_probability,
        best_path=begun.best_path,
        hashed=begun.hashed,
        origins=tf.range(beam) + zeros,
        lengths=zeros,
        tokens=none,
        token_frames=none,
        state=tf.nest.map_structure(
            lambda x: tf.reshape(x, tf.concat([[-1], tf.shape(x)[2:]], axis=0)), begun.state
        ),
    )


def _rows(values):
    """Returns `[B · K]` for `[B, K]`."""
    return tf.reshape(values, [-1])


def _unfinished(found, frame_lengths):
    """Returns `[B, K]` bool: where there is a hypothesis that has frames left."""
    return _present(found) & (found.frames < frame_lengths[:, tf.newaxis])


def _present(found):
    return found.log_probability > _NEVER


def _expansions(scores, full, blank, count, gamma):
    """Returns the scores of the symbols that are worth looking at; those of others are -inf."""
    best = tf.math.top_k(scores, min(count, scores.shape[-1])).values  # [B, K, count]
    lowest = tf.maximum(best[..., -1:], best[..., :1] - gamma)
    forced = full[..., tf.newaxis] & (tf.range(scores.shape[-1]) == blank)
    return tf.where((scores >= lowest) | forced, scores, _NEVER)


def _candidates(found, taken, full, scores, blank):
    """Returns what becomes of the hypotheses that are taken, and of those that wait."""
    by_blank = tf.where(taken, scores[..., blank], 0.0)
    labels = tf.range(scores.shape[-1]) != blank
    by_label = tf.where((taken & ~full)[..., tf.newaxis] & labels, scores, _NEVER)  # [B, K, V]
    longer = found.log_probability[..., tf.newaxis] + by_label
    flat = [tf.shape(longer)[0], longer.shape[1] * longer.shape[2]]
    return _Candidates(
        kept=found.log_probability + by_blank,
        kept_path=found.best_path + by_blank,
        kept_frames=found.frames + tf.cast(taken, tf.int32),
        longer=tf.reshape(longer, flat),
        by_label=tf.reshape(by_label, flat),
    )


def _merge_kept(found, candidates):
    """Returns the candidates with one for all that have equal labels and the blank of a frame.

    They had emitted more or fewer of those labels at that frame, and so had been kept apart: a
    bound on their number holds for some earlier than for others. The one of the likeliest path
    stays.
    """
    same = _pairs(_present(found), _present(found))
    same &= _pairs(candidates.kept_frames, candidates.kept_frames, tf.equal)
    same &= _pairs(found.hashed, found.hashed, tf.equal)  # [B, K, K]
    total = tf.where(same, candidates.kept[:, :, tf.newaxis], _NEVER)
    paths = tf.where(same, candidates.kept_path[:, :, tf.newaxis], _NEVER)
    stays = tf.argmax(paths, axis=1, output_type=tf.int32) == tf.range(same.shape[1])
    kept = tf.where(stays, tf.reduce_logsumexp(total, axis=1), _NEVER)
    return candidates._replace(kept=kept)


def _pairs(of_rows, of_columns, relation=tf.logical_and):
    """Returns `[B, K, K]` bool: the relation of every value to every other."""
    return relation(of_rows[:, :, tf.newaxis], of_columns[:, tf.newaxis])


def _best(found, candidates, advance):
    """Returns a beam of the likeliest candidates."""
    beam = found.frames.shape[1]
    symbols = candidates.longer.shape[1] // beam
    log_probability, place = tf.math.top_k(
        tf.concat([candidates.kept, candidates.longer], axis=1), beam
    )
    is_kept = place < beam
    longer = tf.maximum(place - beam, 0)
    parent = tf.where(is_kept, place, longer // symbols)
    emits = ~is_kept & (log_probability > _NEVER)
    label = tf.where(emits, longer % symbols, PADDING)

    def of_parent(values):
        return tf.gather(values, parent, batch_dims=1)

    longer_path = of_parent(found.best_path) + tf.gather(candidates.by_label, longer, batch_dims=1)
    frames, hashed, lengths = map(of_parent, (found.frames, found.hashed, found.lengths))
    written = emits[..., tf.newaxis] & (
        tf.range(tf.shape(found.tokens)[2]) == lengths[..., tf.newaxis]
    )
    rows = beam * tf.range(tf.shape(parent)[0])[:, tf.newaxis] + parent
    state = tf.nest.map_structure(lambda x: tf.gather(x, _rows(rows)), found.state)
    return _Beam(
        frames=tf.where(emits, frames, of_parent(candidates.kept_frames)),
        symbols=tf.where(emits, of_parent(found.symbols) + 1, 0),
        log_probability=log_probability,
        best_path=tf.where(emits, longer_path, of_parent(candidates.kept_path)),
        hashed=tf.where(emits, longer_hash(hashed, label), hashed),
        origins=of_parent(found.origins),
        lengths=lengths + tf.cast(emits, tf.int32),
        tokens=tf.where(written, label[..., tf.newaxis], of_parent(found.tokens)),
        token_frames=tf.where(written, frames[..., tf.newaxis], of_parent(found.token_frames)),
        state=advance_where(_rows(emits), advance, _rows(label), state),
    )


def longer_hash(hashed, label):
    """Returns the hash of prefixes made longer by a label, int64, from theirs; of none it is 0."""
    return hashed * _HASH_FACTOR + tf.cast(label, tf.int64) + 1


def _ranked(found, begun, width, length_normalization):
    """Returns what `_search` does: all by their log-probabilities, normalised by length."""
    beam = found.lengths.shape[1]
    lengths = found.lengths + tf.gather(begun.lengths, found.origins, batch_dims=1)
    by_length = tf.cast(tf.maximum(lengths, 1), tf.float32) ** length_normalization
    order = tf.argsort(found.log_probability / by_length, direction="DESCENDING", stable=True)
    state = tf.nest.map_structure(
        lambda x: tf.reshape(x, tf.concat([[-1, beam], tf.shape(x)[1:]], axis=0)), found.state
    )
    hypotheses = Hypotheses(
        found.tokens[..., :width],
        found.lengths,
        found.log_probability,
        found.token_frames[..., :width],
    )
    end = BeamState(found.log_probability, found.best_path, found.hashed, lengths, state)
    return tf.nest.map_structure(
        lambda x: tf.gather(x, order, batch_dims=1), (hypotheses, found.origins, end)
    )


def _check_beam(order, expansion_beta, expansion_gamma):
    if order not in get_args(Order):
        raise ValueError(f"`order` must be one of {get_args(Order)}. Received: order={order!r}")
    if expansion_beta < 0 or expansion_gamma < 0:
        raise ValueError(
            "`expansion_beta` and `expansion_gamma` must be at least 0. "
            f"Received: expansion_beta={expansion_beta}, expansion_gamma={expansion_gamma}"
        )
