"""Images from files and arrays: their pixels, sizes, chance changes; what is refused."""

import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.image import Augmentation, Image
from keras_models.frontends.image import ImageFrontend

FIELD = "image"


def _pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _png(pixels):
    return tf.io.encode_png(pixels).numpy()


def _jpeg(pixels):
    return tf.io.encode_jpeg(pixels).numpy()


def _served(frontend, *files):
    """Returns the values and sizes that a model takes, by a graph."""
    return frontend.inputs(tf.function(frontend.served)({FIELD: tf.constant(files)}))


def test_a_training_image_is_the_pixels_of_its_file():
    pixels = _pixels(3, 5, 4, 3)
    files = [_png(pixels[0]), _jpeg(pixels[1]), _png(pixels[2])]
    found = ImageFrontend(Image(height=5, width=4, channels=3)).encode(tf.constant(files)).numpy()
    for n in (0, 2):
        np.testing.assert_array_equal(found[n], pixels[n])
    np.testing.assert_array_equal(found[1], tf.io.decode_jpeg(files[1]))


def test_images_of_all_sizes_are_served_together_padded_by_nothing():
    images = [_pixels(5, 4, 1), _pixels(2, 7, 1), _pixels(1, 1, 1)]
    values, sizes = _served(ImageFrontend(Image()), *map(_png, images))
    assert values.shape == (3, 5, 7, 1)
    assert sizes.numpy().tolist() == [[5, 4], [2, 7], [1, 1]]
    for value, image in zip(values.numpy(), images, strict=True):
        height, width, _ = image.shape
        np.testing.assert_allclose(value[:height, :width] * 255, image, atol=1e-4)
        assert not value[height:].any()
        assert not value[:, width:].any()


def test_colours_are_converted_to_those_of_the_model():
    colours, grey = np.full([4, 4, 3], [200, 100, 50], np.uint8), np.full([4, 4, 1], 77, np.uint8)
    luminance = 0.299 * 200 + 0.587 * 100 + 0.114 * 50
    as_grey, _ = _served(ImageFrontend(Image()), _png(colours), _jpeg(colours), _png(grey))
    np.testing.assert_allclose(as_grey[:2] * 255, luminance, atol=4)
    as_colours, _ = _served(ImageFrontend(Image(channels=3)), _png(grey))
    np.testing.assert_allclose(as_colours * 255, 77, atol=1e-4)


def test_with_resize_every_image_is_of_one_size_in_training_and_serving():
    frontend = ImageFrontend(Image(height=3, width=2, resize=True))
    images = [np.full([9, 8, 1], 50, np.uint8), np.full([2, 2, 1], 90, np.uint8)]
    files = tf.constant([_png(image) for image in images])
    served = frontend.served({FIELD: files})
    np.testing.assert_array_equal(served[FIELD], frontend.encode(files))
    np.testing.assert_array_equal(served[FIELD][:, 0, 0, 0], [50, 90])
    assert list(served) == [FIELD]
    _, of_pixels = frontend.forms["pixels"]
    np.testing.assert_array_equal(of_pixels(images[0][np.newaxis])[FIELD], served[FIELD][:1])


def test_a_training_image_of_another_size_is_refused():
    with pytest.raises(tf.errors.InvalidArgumentError, match="8 rows and 6 columns; with resize"):
        ImageFrontend(Image(height=8, width=6)).encode(tf.constant([_png(_pixels(8, 7, 1))]))


BROKEN = {
    "nothing": b"",
    "a text": b"hello",
    "a PNG's beginning": _png(_pixels(9, 9, 1))[:15],
    "half a PNG": _png(_pixels(40, 40, 1))[:600],
    "half a JPEG": _jpeg(_pixels(40, 40, 1))[:100],
    "a PNG that is too large": _png(np.zeros([1, 65, 1], np.uint8)),
    "a JPEG that is too large": _jpeg(np.zeros([65, 1, 1], np.uint8)),
    "a PNG of 2^31 pixels a side": _png(_pixels(9, 9, 1))[:16] + b"\x80\0\0\0" * 2,
}


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_no_image_to_be_served_is_refused(what):
    frontend = ImageFrontend(Image(largest=64))
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"PNG|JPEG"):
        _served(frontend, _png(_pixels(3, 3, 1)), BROKEN[what])


def test_a_refusal_tells_which_image_it_is_about():
    files = [_png(_pixels(3, 3, 1)), _png(np.zeros([2, 65, 1], np.uint8))]
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"1 to 64 rows.*\[\[1 2 65\]\]"):
        _served(ImageFrontend(Image(largest=64)), *files)


