"""Segmentation of images: classes of pixels, their measures, images of different sizes."""

from collections import Counter

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.cnn import CNNConfig
from keras_models.configs.image import Augmentation, Image
from keras_models.configs.segmentation import Segmentation
from keras_models.tasks.segmenter import OUTSIDE

CLASSES = ("nothing", "dog", "cat")


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    image = Image(height=9, width=7, augmentation=Augmentation(rotation=40.0, shift=0.2))
    config = Segmentation(input=image, classes=CLASSES)
    folder = tmp_path_factory.mktemp("task")
    config.prepare([], folder)
    task = config.build(CNNConfig(channels=8, stages=1, blocks=1), folder)
    generator = np.random.default_rng(1)
    for variable in task.model.variables:
        variable.assign(generator.normal(size=variable.shape))
    return task


def _file(seed, *shape):
    return tf.io.encode_png(np.random.default_rng(seed).integers(0, 256, shape, np.uint8)).numpy()


def _records(masks):
    files = [_file(n, 9, 7, 1) for n in range(len(masks))]
    return {"image": tf.constant(files), "mask": tf.constant(masks)}


def _masks(seed, count, classes=3):
    return np.random.default_rng(seed).integers(0, classes, (count, 9, 7, 1), np.uint8)


def test_a_loss_is_the_mean_over_pixels(task):
    batch = task.features(_records(_masks(0, 2)))
    scores = task.model(*task.frontends["image"].inputs(batch)).numpy()
    likelihoods = scores - np.log(np.exp(scores).sum(-1, keepdims=True))
    expected = [
        -np.mean([row[place][mask[place][0]] for place in np.ndindex(9, 7)])
        for row, mask in zip(likelihoods, _masks(0, 2), strict=True)
    ]
    np.testing.assert_allclose(task.losses(batch), expected, rtol=1e-4)


def test_classes_are_smoothed_as_asked(tmp_path):
    losses = []
    for smoothing in (0.0, 0.25):
        image = Image(height=9, width=7)
        config = Segmentation(input=image, classes=CLASSES, label_smoothing=smoothing)
        config.prepare([], tmp_path)
        keras.utils.set_random_seed(1)
        task = config.build(CNNConfig(channels=8, stages=1, blocks=1), tmp_path)
        batch = task.features(_records(_masks(0, 2)))
        losses.append(task.losses(batch).numpy())
    scores = tf.nn.log_softmax(task.model(*task.frontends["image"].inputs(batch)))
    uniform = -np.mean(scores, axis=(1, 2, 3))
    np.testing.assert_allclose(losses[1], 0.75 * losses[0] + 0.25 * uniform, rtol=1e-4)


def test_the_names_of_classes_are_an_asset(task):
    assert task.frontends["mask"].classes == CLASSES


def test_a_mask_of_an_unknown_class_cannot_be_learnt_from(task):
    masks = _masks(0, 3)
    masks[1, 8, 6] = len(CLASSES)
    features = task.features(_records(masks))
    assert task.feasible(features).numpy().tolist() == [True, False, True]


def test_an_image_among_larger_ones_is_answered_as_it_is_alone(task):
    sizes = ((12, 5), (9, 7), (4, 20))
    files = [_file(n, *size, 1) for n, size in enumerate(sizes)]
    serve = task.signatures()["serving_default"]
    together = serve(tf.constant(files))["mask"].numpy()
    assert together.shape == (3, 12, 20)
    assert len(np.unique(together)) > 2
    for answer, file, (height, width) in zip(together, files, sizes, strict=True):
        alone = serve(tf.constant([file]))["mask"].numpy()
        np.testing.assert_array_equal(answer[:height, :width], alone[0])
        assert np.all(answer[height:] == OUTSIDE)
        assert np.all(answer[:, width:] == OUTSIDE)


def test_pixels_are_answered_as_their_file(task):
    pixels = np.random.default_rng(3).integers(0, 256, (2, 6, 8, 1), np.uint8)
    files = [tf.io.encode_png(each).numpy() for each in pixels]
    signatures = task.signatures()
    np.testing.assert_array_equal(
        signatures["pixels"](tf.constant(pixels))["mask"],
        signatures["serving_default"](tf.constant(files))["mask"],
    )


def test_a_mask_is_changed_for_training_as_its_image(task):
    masks = np.zeros([20, 9, 7, 1], np.uint8)
    masks[:, 2:6, 2:5] = 1
    batch = {"image": tf.constant(masks * 255), "mask": tf.constant(masks)}
    changed = task.augmented(batch, tf.constant([3, 4]))
    assert not np.array_equal(changed["mask"], masks)
    assert np.mean((changed["image"].numpy() > 127) == (changed["mask"].numpy() == 1)) > 0.97


def test_measures_count_the_pixels_of_all_images(task):
    references, answers = _masks(5, 4, 2), _masks(6, 4)[..., 0]
    found = task.measure(list(answers), [[each] for each in references])
    truth = references[..., 0]
    unions = [((truth == n) | (answers == n)).sum() for n in range(3)]
    meets = [((truth == n) & (answers == n)).sum() for n in range(3)]
    assert found["mean_iou"] == pytest.approx(np.mean(np.divide(meets, unions)))
    assert found["pixel_accuracy"] == pytest.approx(np.mean(truth == answers))
    assert set(task.metrics) == set(found) == task.higher_is_better
    expected = Counter(
        (CLASSES[a], CLASSES[b]) for a, b in zip(truth.flat, answers.flat, strict=True) if a != b
    )
    assert task.confusions(list(answers), [[each] for each in references]) == expected


def test_a_class_that_is_nowhere_does_not_count(task):
    mask = np.zeros([9, 7, 1], np.uint8)
    assert task.measure([mask[..., 0]], [[mask]])["mean_iou"] == 1.0


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask": "image"}, "must differ"),
        ({"classes": ("one",)}, "2 to 256 different names"),
        ({"classes": ("one", "one")}, "2 to 256 different names"),
        ({"input": Image(resize=True)}, "`input.resize` must be off"),
    ],
)
def test_what_does_not_fit_together_is_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Segmentation(**{"input": Image(), "classes": CLASSES, **fields})
