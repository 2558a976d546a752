"""Searches that keep to a lexicon, or to given beginnings: tries, as tensors."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, NamedTuple

import tensorflow as tf

from keras_models import BLANK
from keras_models.decoding.transducer import Steps

_NEVER = float("-inf")
_ROOT = 0


class Trie(NamedTuple):
    """Sequences of labels as a tree. Node 0 is the root; arc `a` leads to node `a + 1`."""

    first_arc: tf.Tensor  # [nodes] int32, the first of a node's arcs, which are neighbours
    arcs: tf.Tensor  # [nodes] int32, their number
    labels: tf.Tensor  # [arcs] int32
    ends: tf.Tensor  # [nodes] bool, where a sequence ends
    width: int  # the greatest number of arcs of a node


class TrieState(NamedTuple):
    """What a search carries with a hypothesis."""

    steps: object  # nest of [N, …]
    node: tf.Tensor  # [N] int32, where it is in the trie
    free: tf.Tensor  # [N] bool, whether any label may follow
    last_frame: tf.Tensor  # [N] int32, of its example


def build_trie(sequences: Iterable[Sequence[int]]) -> Trie:
    """Returns the trie of sequences of labels, of which there must be one."""
    root: dict = {}
    for sequence in sequences:
        node = root
        for label in sequence:
            node = node.setdefault(int(label), {})
        node[None] = True  # here a sequence ends
    if not root:
        raise ValueError("`sequences` must hold one sequence or more. Received: none")
    nodes, first, labels = [root], [], []
    for node in nodes:  # breadth first; it grows as it is gone through
        children = [label for label in node if label is not None]
        first.append(len(labels))
        labels += children
        nodes += [node[label] for label in children]
    counts = [len(node) - (None in node) for node in nodes]
    return Trie(
        first_arc=tf.constant(first, tf.int32),
        arcs=tf.constant(counts, tf.int32),
        labels=tf.constant(labels, tf.int32, [len(labels)]),
        ends=tf.constant([None in node for node in nodes]),
        width=max(counts),
    )


def within_trie(
    steps: Steps,
    trie: Trie,
    frame_lengths: tf.Tensor,
    kind: Literal["lexicon", "beginnings"] = "lexicon",
    blank: int = BLANK,
) -> Steps:
    """Returns steps for any search that finds nothing but what a trie allows.

    A label that leads out of the trie has a score of -inf, and so has the last frame's blank where
    no sequence ends. A hypothesis that has to take one, as a bound on its labels forces the blank,
    ends with a log-probability of -inf, as if it was not there.

    Args:
        steps: those of the transducer, perhaps with a language model.
        trie: what is allowed.
        frame_lengths: `[B]` integers, frames of each example.
        kind: whether the labels are to be one of the trie's sequences, as of a lexicon, or to begin
            with one of them.
        blank: the symbol that consumes a frame.
    """

    def score(frames, state):
        scores = steps.score(frames, state.steps)
        _, labels, exist = _arcs(trie, state.node)
        rows = tf.broadcast_to(tf.range(tf.shape(labels)[0])[:, tf.newaxis], tf.shape(labels))
        at = tf.stack([rows, tf.where(exist, labels, blank)], axis=-1)
        allowed = tf.scatter_nd(at, tf.ones_like(labels), tf.shape(scores)) > 0
        may_end = tf.gather(trie.ends, state.node) | state.free
        allowed |= state.free[:, tf.newaxis]
        may_go_on = may_end | (frames < state.last_frame)
        is_blank = tf.range(scores.shape[-1]) == blank
        return tf.where(tf.where(is_blank, may_go_on[:, tf.newaxis], allowed), scores, _NEVER)

    def advance(labels, state):
        arc, of_arcs, exist = _arcs(trie, state.node)
        follows = exist & (of_arcs == labels[:, tf.newaxis])
        node = tf.reduce_max(tf.where(follows, arc + 1, _ROOT), axis=1)
        free = state.free | (tf.gather(trie.ends, node) if kind == "beginnings" else False)
        return TrieState(steps.advance(labels, state.steps), node, free, state.last_frame)

    last_frame = tf.cast(frame_lengths, tf.int32) - 1
    node = tf.fill(tf.shape(last_frame), _ROOT)
    free = tf.gather(trie.ends, node) & (kind == "beginnings")
    return Steps(score, advance, TrieState(steps.initial_state, node, free, last_frame))


def _arcs(trie, node):
    """Returns each node's arcs `[N, width]`, their labels, and whether they are there."""
    place = tf.range(max(trie.width, 1))
    exist = place < tf.gather(trie.arcs, node)[:, tf.newaxis]
    arc = tf.where(exist, tf.gather(trie.first_arc, node)[:, tf.newaxis] + place, 0)
    labels = tf.pad(trie.labels, [[0, 1]])  # one there always is
    return arc, tf.gather(labels, arc), exist
