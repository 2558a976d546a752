"""Parts of words: beside SentencePiece, and beside every way to cut a word."""

import itertools
import sys
from dataclasses import replace

import numpy as np
import pytest
import sentencepiece
import tensorflow as tf

from keras_models.configs.transcription import Text, Transcription
from keras_models.configs.transducer import TransducerConfig
from keras_models.frontends.subword import SubwordFrontend, scores_path
from keras_models.frontends.text import build_vocabulary, write_vocabulary

CONFIG = Text("de", unit="subword", lowercase=True, size=60)
# Characters of one, two and three bytes.
TEXTS = [
    "Der Mann geht über die Straße.",
    "Die Männer gehen über die Straßen",
    "Ein Mann über dem Mann: für 3 €!",
    "die Frau, die Frauen",
    "für die Männer",
] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("assets")
    CONFIG.learn([tf.constant(TEXTS[:7]), tf.constant(TEXTS[7:])], folder)
    return folder


@pytest.fixture(scope="module")
def frontend(folder):
    return CONFIG.frontend(folder)


def parts(frontend, text):
    [row] = frontend.encode(tf.constant([text])).to_list()
    return [frontend.symbols[number] for number in row]


def test_a_text_is_cut_as_sentencepiece_cuts_it(frontend, tmp_path):
    (tmp_path / "texts").write_text("".join(f"{text.lower()}\n" for text in TEXTS))
    sentencepiece.SentencePieceTrainer.train(
        input=str(tmp_path / "texts"),
        model_prefix=str(tmp_path / "model"),
        vocab_size=CONFIG.size,
        hard_vocab_limit=False,
        character_coverage=1.0,
        normalization_rule_name="identity",
        minloglevel=2,
    )
    processor = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "model.model"))
    for text in [*TEXTS[:5], "Straßenmann  heute", "übergehen!"]:
        assert parts(frontend, text) == processor.encode(text.lower(), out_type=str)
    assert any(len(part) > 3 for part in frontend.symbols[1:])
    assert frontend.size <= CONFIG.size


@pytest.mark.parametrize("word", ["abab", "aabba", "bbbbb", "a"])
def test_of_all_ways_to_cut_a_word_the_likeliest_is_taken(tmp_path, word):
    scores = {"▁": -2.0, "a": -2.1, "b": -2.2, "▁a": -3.0, "ab": -3.1, "ba": -3.2, "bb": -4.9}
    scores |= {"aba": -6.5, "bba": -6.0, "▁ab": -5.4, "bbb": -6.7}
    write_vocabulary(scores, CONFIG, tmp_path)
    np.savetxt(scores_path(tmp_path, CONFIG), list(scores.values()))
    characters = f"▁{word}"
    ways = []
    for cuts in itertools.product([False, True], repeat=len(word)):
        text = "".join("|" * cut + c for cut, c in zip([False, *cuts], characters, strict=True))
        way = text.split("|")
        if all(part in scores for part in way):
            ways.append((sum(map(scores.get, way)), way))
    assert parts(SubwordFrontend(CONFIG, tmp_path), word) == max(ways)[1]


def test_decoding_gives_back_the_text_in_its_letter_case(frontend):
    numbers = frontend.encode(tf.constant(TEXTS[:5])).to_tensor()
    decoded = [text.decode() for text in frontend.decode(numbers).numpy()]
    assert decoded == [text.lower() for text in TEXTS[:5]]


def test_texts_in_a_batch_are_cut_as_they_are_alone(frontend):
    texts = ["", *TEXTS[:5], "   ", "x"]
    together = frontend.encode(tf.constant(texts)).to_list()
    assert together == [frontend.encode(tf.constant([text])).to_list()[0] for text in texts]
    assert together[0] == together[6] == together[7] == []
    assert frontend.encode(tf.zeros([0], tf.string)).to_list() == []


def test_what_training_did_not_have_is_left_out_and_counted(frontend):
    assert parts(frontend, "die x Frau🙂") == parts(frontend, "die Frau")
    assert frontend.unknown(tf.constant(["die x Frau🙂", ""])).numpy().tolist() == [2, 9]


def test_composed_and_decomposed_characters_are_the_same(frontend):
    assert parts(frontend, "Ma\N{COMBINING DIAERESIS}nner") == parts(frontend, "Männer")


def test_words_are_counted_however_they_are_cut(frontend):
    texts = tf.constant(["", "die Frauen", " für  die Straßen "])
    assert frontend.words(frontend.encode(texts)).numpy().tolist() == [0, 2, 3]


@pytest.mark.parametrize(("unit", "streams"), [("character", True), ("subword", False)])
def test_parts_of_words_are_not_streamed(tmp_path, unit, streams):
    config = Transcription(input=Text("text"), output=replace(CONFIG, unit=unit))
    config.prepare([{"text": tf.constant(TEXTS), "de": tf.constant(TEXTS)}], tmp_path)
    sizes = dict.fromkeys(("embedding_units", "encoder_units", "predictor_units", "joint_units"), 3)
    task = config.build(TransducerConfig(encoder="causal", **sizes), tmp_path)
    assert ("stream_step" in task.signatures()) == streams


def test_a_task_that_takes_no_parts_of_words_refuses_them(tmp_path):
    with pytest.raises(ValueError, match=r"must be 'character' or 'token'.*Received: 'subword'"):
        build_vocabulary([tf.constant(TEXTS)], CONFIG, tmp_path)


def test_without_sentencepiece_it_is_said_how_to_install_it(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'transduce\[translation\]'"):
        CONFIG.learn([tf.constant(TEXTS)], tmp_path)