@pytest.mark.parametrize("shape", [(2, 65, 1), (0, 5, 1), (8, 8, 3)])
def test_pixels_of_another_form_are_refused(shape):
    sizes = " ".join(map(str, shape))
    spec, of_pixels = ImageFrontend(Image(largest=64)).forms["pixels"]
    serve = tf.function(of_pixels, input_signature=[spec])
    with pytest.raises(tf.errors.InvalidArgumentError, match="1 to 64 rows.*" + sizes):
        serve(np.zeros([3, *shape], np.uint8))


def test_refuses_says_beforehand_what_is_too_large_or_no_image():
    good = [_png(_pixels(64, 1, 1)), _jpeg(_pixels(3, 64, 3))]
    bad = [BROKEN[name] for name in BROKEN if not name.startswith("half")]
    found = ImageFrontend(Image(largest=64)).refuses(tf.constant([*good, *bad]))
    assert found.numpy().tolist() == [False] * len(good) + [True] * len(bad)


def _augmented(seed, pixels=None, interpolation="BILINEAR", **how):
    pixels = tf.constant(_pixels(6, 9, 7, 1) if pixels is None else pixels)
    image = Image(height=9, width=7, augmentation=Augmentation(**how))
    return ImageFrontend(image).augmented(pixels, tf.constant([seed, 1]), interpolation).numpy()


ALL = {"rotation": 30.0, "scale": 0.2, "shear": 0.2, "shift": 0.2, "flip": True}


def test_chance_changes_are_a_function_of_their_seed():
    np.testing.assert_array_equal(_augmented(1, **ALL), _augmented(1, **ALL))
    assert not np.array_equal(_augmented(1, **ALL), _augmented(2, **ALL))
    np.testing.assert_array_equal(_augmented(1), _pixels(6, 9, 7, 1))


@pytest.mark.parametrize("how", ALL)
def test_each_kind_of_change_changes_some_images(how):
    assert not np.array_equal(_augmented(3, **{how: ALL[how]}), _pixels(6, 9, 7, 1))


def test_a_flip_is_a_mirror_image_or_none():
    pixels = _pixels(40, 9, 7, 1)
    changed = _augmented(5, pixels, flip=True)
    pairs = list(zip(changed, pixels, strict=True))
    flipped = [np.array_equal(new, old[:, ::-1]) for new, old in pairs]
    same = [np.array_equal(new, old) for new, old in pairs]
    assert np.all(np.array(flipped) ^ np.array(same))
    assert 10 < sum(flipped) < 30


@pytest.mark.parametrize(
    ("how", "most"), [({"shift": 0.3}, 0.3 * 7), ({"rotation": 20.0}, 3 * np.sin(np.radians(20)))]
)
def test_a_change_moves_a_spot_as_far_as_it_may_and_no_further(how, most):
    """The spot is three rows above the middle; by a turn it goes to the sides."""
    pixels = np.zeros([60, 9, 7, 1], np.uint8)
    pixels[:, 1, 3] = 255
    weights = _augmented(4, pixels, **how)[..., 0].astype(float)
    there = weights.sum((1, 2)) > 150
    weights = weights[there]
    columns = (weights * np.arange(7)).sum((1, 2)) / weights.sum((1, 2)) - 3
    assert np.abs(columns).max() <= most + 0.5
    assert np.abs(columns).max() > 0.5 * most
    assert columns.min() < 0 < columns.max()


def test_the_same_seed_changes_a_mask_as_its_image():
    masks = np.zeros([20, 9, 7, 1], np.uint8)
    masks[:, 2:7, 2:5] = 1
    image = _augmented(6, masks * 255, **ALL)
    mask = _augmented(6, masks, "NEAREST", **ALL)
    assert set(np.unique(mask)) == {0, 1}
    assert np.mean((image > 127) == (mask > 0)) > 0.97


def test_files_are_found_in_examples():
    files = [_png(_pixels(3, 3, 1)), _jpeg(_pixels(4, 4, 1))]
    examples = []
    for file in files:
        feature = tf.train.Feature(bytes_list=tf.train.BytesList(value=[file]))
        features = tf.train.Features(feature={FIELD: feature})
        examples.append(tf.train.Example(features=features).SerializeToString())
    found = ImageFrontend(Image()).parse(tf.constant(examples))
    assert found[FIELD].numpy().tolist() == files
