"""Searches for labels by connectionist temporal classification (CTC)."""

from typing import NamedTuple

import tensorflow as tf

from keras_models import BLANK, PADDING
from keras_models.decoding.beam import longer_hash
from keras_models.decoding.transducer import Continuations, Hypotheses

_NEVER = float("-inf")


def greedy_ctc_search(log_probabilities, frame_lengths, previous=None, blank=BLANK):
    """Returns the hypotheses that the likeliest path stands for, and the last symbol of it.

    The path has the likeliest symbol at every frame. What repeats counts once, and blanks do not.

    Args:
        log_probabilities: `[B, T, V]` floats.
        frame_lengths: `[B]` integers, frames of each example.
        previous: `[B]` int32, the last symbol of the frames that went before, if any did: then
            the hypotheses of all parts, one after another, are that of the whole.
        blank: the symbol between labels.

    Returns:
        `Hypotheses` with tokens `[B, T]`, and `[B]` int32, what is `previous` for more frames.
        A token's frame is the first of those that it is at. `log_probability` is that of the one
        path, and so a lower bound on that of its labels, for which all would have to be summed.
    """
    batch, frames, _ = tf.unstack(tf.shape(log_probabilities))
    previous = tf.fill([batch], blank) if previous is None else previous
    symbols = tf.argmax(log_probabilities, axis=-1, output_type=tf.int32)
    path = tf.concat([previous[:, tf.newaxis], symbols], axis=1)  # [B, T + 1]
    running = tf.sequence_mask(frame_lengths, frames)
    emits = running & (symbols != blank) & (symbols != path[:, :-1])
    order = tf.argsort(tf.where(emits, 0, 1), axis=1, stable=True)
    best = tf.where(running, tf.reduce_max(log_probabilities, axis=-1), 0.0)
    found = Hypotheses(
        tokens=tf.gather(tf.where(emits, symbols, PADDING), order, batch_dims=1),
        lengths=tf.math.count_nonzero(emits, axis=1, dtype=tf.int32),
        log_probability=tf.reduce_sum(best, axis=1),
        frames=tf.gather(tf.where(emits, tf.range(frames), 0), order, batch_dims=1),
    )
    return found, tf.gather(path, frame_lengths, batch_dims=1)


class CTCBeamState(NamedTuple):
    """K prefixes an example, no two of them alike, the likeliest first.

    What has an axis of 2 is told apart by how paths end: in a blank, or in the prefix's last label.
    """

    totals: tf.Tensor  # [B, K, 2], log-probability of all paths; -inf where there is none
    paths: tf.Tensor  # [B, K, 2], of the likeliest of them
    last: tf.Tensor  # [B, K] int32, the last label; blank if there is none
    hashed: tf.Tensor  # [B, K] int64, of the labels
    hashed_before: tf.Tensor  # [B, K] int64, of the labels but for the last


class _Beam(NamedTuple):
    """The same, with what has come of the labels since the search began."""

    totals: tf.Tensor
    paths: tf.Tensor
    last: tf.Tensor
    hashed: tf.Tensor
    hashed_before: tf.Tensor
    origins: tf.Tensor  # [B, K] int32, the number of the prefix that it was then
    lengths: tf.Tensor  # [B, K] int32, labels since
    tokens: tf.Tensor  # [B, K, T] int32, they themselves
    frames: tf.Tensor  # [B, K, 2, T] int32, where the likeliest path of each end emits them


class _Entries(NamedTuple):
    """How a prefix becomes longer by a label at a frame."""

    totals: tf.Tensor  # [B, K, V], log-probability of all paths
    paths: tf.Tensor  # [B, K, V], of the likeliest of them
    ends: tf.Tensor  # [B, K, V] int32, the end that it goes on from


def beam_ctc_search(log_probabilities, frame_lengths, *, beam, blank=BLANK):
    """Returns the `K` best hypotheses of each example, the probabilities of their paths summed.

    Prefixes of labels go from frame to frame. Of each, paths that end in a blank are summed apart
    from those that end in its last label `c`, because a label makes it longer after any path but
    itself after a blank only (Graves, Fernández, Gomez, Schmidhuber 2006, section 3.2; frame by
    frame as in Hannun, Maas, Jurafsky, Ng 2014, "First-pass large vocabulary continuous speech
    recognition using bi-directional recurrent DNNs"):

        blank(l, t) = (blank(l, t − 1) + label(l, t − 1)) p(t, blank)
        label(l, t) = label(l, t − 1) p(t, c)
                      + (blank(l', t − 1) + [c is not the last of l'] label(l', t − 1)) p(t, c)

    where `l` is `l'` made longer by `c`. The `K` likeliest stay at each frame. A beam with room
    for all prefixes finds every hypothesis with its exact probability. A beam of 1 is not the
    greedy search: it weighs sums of paths, and that finds the one likeliest path.

    The search is one `tf.while_loop` over the frames: in a graph, in an exported one, eagerly, and
    with static shapes under XLA.

    Args:
        log_probabilities: `[B, T, V]` floats.
        frame_lengths: `[B]` integers, frames of each example.
        beam: `K`, at least 1.
        blank: the symbol between labels.

    Returns:
        `Hypotheses` `[B, K, …]` with tokens `[B, K, T]`, best first. `frames` are those of the
        likeliest path. Where there are fewer hypotheses than `K`, the rest has a
        `log_probability` of -inf.
    """
    begun = start_ctc_beam(tf.shape(frame_lengths)[0], beam, blank)
    found = _search(log_probabilities, frame_lengths, begun, blank)
    best = tf.argmax(found.paths, axis=2, output_type=tf.int32)
    return Hypotheses(
        tokens=found.tokens,
        lengths=found.lengths,
        log_probability=tf.reduce_logsumexp(found.totals, axis=2),
        frames=tf.gather(found.frames, best, batch_dims=2),
    )


