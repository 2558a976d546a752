"""Data sets of TFDS: one made here, those of ours, and real ones where they are prepared."""

import os
from pathlib import Path

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds

from keras_models.configs.records import Field
from pipelines.datasets.splits import DataError
from pipelines.job import Data
from pipelines.sources import open_source

CLASSES = ["cat", "dog"]
PIXELS = np.arange(7 * 2 * 3 * 3, dtype=np.uint8).reshape(7, 2, 3, 3)
IMAGE = Field("image", "uint8", (None, None, 3))


class Pets(tfds.core.GeneratorBasedBuilder):
    """Seven pictures with classes, nested text, and a series."""

    VERSION = tfds.core.Version("1.0.0")

    def _info(self):
        features = {
            "image": tfds.features.Image(shape=(None, None, 3)),
            "label": tfds.features.ClassLabel(names=CLASSES),
            "translation": tfds.features.Translation(["de", "en"]),
            "series": tfds.features.Tensor(shape=(None,), dtype=np.float32),
            "meta/file": tfds.features.Text(),
        }
        return tfds.core.DatasetInfo(
            builder=self,
            features=tfds.features.FeaturesDict(features),
            disable_shuffling=True,
        )

    def _split_generators(self, manager):
        return {"train": self._generate_examples(5), "holdout": self._generate_examples(2)}

    def _generate_examples(self, count):
        for n in range(count):
            yield (
                n,
                {
                    "image": PIXELS[n],
                    "label": n % 2,
                    "translation": {"de": f"{n} Tiere", "en": f"{n} pets"},
                    "series": np.arange(n, dtype=np.float32),
                    "meta/file": f"{n}.png",
                },
            )


class Unreachable(tfds.core.GeneratorBasedBuilder):
    """Cannot be downloaded."""

    VERSION = tfds.core.Version("1.2.3")
    MANUAL_DOWNLOAD_INSTRUCTIONS = "Ask the authors\n  for the file."

    def _info(self):
        features = tfds.features.FeaturesDict({"text": tfds.features.Text()})
        return tfds.core.DatasetInfo(builder=self, features=features)

    def _split_generators(self, manager):
        raise ConnectionError("the site is gone")

    def _generate_examples(self):
        yield 0, {"text": ""}


SPLITS = {"train": "train[:60%]", "validation": "train[60%:]", "test": "holdout"}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("tfds")


@pytest.fixture
def opened(folder, tmp_path):
    def of(*fields, name="pets", splits=SPLITS, **given):
        data = Data(name=name, dir=folder, splits=splits, **given)
        return open_source(data, fields, tmp_path)

    return of


def column(source, name, split="train"):
    return [each for batch in source.splits[split] for each in batch[name].numpy().tolist()]


def test_features_are_found_by_name_nested_or_not(opened):
    text, other = Field("source"), Field("file")
    source = opened(text, other, features={"source": "translation/en", "file": "meta/file"})
    assert column(source, "source") == [b"0 pets", b"1 pets", b"2 pets"]
    assert column(source, "source", "validation") == [b"3 pets", b"4 pets"]
    assert column(source, "file", "test") == [b"0.png", b"1.png"]
    assert source.description == "pets/1.0.0"


def test_a_class_is_its_number_or_its_name(opened):
    assert column(opened(Field("label", "int32")), "label") == [0, 1, 0]
    assert column(opened(Field("label")), "label") == [b"cat", b"dog", b"cat"]


def test_an_image_is_its_pixels_or_its_file(opened):
    (batch,) = opened(IMAGE).splits["train"]
    assert batch["image"].dtype == tf.uint8
    assert batch["image"].to_list() == PIXELS[:3].tolist()
    (batch,) = opened(Field("image")).splits["train"]
    decoded = [tf.io.decode_png(each).numpy() for each in batch["image"]]
    np.testing.assert_array_equal(decoded, PIXELS[:3])


