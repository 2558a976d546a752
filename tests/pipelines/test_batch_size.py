import itertools

import pytest
import tensorflow as tf

from pipelines.batch_size import fastest_batch_tokens
from pipelines.errors import UsageError


def test_budgets_double_until_two_in_a_row_gain_nothing(speller, words, records):
    dataset = records([(word, word.upper()) for word in words(40)])
    tried = fastest_batch_tokens(dataset, speller(), ["text", "sound"], [4, 4], jit_compile=False)
    budgets, rates = list(tried), list(tried.values())
    assert budgets == [512 * 2**n for n in range(len(tried))]
    gains = [rate > 1.03 * max(rates[:n], default=0.0) for n, rate in enumerate(rates)]
    pairs = [any(pair) for pair in itertools.pairwise(gains)]
    assert pairs == [True] * (len(pairs) - 1) + [False]


def test_examples_that_are_no_sequences_are_refused(speller, words, records):
    dataset = records([(word, word.upper()) for word in words(4)])
    with pytest.raises(UsageError, match=r"`data.batch_size` must be given where"):
        fastest_batch_tokens(dataset, speller(), [], [], jit_compile=False)


def test_what_does_not_fit_ends_the_trial(speller, words, records):
    class Large(speller):
        def losses(self, batch, dropout_seed=None):
            if batch["text"].shape[0] > 300:
                raise tf.errors.ResourceExhaustedError(None, None, "no memory is left")
            return super().losses(batch, dropout_seed)

    dataset = records([(word, word.upper()) for word in words(40)])
    tried = fastest_batch_tokens(dataset, Large(), ["text", "sound"], [4, 4], jit_compile=False)
    assert list(tried) in ([512], [512, 1024])