def start_ctc_beam(batch_size, beam, blank=BLANK) -> CTCBeamState:
    """Returns beams with one prefix, that of no labels, as if after a blank."""
    if beam < 1:
        raise ValueError(f"`beam` must be at least 1. Received: beam={beam}")
    zeros = tf.zeros([batch_size, beam], tf.int32)
    first = (tf.range(beam) == 0)[:, tf.newaxis] & (tf.range(2) == 0)  # [K, 2]
    first = tf.where(first, 0.0, _NEVER) + tf.zeros([batch_size, beam, 2])
    return CTCBeamState(
        totals=first,
        paths=first,
        last=zeros + blank,
        hashed=tf.cast(zeros, tf.int64),
        hashed_before=tf.cast(zeros - 1, tf.int64),  # no prefix's: there is none before
    )


def stream_ctc_beam(
    log_probabilities, frame_lengths, state: CTCBeamState, blank=BLANK
) -> tuple[Continuations, CTCBeamState]:
    """Returns what `beam_ctc_search` finds in some more frames of each example.

    After the last ones, hypotheses and probabilities are those of a search of all frames at once.

    Args:
        log_probabilities: `[B, T, V]` floats.
        frame_lengths: `[B]` integers, how many more frames there are.
        state: what the last call returned, or `start_ctc_beam`.
        blank: the symbol between labels.

    Returns:
        `Continuations`, and the state after them.
    """
    found = _search(log_probabilities, frame_lengths, state, blank)
    total = tf.reduce_logsumexp(found.totals, axis=2)
    continuations = Continuations(found.origins, found.tokens, found.lengths, total)
    return continuations, CTCBeamState(*found[: len(state)])


def _search(log_probabilities, frame_lengths, begun, blank):
    """Returns the beam after these frames."""
    scores = tf.cast(tf.convert_to_tensor(log_probabilities), tf.float32)
    frame_lengths = tf.cast(frame_lengths, tf.int32)

    def step(frame, found):
        entries = _entries(found, scores[:, frame], blank)
        kept, entries = _kept(found, entries, scores[:, frame], frame, blank)
        longer = _likeliest(found, kept, entries, frame)
        running = frame < frame_lengths
        return tf.nest.map_structure(lambda new, old: _where(running, new, old), longer, found)

    frames = tf.shape(scores)[1]
    _, found = tf.while_loop(
        lambda frame, _: frame < frames,
        lambda frame, found: (frame + 1, step(frame, _Beam(*found))),
        (0, _begin(begun, frames)),
    )
    return _Beam(*found)


def _begin(begun, frames):
    """Returns the beam before these frames, none of whose labels has been emitted."""
    batch, beam = tf.shape(begun.last)[0], begun.last.shape[1]
    zeros = tf.zeros_like(begun.last)
    return _Beam(
        *begun,
        origins=tf.range(beam) + zeros,
        lengths=zeros,
        tokens=tf.fill([batch, beam, frames], PADDING),
        frames=tf.zeros([batch, beam, 2, frames], tf.int32),
    )


def _entries(found, scores, blank):
    """Returns how the prefixes become longer, for scores `[B, V]` of a frame."""
    symbols = tf.range(tf.shape(scores)[1])
    again = symbols == found.last[..., tf.newaxis]  # [B, K, V]
    scores = tf.where(symbols == blank, _NEVER, scores)[:, tf.newaxis]
    totals, paths = found.totals[..., tf.newaxis], found.paths[..., tf.newaxis]
    either = tf.reduce_logsumexp(totals, axis=2)
    by_label = ~again & (paths[:, :, 1] > paths[:, :, 0])
    return _Entries(
        totals=tf.where(again, totals[:, :, 0], either) + scores,
        paths=tf.where(by_label, paths[:, :, 1], paths[:, :, 0]) + scores,
        ends=tf.cast(by_label, tf.int32),
    )


