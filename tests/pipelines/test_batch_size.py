import tensorflow as tf

from pipelines.batch_size import fastest_batch_tokens


def test_budgets_double_as_long_as_they_are_faster(speller, words, records):
    """Of this task, so small that calling it is what takes the time, the larger is the faster."""
    dataset = records([(word, word.upper()) for word in words(40)])
    tried = fastest_batch_tokens(dataset, speller(), ["text", "sound"], [4, 4], jit_compile=False)
    budgets, rates = list(tried), list(tried.values())
    assert budgets == [512 * 2**n for n in range(len(tried))]
    best = rates.index(max(rates))
    assert best >= 1
    assert len(rates) <= best + 3


def test_what_does_not_fit_ends_the_trial(speller, words, records):
    class Large(speller):
        def losses(self, batch, dropout_seed=None):
            if batch["text"].shape[0] > 300:
                raise tf.errors.ResourceExhaustedError(None, None, "no memory is left")
            return super().losses(batch, dropout_seed)

    dataset = records([(word, word.upper()) for word in words(40)])
    tried = fastest_batch_tokens(dataset, Large(), ["text", "sound"], [4, 4], jit_compile=False)
    assert list(tried) in ([512], [512, 1024])
