import collections
import itertools

import numpy as np
import pytest
import tensorflow as tf

from pipelines.errors import UsageError
from pipelines.input import batch_sizes, bucket_widths, training_batches, write_examples
from pipelines.store import FeatureStore

NAMES = ["text", "sound"]
TOKENS = 24


@pytest.fixture(scope="module")
def pairs(words):
    """97 words and what is said of them, not always all; no two words are the same."""
    return [(word, word[: 1 + i % len(word)].upper()) for i, word in enumerate(words(97))]


@pytest.fixture(scope="module")
def widths(pairs):
    return bucket_widths(np.array([[len(text), len(sound)] for text, sound in pairs]), buckets=3)


@pytest.fixture(scope="module")
def write(speller, records, tmp_path_factory):
    """Returns the store of some parts, and the number of examples left out."""

    def of(*parts, task=None):
        folder = tmp_path_factory.mktemp("features")
        return write_examples(map(records, parts), task or speller(), folder)

    return of


@pytest.fixture(scope="module")
def batches_of(write, pairs, widths):
    """Returns endless batches."""

    def make(seed=1, parts=(pairs,), tokens=TOKENS, weights=None, first=0):
        store, _ = write(*parts)
        sizes = batch_sizes(widths, tokens, None)
        return training_batches(store, widths, sizes, seed, weights).since(first)

    return make


def texts(batch):
    """Returns the words of a batch of numbered letters."""
    return ["".join(chr(ord("a") + n - 1) for n in row if n) for row in batch["text"].numpy()]


def words_of(batches, count):
    return [texts(batch) for batch in batches.take(count)]


def padded_size(lengths, edges):
    """Returns the size of `lengths` when each is padded to the least edge that holds it."""
    return sum(min(edge for edge in edges if edge >= length) for length in lengths)


# Buckets.


@pytest.mark.parametrize("buckets", [1, 2, 3, 4])
def test_no_choice_of_widths_pads_less(buckets):
    random = np.random.default_rng(buckets)
    for _ in range(20):
        lengths = random.choice(13, size=17, p=random.dirichlet(np.ones(13))) + 1
        edges = [width for (width,) in bucket_widths(lengths[:, np.newaxis], buckets)]
        values = sorted(set(lengths.tolist()))
        choices = itertools.combinations(values, min(buckets, len(values)))
        least = min(padded_size(lengths, edges) for edges in choices if edges[-1] == values[-1])
        assert len(edges) <= buckets
        assert padded_size(lengths, edges) == least


def test_a_bucket_for_every_length_pads_nothing():
    lengths = np.array([[5], [2], [11], [5], [3]])
    assert bucket_widths(lengths, 6) == [[2], [3], [5], [11]]


def test_widths_rise_and_hold_every_example():
    random = np.random.default_rng(5)
    lengths = random.integers(0, [14, 9], size=[200, 2])
    widths = np.array(bucket_widths(lengths, 4))
    assert (np.diff(widths, axis=0) >= 0).all()
    assert (widths[-1] == lengths.max(axis=0)).all()


def test_a_long_second_sequence_moves_up_rather_than_widen_its_bucket():
    short, odd, long = [[3, 4]] * 99, [[3, 20]], [[10, 21]] * 50
    lengths = np.array(short + odd + long)
    assert bucket_widths(lengths, 2, overflow=0.02) == [[3, 4], [10, 21]]
    assert bucket_widths(lengths, 2, overflow=0.0) == [[3, 20], [10, 21]]


def test_widths_are_at_least_one():
    assert bucket_widths(np.array([[2, 0], [2, 0]]), 3) == [[2, 1]]


# What is learnt from.


def test_what_cannot_be_learnt_from_is_counted_and_left_out(write, batches_of, pairs):
    bad = [("", ""), ("a", "AB"), ("", "A"), ("bc", "BCD")]
    mixed = [*bad[:2], *pairs, *bad[2:]]
    store, left_out = write(mixed)
    assert left_out == len(bad)
    assert store.sequences == NAMES
    assert store.lengths().tolist() == [[len(text), len(sound)] for text, sound in pairs]
    seen = itertools.chain.from_iterable(words_of(batches_of(parts=[mixed]), 60))
    assert set(seen) == {text for text, _ in pairs}


def test_nothing_to_learn_from_is_no_error_here(write):
    store, left_out = write([("", "A"), ("a", "AA"), ("", "")])
    assert (left_out, store.examples) == (3, [0])


# Batches.


