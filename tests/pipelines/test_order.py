import collections
import itertools
import math

import numpy as np
import pytest
import tensorflow as tf

from pipelines.order import Order, permuted

WIDTHS = [[3, 4], [7, 5], [9, 9]]
LENGTHS = np.array([[2, 1], [3, 4], [1, 5], [8, 1], [9, 9], [7, 5], [3, 3], [6, 2]] * 3)
OF_BUCKET = [9, 9, 6]  # examples
SIZES = [3, 9, 2]


@pytest.fixture(scope="module")
def order():
    def make(lengths=LENGTHS, parts=None, weights=(1,), widths=WIDTHS, sizes=SIZES, seed=1):
        return Order(np.array(lengths), parts or [len(lengths)], weights, widths, sizes, seed)

    return make


def steps(order, count, start=0):
    """Returns bucket and examples of some steps."""
    buckets, examples = order.batches(tf.range(start, start + count, dtype=tf.int64))
    return list(zip(buckets.numpy().tolist(), examples.to_list(), strict=True))


def test_an_example_is_in_the_first_bucket_that_holds_it(order):
    for bucket, examples in steps(order(), 40):
        for example in examples:
            holds = [all(LENGTHS[example] <= width) for width in WIDTHS]
            assert holds.index(True) == bucket


def test_where_batches_fill_an_epoch_each_holds_every_example_once(order):
    """And as many batches of each bucket as its examples fill."""
    batches = [count // size for count, size in zip(OF_BUCKET, SIZES, strict=True)]
    for epoch in range(5):
        found = steps(order(), sum(batches), epoch * sum(batches))
        assert collections.Counter(bucket for bucket, _ in found) == dict(enumerate(batches))
        examples = itertools.chain.from_iterable(examples for _, examples in found)
        assert sorted(examples) == list(range(len(LENGTHS)))


@pytest.mark.parametrize("sizes", [[2, 5, 4], [7, 2, 5], [100, 30, 7], [1, 1, 1]])
def test_where_they_do_not_the_rest_is_carried_over(order, sizes):
    """After many steps each bucket has come as often as its examples are many."""
    seen, drawn = collections.Counter(), np.zeros(3)
    for bucket, examples in steps(order(sizes=sizes), 700):
        assert len(examples) == sizes[bucket]
        drawn[bucket] += len(examples)
        seen.update(examples)
    epochs = drawn.sum() / len(LENGTHS)
    np.testing.assert_allclose(drawn, epochs * np.array(OF_BUCKET), atol=2 * sum(sizes))
    for bucket, count in enumerate(OF_BUCKET):
        of_bucket = [seen[n] for n in range(len(LENGTHS)) if _bucket(n) == bucket]
        assert len(of_bucket) == count
        assert max(of_bucket) - min(of_bucket) <= 2


def _bucket(example):
    return [all(LENGTHS[example] <= width) for width in WIDTHS].index(True)


def test_a_batch_is_a_function_of_its_number(order):
    assert steps(order(), 30)[11:] == steps(order(), 19, start=11)
    far = 10**9
    assert steps(order(), 3, start=far)[1:] == steps(order(), 2, start=far + 1)


def test_another_seed_gives_another_order(order):
    first, again, other = (steps(order(seed=seed), 9) for seed in (4, 4, 5))
    assert first == again != other


def test_the_order_is_as_random_as_any():
    """Neighbours, and the same place an epoch later, tell nothing of an example."""
    count = 5000
    order = Order(np.ones([count, 1]), [count], [1], [[1]], [500], 3)
    examples = np.array([examples for _, examples in steps(order, 20)]).reshape(2, count)
    assert (np.sort(examples, axis=1) == np.arange(count)).all()
    first, second = examples
    bound = 4 / count**0.5
    for others in (np.roll(first, 1), np.roll(first, 2), np.arange(count), second):
        assert abs(np.corrcoef(first, others)[0, 1]) < bound
    distances = np.unique(np.diff(first), return_counts=True)[1]
    assert distances.max() < 10


def test_weights_are_of_draws_and_not_of_examples(order):
    found = steps(order(parts=[8, 16], weights=[1, 3]), 2000)
    seen = np.bincount([n for _, examples in found for n in examples], minlength=24)
    np.testing.assert_allclose(seen / seen.sum(), [0.25 / 8] * 8 + [0.75 / 16] * 16, rtol=0.2)
    assert sum(seen[:8]) / sum(seen) == pytest.approx(0.25, abs=0.02)


def test_every_example_of_a_part_comes_however_small_its_weight(order):
    found = steps(order(parts=[23, 1], weights=[1, 1e-9], sizes=[20_000] * 3), 20)
    seen = sum(np.bincount(examples, minlength=24) for _, examples in found)
    assert 0 < seen[23] < 20


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_permutation_comes_equally_often(size):
    keys = np.repeat(np.arange(4800, dtype=np.uint64), size)
    places = np.tile(np.arange(size), 4800)
    found = permuted(places, [size], keys)
    counts = collections.Counter(map(tuple, found.numpy().reshape(-1, size)))
    expected = 4800 / math.factorial(size)
    assert len(counts) == math.factorial(size)
    assert sum((n - expected) ** 2 / expected for n in counts.values()) < 50  # χ², 23 degrees


def test_examples_without_sequences_are_of_one_bucket(order):
    found = steps(order(np.zeros([24, 0]), widths=[[]], sizes=[6]), 4)
    assert sorted(itertools.chain.from_iterable(examples for _, examples in found)) == list(
        range(24)
    )
