"""What is special of translation: how it is measured, and what is learnt from."""

import pytest
import tensorflow as tf

from keras_models.configs.seq2seq import Seq2SeqConfig
from keras_models.configs.transcription import Text
from keras_models.configs.translation import Translation

MODEL = Seq2SeqConfig(embedding_units=4, encoder_units=3, decoder_units=5, n_best=3)


@pytest.fixture(scope="module", params=["token", "character"])
def task(request, tmp_path_factory):
    unit = request.param
    config = Translation(
        input=Text("de", unit=unit), output=Text("en", unit=unit), learn_words=4, max_length=40
    )
    folder = tmp_path_factory.mktemp(unit)
    records = {"de": tf.constant(["eins zwei drei vier"]), "en": tf.constant(["one two three"])}
    config.prepare([records], folder)
    return config.build(MODEL, folder)


def test_bleu_is_100_of_the_same_sentences_in_whatever_letter_case(task):
    assert task.metrics == ("bleu",)
    assert task.higher_is_better == {"bleu"}
    sentences = ["A man is walking, slowly, there.", "Two dogs play in the snow."]
    found = task.measure([each.upper() for each in sentences], [[each] for each in sentences])
    assert found == {"bleu": pytest.approx(100.0)}


def test_bleu_counts_n_grams_in_any_of_the_references(task):
    """By hand: of 5, 4, 3 and 2 n-grams 4, 3, 2 and 1 are right; no brevity penalty."""
    answers = ["two dogs play there quietly"]
    right = 100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25
    wrong = ["a cat"]
    assert task.measure(answers, [["two dogs play there today"]])["bleu"] == pytest.approx(right)
    several = task.measure(answers * 2, [["two dogs play there today", *wrong], [answers[0]]])
    assert right < several["bleu"] < 100


def test_each_pair_is_an_example_of_its_own_and_has_no_confusions(task):
    assert not task.many_references
    assert not task.confusions(["one"], [["two"]])


def test_long_sentences_are_not_learnt_from(task):
    records = {
        "de": tf.constant(["eins zwei drei", "eins zwei drei vier", "eins", ""]),
        "en": tf.constant(["one", "one", "one two one two", "one"]),
    }
    assert task.feasible(task.features(records)).numpy().tolist() == [True, False, False, False]


def test_long_sentences_are_explained_all_the_same(task):
    inputs = {"de": tf.constant(["eins zwei drei vier"])}
    [explanation] = task.explain(inputs, tf.constant(["one two three"]))
    assert explanation.weights.shape == (len(explanation.inputs), len(explanation.outputs))
    assert explanation.weights.sum(0) == pytest.approx(1.0)


def test_a_sentence_of_nothing_is_answered_and_one_that_is_too_long_refused(task):
    served = task.signatures()
    for name in ("serving_default", "timestamps", "n_best"):
        assert served[name](tf.constant(["", "eins"]))["en"].shape[0] == 2
        with pytest.raises(tf.errors.InvalidArgumentError, match="must have at most 40 symbols"):
            served[name](tf.constant(["eins " * 10_000]))


def test_the_attention_to_each_input_symbol_is_served(task):
    text = tf.constant(["eins zwei drei", "vier"])
    counts = task.features({"de": text, "en": text})["de"].row_lengths().numpy()
    for name, axes in (("timestamps", 3), ("n_best", 4)):
        found = task.signatures()[name](text)
        attention = found["attention"].numpy()
        assert attention.ndim == axes
        assert attention.shape[:-1] == found["tokens"].shape
        said = found["tokens"].numpy() != b""
        assert attention[said].sum(-1) == pytest.approx(1.0, rel=1e-5)
        assert not attention[~said].any()
        assert not attention[1, ..., counts[1] :].any()