def test_every_batch_has_the_shape_of_its_bucket(batches_of, widths):
    shapes = {
        (tuple(batch["text"].shape), tuple(batch["sound"].shape)) for batch in batches_of().take(80)
    }
    rows = [TOKENS // width for width, _ in widths]
    expected = {((n, t), (n, u)) for n, (t, u) in zip(rows, widths, strict=True)}
    assert shapes == expected


def test_a_batch_holds_its_budget_of_symbols_and_one_example_at_least(batches_of):
    for tokens in (1, 3, 17):
        for batch in batches_of(tokens=tokens).take(30):
            assert batch["text"].shape[0] == 1 or tf.size(batch["text"]) <= tokens


def test_an_example_is_in_the_first_bucket_that_holds_it_and_padded_with_zeros(
    batches_of, widths, pairs
):
    said = dict(pairs)
    for batch in batches_of().take(40):
        for text, sound in zip(texts(batch), batch["sound"].numpy(), strict=True):
            fits = [
                width for width in widths if len(text) <= width[0] and len(said[text]) <= width[1]
            ]
            assert fits[0] == [batch["text"].shape[1], batch["sound"].shape[1]]
            letters = [ord(letter) - ord("A") + 1 for letter in said[text]]
            assert sound.tolist() == letters + [0] * (len(sound) - len(letters))


def test_lengths_are_those_of_the_examples(batches_of, pairs):
    said = dict(pairs)
    for batch in batches_of().take(40):
        assert batch["text_lengths"].numpy().tolist() == [len(text) for text in texts(batch)]
        sounds = [len(said[text]) for text in texts(batch)]
        assert batch["sound_lengths"].numpy().tolist() == sounds


def test_every_epoch_holds_every_example_once(batches_of, widths, pairs):
    """But for what a batch holds of the next one; so each bucket is looked at by itself."""
    buckets = {tuple(width): collections.Counter() for width in widths}
    for batch in batches_of().take(500):
        width = batch["text"].shape[1], batch["sound"].shape[1]
        buckets[width].update(texts(batch))
        seen = buckets[width].values()
        assert max(seen) <= 3 or max(seen) - min(seen) <= 2
    assert sum(map(len, buckets.values())) == len(pairs)


def test_epochs_differ_in_their_order(batches_of, pairs):
    words = list(itertools.chain.from_iterable(words_of(batches_of(), 60)))
    assert words[: len(pairs)] != words[len(pairs) : 2 * len(pairs)]


def test_the_same_seed_gives_the_same_batches_and_another_one_others(batches_of):
    first, again, other = (words_of(batches_of(seed), 50) for seed in (4, 4, 5))
    assert first == again
    assert first != other


def test_parts_are_drawn_from_by_their_weights(batches_of, pairs):
    batches = batches_of(parts=[pairs[:20], pairs[20:]], weights=[3, 1])
    counts = collections.Counter(itertools.chain.from_iterable(words_of(batches, 900)))
    assert set(counts) == {text for text, _ in pairs}
    share = sum(counts[text] for text, _ in pairs[:20]) / counts.total()
    assert share == pytest.approx(0.75, abs=0.03)


def test_kept_in_memory_or_read_from_the_disk_batches_are_the_same(write, widths, pairs):
    store, _ = write(pairs)
    held = FeatureStore(store.folder, "memory")
    read, kept = (training_batches(each, widths, [5, 4, 3], 7).since(0) for each in (store, held))
    assert words_of(read, 30) == words_of(kept, 30)


@pytest.mark.parametrize("number", [1, 3, 37, 64, 200])
def test_batches_from_a_number_on_are_those_that_follow_it(batches_of, number):
    expected = words_of(batches_of().skip(number), 40)
    assert words_of(batches_of(first=number), 40) == expected


def test_what_changes_batches_has_another_seed_for_each_of_them(write, widths, pairs):
    store, _ = write(pairs)
    sizes = batch_sizes(widths, TOKENS, None)

    def seeds(first):
        batches = training_batches(store, widths, sizes, 5, None, lambda batch, seed: {"": seed})
        return [batch[""].numpy().tolist() for batch in batches.since(first).take(3)]

    assert seeds(0) == [[5, 0], [5, 1], [5, 2]]
    assert seeds(200) == [[5, 200], [5, 201], [5, 202]]


def test_a_batch_size_goes_before_a_budget_and_is_needed_without_sequences():
    assert batch_sizes([[4], [9]], 18, None) == [4, 2]
    assert batch_sizes([[4], [9]], 18, 5) == [5, 5]
    assert batch_sizes([[]], 18, 5) == [5]
    with pytest.raises(UsageError, match=r"`data\.batch_size` must be given"):
        batch_sizes([[]], 18, None)


def test_replicas_that_share_evenly_have_sizes_that_divide():
    assert batch_sizes([[4], [5], [30]], 18, None, 2) == [4, 2, 2]
    assert batch_sizes([[4], [5]], 18, 6, 3) == [6, 6]
    with pytest.raises(UsageError, match=r"a multiple of 4.* Received: 6"):
        batch_sizes([[4], [5]], 18, 6, 4)


@pytest.mark.parametrize("first", [0, 7])
def test_batches_together_are_parts_of_one_large_batch(write, widths, pairs, first):
    store, _ = write(pairs)
    sizes = [4, 2, 1]
    large = training_batches(store, widths, [3 * size for size in sizes], 5)
    parts = training_batches(store, widths, sizes, 5, together=3).since(first)
    found = [(texts(batch), batch["text"].shape[1]) for batch in parts.take(29)]
    expected = []
    for batch in large.since(0).take(12):
        size = len(batch["text"]) // 3
        words = texts(batch)
        expected += [
            (words[at : at + size], batch["text"].shape[1]) for at in range(0, 3 * size, size)
        ]
    assert found == expected[first : first + 29]


def test_examples_that_are_no_sequences_have_one_bucket(speller, write, pairs):
    class Lengths(speller):
        def features(self, records):
            return {"length": tf.strings.length(records["text"])}

        def feasible(self, features):
            return features["length"] > 1

    store, left_out = write(pairs, task=Lengths())
    widths = bucket_widths(store.lengths(), 3)
    batches = training_batches(store, widths, [7], 1).since(0)
    seen = [batch["length"].numpy() for batch in batches.take(40)]
    assert {each.shape for each in seen} == {(7,)}
    assert set(np.concatenate(seen)) == {2, 3, 4}
    assert left_out == sum(len(text) == 1 for text, _ in pairs)
