"""Convolution, pooling and normalisation beside their definitions, written out in NumPy."""

import itertools

import numpy as np
import pytest
import tensorflow as tf

from keras_models.layers.convolution import (
    Convolution,
    GroupNormalization,
    global_mean,
    pool,
    pooled_size,
    size_mask,
    upsampled,
)

SIZES = {1: (9,), 2: (8, 5), 3: (5, 4, 6)}
CHANNELS, FILTERS, EXAMPLES = 2, 3, 2
FORMS = [
    {"kernel": 3},
    {"kernel": 4},
    {"kernel": 3, "stride": 2},
    {"kernel": 2, "stride": 3},
    {"kernel": 3, "dilation": 2},
    {"kernel": 2, "stride": 2, "dilation": 3},
]


def _normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def _built(sizes, **form):
    layer = Convolution(FILTERS, **form)
    layer.build((None, *sizes, CHANNELS))
    for seed, variable in enumerate(layer.weights):
        variable.assign(_normal(seed, *variable.shape))
    return layer


def _defined(inputs, kernel, bias, own, stride=1, dilation=1, padding="same"):
    """Returns the sum of the definition, place by place; `own` gives a place's tile."""
    rank, size = inputs.ndim - 2, kernel.shape[-3]
    reach = (size - 1) * dilation
    before, after = {"valid": (0, 0), "full": (reach, reach)}.get(
        padding, (reach // 2, reach - reach // 2)
    )
    counts = [max(0, (n + before + after - reach - 1) // stride + 1) for n in inputs.shape[1:-1]]
    outputs = np.zeros([len(inputs), *counts, FILTERS], np.float64)
    for place in itertools.product(*map(range, counts)):
        outputs[(slice(None), *place)] = bias[own(place)]
        for offset in itertools.product(range(size), repeat=rank):
            at = [p * stride + o * dilation - before for p, o in zip(place, offset, strict=True)]
            if all(0 <= i < n for i, n in zip(at, inputs.shape[1:-1], strict=True)):
                seen = inputs[(slice(None), *at)]
                outputs[(slice(None), *place)] += seen @ kernel[(*own(place), *offset)]
    return outputs


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("padding", ["valid", "same", "full"])
@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_convolution_is_the_sum_that_defines_it(rank, padding, form):
    layer = _built(SIZES[rank], padding=padding, **form)
    inputs = _normal(7, EXAMPLES, *SIZES[rank], CHANNELS)
    kernel, bias = (each.numpy() for each in layer.weights)
    steps = {name: value for name, value in form.items() if name != "kernel"}
    expected = _defined(inputs, kernel, bias, lambda place: (), padding=padding, **steps)
    assert layer.sizes(SIZES[rank]) == expected.shape[1:-1]
    np.testing.assert_allclose(layer(inputs), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("form", FORMS[::2], ids=str)
@pytest.mark.parametrize("sharing", ["tiled", "local"])
def test_weights_of_a_place_are_those_of_its_tile_or_its_own(rank, form, sharing):
    layer = _built(SIZES[rank], sharing=sharing, tile=2, **form)
    inputs = _normal(7, EXAMPLES, *SIZES[rank], CHANNELS)
    kernel, bias = (each.numpy() for each in layer.weights)
    tiles = kernel.shape[:rank]
    assert tiles == ((2,) * rank if sharing == "tiled" else layer.sizes(SIZES[rank]))

    def own(place):
        return tuple(p % tile for p, tile in zip(place, tiles, strict=True))

    steps = {name: value for name, value in form.items() if name != "kernel"}
    expected = _defined(inputs, kernel, bias, own, **steps)
    np.testing.assert_allclose(layer(inputs), expected, rtol=1e-4, atol=1e-4)


def test_tiled_weights_that_are_all_the_same_are_shared():
    tiled, shared = (_built(SIZES[2], kernel=3, sharing=each) for each in ("tiled", "shared"))
    for mine, one in zip(tiled.weights, shared.weights, strict=True):
        mine.assign(np.broadcast_to(one.numpy(), mine.shape))
    inputs = _normal(7, EXAMPLES, *SIZES[2], CHANNELS)
    np.testing.assert_allclose(tiled(inputs), shared(inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("sharing", ["shared", "tiled", "local"])
def test_outputs_begin_with_a_variance_of_two_over_that_of_inputs(sharing):
    layer = Convolution(16, 3, sharing=sharing, padding="valid")
    layer.build((None, 12, 12, 8))
    outputs = layer(_normal(3, 40, 12, 12, 8)).numpy()
    assert np.var(outputs) == pytest.approx(2, rel=0.2)


def test_local_weights_need_one_size():
    with pytest.raises(ValueError, match="one size"):
        Convolution(FILTERS, 3, sharing="local").build((None, None, CHANNELS))


def test_a_kernel_that_does_not_fit_has_no_place():
    layer = _built([4], kernel=3, dilation=2, padding="valid")
    assert layer.size(4) == 0
    assert layer(np.zeros([EXAMPLES, 4, CHANNELS], np.float32)).shape == (EXAMPLES, 0, FILTERS)
    np.testing.assert_array_equal(layer.size(tf.constant([3, 4, 5])), [0, 0, 1])


def _some(rank):
    """Returns inputs of a size each, padded with anything."""
    sizes = np.array(
        [[n - i * (1 + axis % 2) for axis, n in enumerate(SIZES[rank])] for i in (0, 1)]
    )
    return _normal(5, 2, *SIZES[rank], 4), sizes


def _own(values, sizes, n):
    return values[(slice(n, n + 1), *(slice(size) for size in sizes[n]))]


@pytest.mark.parametrize("rank", SIZES)
def test_a_mask_is_of_what_is_within_the_size(rank):
    inputs, sizes = _some(rank)
    mask = size_mask(tf.constant(sizes), tf.constant(inputs)).numpy()
    for n, place in itertools.product((0, 1), np.ndindex(*SIZES[rank])):
        assert mask[(n, *place, 0)] == float(np.all(np.array(place) < sizes[n]))


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("window", [2, 3])
@pytest.mark.parametrize("kind", ["max", "mean"])
def test_a_window_is_pooled_as_far_as_it_is_there(rank, window, kind):
    inputs, sizes = _some(rank)
    inputs = tf.constant(inputs)
    pooled = pool(inputs, window, kind, size_mask(tf.constant(sizes), inputs)).numpy()
    whole = pool(inputs, window, kind).numpy()
    assert whole.shape[1:-1] == tuple(pooled_size(n, window) for n in SIZES[rank])
    reduce = np.max if kind == "max" else np.mean
    for found, each in ((pooled, sizes), (whole, np.tile(SIZES[rank], (2, 1)))):
        for n in (0, 1):
            own = _own(inputs.numpy(), each, n)[0]
            for place in np.ndindex(*(pooled_size(size, window) for size in each[n])):
                seen = own[tuple(slice(p * window, (p + 1) * window) for p in place)]
                expected = reduce(seen.reshape(-1, 4), axis=0)
                np.testing.assert_allclose(found[(n, *place)], expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("groups", [1, 2])
def test_groups_of_channels_are_normalised_over_all_places_of_an_example(rank, groups):
    inputs, sizes = _some(rank)
    layer = GroupNormalization(groups)
    layer.build((None, 4))
    for seed, variable in enumerate(layer.weights):
        variable.assign(_normal(seed, 4))
    scale, shift = (each.numpy() for each in layer.weights)
    mask = size_mask(tf.constant(sizes), tf.constant(inputs))
    found, whole = layer(inputs, mask).numpy(), layer(inputs).numpy()
    for n in (0, 1):
        for given, outputs in (
            (_own(inputs, sizes, n), _own(found, sizes, n)),
            (inputs[n : n + 1], whole[n : n + 1]),
        ):
            grouped = given.reshape(-1, groups, 4 // groups)
            mean, variance = grouped.mean((0, 2)), grouped.var((0, 2))
            normal = (grouped - mean[:, None]) / np.sqrt(variance[:, None] + 1e-5)
            expected = normal.reshape(given.shape) * scale + shift
            np.testing.assert_allclose(outputs, expected, rtol=1e-4, atol=1e-4)


def test_channels_are_to_be_shared_out_evenly():
    with pytest.raises(ValueError, match="multiple of the 3 groups"):
        GroupNormalization(3).build((None, 4))


def test_a_global_mean_is_that_of_all_places_that_are_there():
    inputs, sizes = _some(2)
    mask = size_mask(tf.constant(sizes), tf.constant(inputs))
    expected = [_own(inputs, sizes, n).reshape(-1, 4).mean(0) for n in (0, 1)]
    padded = tf.constant(inputs)
    np.testing.assert_allclose(global_mean(padded, mask), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(global_mean(padded), inputs.mean((1, 2)), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("rank", SIZES)
def test_upsampling_repeats_each_place(rank):
    inputs = _normal(5, 2, *SIZES[rank], 4)
    size = [3 * n - 1 for n in SIZES[rank]]
    found = upsampled(tf.constant(inputs), 3, size).numpy()
    assert found.shape[1:-1] == tuple(size)
    for place in np.ndindex(*size):
        source = tuple(p // 3 for p in place)
        np.testing.assert_array_equal(found[(slice(None), *place)], inputs[(slice(None), *source)])