def _kept(found, entries, scores, frame, blank):
    """Returns the prefixes a frame on, as long as they are, and the entries that lead elsewhere.

    They come by a blank, by their last label again, or as a shorter prefix becomes one of them.
    """
    by_blank = tf.reduce_logsumexp(found.totals, axis=2) + scores[:, tf.newaxis, blank]
    again = tf.gather(scores, found.last, batch_dims=1)
    best = tf.argmax(found.paths, axis=2, output_type=tf.int32)
    path_by_blank = tf.reduce_max(found.paths, axis=2) + scores[:, tf.newaxis, blank]
    path_again = found.paths[..., 1] + again

    present = tf.reduce_any(found.totals > _NEVER, axis=2)
    follows = present[:, :, tf.newaxis] & present[:, tf.newaxis]  # [B, K shorter, K]
    follows &= found.hashed[:, :, tf.newaxis] == found.hashed_before[:, tf.newaxis]
    enters = tf.reduce_any(follows, axis=1)
    shorter = tf.argmax(follows, axis=1, output_type=tf.int32)
    total, path, entered = _enter(found, entries, shorter, found.last, frame)
    total, path = tf.where(enters, total, _NEVER), tf.where(enters, path, _NEVER)
    by_label = tf.reduce_logsumexp(tf.stack([found.totals[..., 1] + again, total]), axis=0)
    frames = tf.stack(
        [
            tf.gather(found.frames, best, batch_dims=2),
            tf.where((path > path_again)[..., tf.newaxis], entered, found.frames[:, :, 1]),
        ],
        axis=2,
    )
    kept = found._replace(
        totals=tf.stack([by_blank, by_label], axis=2),
        paths=tf.stack([path_by_blank, tf.maximum(path, path_again)], axis=2),
        frames=frames,
    )
    # Minimum, as many that nothing enters share a place that means nothing.
    at = _places(shorter, found.last)
    totals = tf.tensor_scatter_nd_min(entries.totals, at, tf.where(enters, _NEVER, -_NEVER))
    return kept, entries._replace(totals=totals)


def _enter(found, entries, parents, labels, frame):
    """Returns total, path and frames `[B, K, …]` of prefixes that labels made longer."""
    total, path, end = (tf.gather_nd(x, _places(parents, labels)) for x in entries)
    frames = tf.gather_nd(found.frames, _places(parents, end))
    lengths = tf.gather(found.lengths, parents, batch_dims=1)
    written = tf.range(tf.shape(frames)[2]) == lengths[..., tf.newaxis]
    return total, path, tf.where(written, frame, frames)


def _places(rows, columns):
    """Returns `[B, K, 3]`, places in what has an axis of examples before rows and columns."""
    examples = tf.range(tf.shape(rows)[0])[:, tf.newaxis]
    return tf.stack([tf.broadcast_to(examples, tf.shape(rows)), rows, columns], axis=-1)


def _likeliest(found, kept, entries, frame):
    """Returns a beam of the likeliest of those that are kept and those that become longer."""
    beam, symbols = found.lengths.shape[1], tf.shape(entries.totals)[2]
    longer = tf.reshape(entries.totals, [-1, beam * symbols])
    candidates = tf.concat([tf.reduce_logsumexp(kept.totals, axis=2), longer], axis=1)
    log_probability, place = tf.math.top_k(candidates, beam)
    stays = place < beam
    emits = ~stays & (log_probability > _NEVER)
    longer = tf.maximum(place - beam, 0)
    parent = tf.where(stays, place, longer // symbols)
    label = tf.where(emits, longer % symbols, PADDING)
    total, path, entered = _enter(found, entries, parent, label, frame)
    total, path = tf.where(emits, total, _NEVER), tf.where(emits, path, _NEVER)

    def of_parent(values):
        return tf.gather(values, parent, batch_dims=1)

    def parted(of_blank, of_label, of_kept):
        """Returns both ends, of the new prefix, or of the one that stays."""
        new, old = tf.stack([of_blank, of_label], axis=2), of_parent(of_kept)
        return tf.where(tf.reshape(stays, [-1, beam] + [1] * (old.shape.rank - 2)), old, new)

    nothing = tf.fill(tf.shape(total), _NEVER)
    hashed, lengths, tokens = map(of_parent, (found.hashed, found.lengths, found.tokens))
    written = emits[..., tf.newaxis] & (tf.range(tf.shape(tokens)[2]) == lengths[..., tf.newaxis])
    return _Beam(
        totals=parted(nothing, total, kept.totals),
        paths=parted(nothing, path, kept.paths),
        last=tf.where(emits, label, of_parent(found.last)),
        hashed=tf.where(emits, longer_hash(hashed, label), hashed),
        hashed_before=tf.where(emits, hashed, of_parent(found.hashed_before)),
        origins=of_parent(found.origins),
        lengths=lengths + tf.cast(emits, tf.int32),
        tokens=tf.where(written, label[..., tf.newaxis], tokens),
        frames=parted(tf.zeros_like(entered), entered, kept.frames),
    )


def _where(rows, new, old):
    """Returns the examples `[B, …]` of `new` where `rows` `[B]` hold, and others of `old`."""
    return tf.where(tf.reshape(rows, [-1] + [1] * (old.shape.rank - 1)), new, old)
