"""Classification of images: the classes, the measures, and the ways in."""

from collections import Counter

import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.classification import Classification
from keras_models.configs.cnn import CNNConfig
from keras_models.configs.image import Augmentation, Image
from keras_models.frontends.label import LabelFrontend, write_classes

NAMES = ["ship", "cat", "ünder", "cat"]


def _records(names=NAMES):
    pixels = np.random.default_rng(0).integers(0, 256, (len(names), 8, 6, 1), np.uint8)
    files = [tf.io.encode_png(image).numpy() for image in pixels]
    return {"image": tf.constant(files), "label": tf.constant(names)}, pixels


def _task(folder, **fields):
    image = Image(height=8, width=6, augmentation=Augmentation(shift=0.3))
    config = Classification(input=image, **fields)
    config.prepare([_records()[0]], folder)
    task = config.build(CNNConfig(channels=8, stages=1, blocks=1), folder)
    generator = np.random.default_rng(1)
    for variable in task.model.variables:
        variable.assign(generator.normal(size=variable.shape))
    return task


@pytest.fixture
def task(tmp_path):
    return _task(tmp_path)


def test_classes_are_numbered_in_the_order_of_their_names(task, tmp_path):
    assert (tmp_path / "label.txt").read_text(encoding="utf-8") == "cat\nship\nünder\n"
    assert task.features(_records()[0])["label"].numpy().tolist() == [1, 0, 2, 0]
    frontend = LabelFrontend("label", tmp_path)
    assert [name.decode() for name in frontend.decode([2, 0]).numpy()] == ["ünder", "cat"]


@pytest.mark.parametrize("names", [["one", "one"], ["one", ""], ["one", "t\nwo"]])
def test_classes_that_cannot_be_told_apart_are_refused(names, tmp_path):
    with pytest.raises(ValueError, match="two classes at least"):
        write_classes([tf.constant(names)], "label", tmp_path)


def test_an_example_of_an_unknown_class_cannot_be_learnt_from(task):
    features = task.features(_records(["cat", "dog", "ship"])[0])
    assert task.feasible(features).numpy().tolist() == [True, False, True]


def test_files_pixels_and_examples_have_the_same_answers(task):
    records, pixels = _records()
    signatures = task.signatures()
    answers = signatures["serving_default"](records["image"])
    of_pixels = signatures["pixels"](tf.constant(pixels))
    assert answers["label"].numpy().tolist() == of_pixels["label"].numpy().tolist()
    np.testing.assert_allclose(answers["scores"], of_pixels["scores"], rtol=1e-5, atol=1e-6)
    examples = [_example(file) for file in records["image"].numpy()]
    classified = signatures["classify"](tf.constant(examples))
    np.testing.assert_allclose(answers["scores"], classified["scores"], rtol=1e-5, atol=1e-6)
    names = [[name.decode() for name in row] for row in classified["classes"].numpy()]
    assert names == [["cat", "ship", "ünder"]] * len(NAMES)
    best = np.argmax(answers["scores"], axis=1)
    assert [names[0][n] for n in best] == [each.decode() for each in answers["label"].numpy()]
    np.testing.assert_allclose(np.sum(answers["scores"], axis=1), 1, rtol=1e-5)


def _example(file):
    feature = {"image": tf.train.Feature(bytes_list=tf.train.BytesList(value=[file]))}
    return tf.train.Example(features=tf.train.Features(feature=feature)).SerializeToString()


def test_an_image_among_larger_ones_is_answered_as_it_is_alone(task):
    shapes = (20, 31, 3), (8, 6, 1), (33, 9, 1)
    files = [
        tf.io.encode_png(np.random.default_rng(n).integers(0, 256, shape, np.uint8)).numpy()
        for n, shape in enumerate(shapes)
    ]
    serve = task.signatures()["serving_default"]
    together = serve(tf.constant(files))["scores"]
    for n, file in enumerate(files):
        alone = serve(tf.constant([file]))["scores"]
        np.testing.assert_allclose(together[n : n + 1], alone, rtol=1e-4, atol=1e-5)


def test_labels_are_smoothed_as_asked(tmp_path):
    batch, losses = None, []
    for smoothing in (0.0, 0.25):
        task = _task(tmp_path, label_smoothing=smoothing)
        batch = batch or task.features(_records()[0])
        losses.append(task.losses(batch).numpy())
    scores = np.log(task.predict(batch)[1])
    np.testing.assert_allclose(losses[1], 0.75 * losses[0] - 0.25 * scores.mean(1), rtol=1e-3)


def test_only_images_are_changed_for_training(task):
    batch = task.features(_records()[0])
    changed = task.augmented(batch, tf.constant([1, 2]))
    assert changed["label"] is batch["label"]
    assert not np.array_equal(changed["image"], batch["image"])


def test_accuracy_is_the_share_of_right_answers(task):
    answers, references = ["cat", "ship", "cat", "cat"], [["cat"], ["cat"], ["ship"], ["ship"]]
    assert task.measure(answers, references) == {"accuracy": 0.25}
    assert set(task.metrics) == {"accuracy"} == task.higher_is_better
    assert task.confusions(answers, references) == Counter({("ship", "cat"): 2, ("cat", "ship"): 1})


@pytest.mark.parametrize("name", ["image", "scores", "classes"])
def test_a_label_has_a_name_of_its_own(name):
    with pytest.raises(ValueError, match="`label` must be none of"):
        Classification(input=Image(), label=name)
