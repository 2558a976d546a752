"""A tag for each token: which tokens are one symbol, what is learnt from, how answers count."""

from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.lstm import LSTMConfig
from keras_models.configs.tagging import Tagging
from keras_models.frontends.padding import pad

TEXTS = ["the cat sees the dog", "the dog sleeps", "a cat sees"]
TAGS = ["D N V D N", "D N V", "D N V"]


@pytest.fixture
def build(tmp_path_factory):
    """Returns a task that knows of these texts, its weights all random."""

    def task(**fields):
        config, folder = Tagging(**fields), tmp_path_factory.mktemp("assets")
        config.prepare([{"text": tf.constant(TEXTS), "tags": tf.constant(TAGS)}], folder)
        built = config.build(LSTMConfig(units=3, embedding_units=5), folder)
        random = np.random.default_rng(3)
        for variable in built.model.variables:
            variable.assign(random.normal(scale=1.5, size=variable.shape))
        return built

    return task


def _answers(task, *texts):
    answers = task.answer({"text": tf.constant(texts)})
    return [tags.decode() for tags in answers["tags"].numpy()], answers["log_probability"].numpy()


def _features(task, texts, tags):
    return task.features({"text": tf.constant(texts), "tags": tf.constant(tags)})


def test_every_token_has_a_tag_known_or_not(build):
    tags, scores = _answers(build(), "the  cat\tnever saw the dog", "", " ", "never")
    assert [len(each.split()) for each in tags] == [6, 0, 0, 1]
    assert set(" ".join(tags).split()) <= {"D", "N", "V"}
    assert (scores[[0, 3]] < 0).all()
    np.testing.assert_array_equal(scores[[1, 2]], [0, 0])


def test_tokens_that_were_rare_in_training_are_one_symbol_with_those_that_were_not_there(build):
    numbers = _features(build(), ["a cat sleeps unseen"], ["D N V V"])["text"].to_list()[0]
    assert len(set(numbers)) == 2
    assert numbers[0] == numbers[2] == numbers[3] == 5  # padding, the, cat, sees, dog
    numbers = _features(build(min_count=1), ["a cat sleeps unseen"], ["D N V V"])["text"]
    assert len(set(numbers.to_list()[0])) == 4


def test_the_share_of_unknown_tokens_is_told(build):
    unknown = build().unknown({"text": tf.constant(["a cat", "never"]), "tags": tf.constant(["X"])})
    assert {name: each.numpy().tolist() for name, each in unknown.items()} == {
        "text": [2, 3],
        "tags": [1, 1],
    }


def test_texts_are_learnt_from_whose_tokens_each_have_a_known_tag(build):
    texts = ["the cat", "the cat", "the cat", "", "never"]
    features = _features(build(), texts, ["D N", "D", "D X", "", "V"])
    assert build().feasible(features).numpy().tolist() == [True, False, False, False, True]


def test_the_loss_of_the_answer_is_its_log_probability_and_every_other_is_greater(build):
    task = build()
    texts = ["the cat sees", "dog"]
    tags, scores = _answers(task, *texts)

    def losses(tags):
        features = _features(task, texts, tags)
        batch = {n: f.to_tensor() for n, f in features.items()}
        batch |= {n + "_lengths": tf.cast(f.row_lengths(), tf.int32) for n, f in features.items()}
        return task.losses(batch).numpy()

    np.testing.assert_allclose(losses(tags), -scores, rtol=1e-5)
    others = ["N N N" if tags[0] != "N N N" else "V V V", "D" if tags[1] != "D" else "V"]
    assert (losses(others) > losses(tags)).all()


def test_tags_are_smoothed_as_asked(build):
    """Over the three tags that are known; a text's loss is the sum of its tokens'."""
    batch = pad(_features(build(), TEXTS, TAGS))
    plain, smoothed = (build(label_smoothing=e).losses(batch).numpy() for e in (0.0, 0.25))
    task = build()
    scores = tf.nn.log_softmax(task.model(batch["text"], batch["text_lengths"])).numpy()
    means = [row[:length].mean(-1).sum() for row, length in zip(scores, [5, 3, 3], strict=True)]
    np.testing.assert_allclose(smoothed, 0.75 * plain - 0.25 * np.array(means), rtol=1e-4)


def test_text_and_tags_may_be_padded_to_different_widths(build):
    task = build()
    features = _features(task, TEXTS, TAGS)
    lengths = {n + "_lengths": tf.cast(f.row_lengths(), tf.int32) for n, f in features.items()}

    def losses(text, tags):
        widths = {"text": text, "tags": tags}
        padded = {n: f.to_tensor(shape=[None, widths[n]]) for n, f in features.items()}
        return task.losses({**padded, **lengths})

    for widths in ((5, 8), (8, 5), (9, 9)):
        np.testing.assert_allclose(losses(*widths), losses(5, 5), rtol=1e-5)


def test_a_text_counts_as_many_tokens_as_it_has(build):
    batch = {"text": tf.ones([2, 3], tf.int32), "text_lengths": tf.constant([3, 1])}
    np.testing.assert_array_equal(build().weights(batch), [3, 1])


def test_accuracies_are_of_tokens_and_of_whole_texts(build):
    answers, references = ["D N", "D V V", "N"], [["D N"], ["D N V"], ["V"]]
    task = build()
    assert task.measure(answers, references) == {
        "token_accuracy": 4 / 6,
        "sentence_accuracy": 1 / 3,
    }
    assert task.confusions(answers, references) == Counter({("N", "V"): 1, ("V", "N"): 1})
    assert set(task.metrics) == task.higher_is_better


def test_a_longer_text_than_the_limit_is_refused(build):
    task = build(max_length=3)
    assert len(_answers(task, "a b c")[0]) == 1
    assert task.refuses({"text": tf.constant(["a b c", "a b c d"])}).numpy().tolist() == [0, 1]
    with pytest.raises(tf.errors.InvalidArgumentError, match="`text` must have at most 3 tokens"):
        _answers(task, "a", "a b c d")


@pytest.mark.parametrize("tags", ["text", "log_probability"])
def test_tags_have_a_name_of_their_own(tags):
    with pytest.raises(ValueError, match=f"Received: '{tags}'"):
        Tagging(tags=tags)