def test_what_differs_in_length_is_ragged(opened):
    (batch,) = opened(Field("series", "float32", (None,))).splits["train"]
    assert batch["series"].to_list() == [[], [0], [0, 1]]


@pytest.mark.parametrize(
    ("field", "received"),
    [
        (Field("label", "float32", (None,)), r"float32 of shape \[None\].* int64 of shape \[\]"),
        (Field("series", "int32", (None,)), r"int32 of shape \[None\].* float32 of shape \[None\]"),
        (Field("series"), r"string of shape \[\].* float32 of shape \[None\]"),
        (
            Field("image", "uint8", (None, None, 1)),
            r"uint8 of shape \[None, None, 1\].* of shape \[None, None, 3\]",
        ),
    ],
)
def test_a_feature_that_is_no_such_field_is_told_with_both(opened, field, received):
    match = rf"field `{field.name}` must be {received} from '{field.name}' of pets/1.0.0"
    with pytest.raises(DataError, match=match):
        opened(field)


def test_a_feature_that_is_missing_is_told_with_those_there_are(opened):
    features = "image, label, meta/file, series, translation/de, translation/en"
    with pytest.raises(DataError, match=rf"feature 'text'. It has: {features}. .*--data.features"):
        opened(Field("text"))


def test_a_split_that_is_missing_is_told_with_those_there_are(opened):
    with pytest.raises(DataError, match=r"split 'validation'. It has: .*train.*--data.splits"):
        opened(Field("label"), splits={"test": "holdout"})


def test_an_unknown_data_set_is_told_with_the_nearest(opened):
    with pytest.raises(DataError, match=r"no data set 'mnits'. Did you mean .*'mnist'"):
        opened(Field("label"), name="mnits")
    with pytest.raises(DataError, match=r"no data set 'mnist/other': .*[Cc]onfig"):
        opened(Field("label"), name="mnist", config="other")


def test_data_that_cannot_be_downloaded_is_told_with_where_to_put_it(opened, folder):
    with pytest.raises(DataError) as caught:
        opened(Field("text"), name="unreachable")
    message = str(caught.value)
    assert f"unreachable/1.2.3 is not in {folder}/unreachable/1.2.3" in message
    assert "ConnectionError: the site is gone" in message
    assert "--data.dir or TFDS_DATA_DIR which folder holds unreachable/1.2.3." in message
    assert "Ask the authors for the file." in message


# Real data, where it is.


@pytest.fixture
def real(tmp_path):
    """Returns the source of a data set that is prepared in TFDS_DATA_DIR."""

    def of(name, *fields, **given):
        if not Path(os.environ.get("TFDS_DATA_DIR", "/nowhere"), name).is_dir():
            pytest.skip(f"TFDS_DATA_DIR names no folder with a prepared {name}")
        return open_source(Data(name=name, **given), fields, tmp_path)

    return of


def test_mnist_has_images_and_classes(real):
    splits = {"train": "train[:99%]", "validation": "train[99%:]"}
    fields = Field("image", "uint8", (28, 28, 1)), Field("label")
    source = real("mnist", *fields, splits=splits)
    batch = next(iter(source.splits["validation"]))
    assert batch["image"].shape[1:] == (28, 28, 1)
    assert set(batch["label"].numpy()) == {str(n).encode() for n in range(10)}


def test_spoken_digit_has_sounds_of_many_lengths(real):
    splits = {"train": "train[:98%]", "validation": "train[98%:99%]", "test": "train[99%:]"}
    fields = Field("audio", "float32", (None,)), Field("label", "int32")
    batch = next(iter(real("spoken_digit", *fields, splits=splits).splits["test"]))
    lengths = batch["audio"].row_lengths().numpy()
    assert len(lengths) == 30
    assert len(set(lengths)) > 20


def test_tiny_shakespeare_is_one_text_a_split(real):
    source = real("tiny_shakespeare", Field("text"))
    (text,) = column(source, "text", "test")
    assert text.count(b"\n") > 1000
