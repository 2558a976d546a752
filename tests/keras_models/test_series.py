"""Series and numbers: what is learnt of them beforehand, and what is refused."""

import json

import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.classification import Classification
from keras_models.configs.lstm import LSTMConfig
from keras_models.configs.series import Series
from keras_models.frontends.normalization import Normalization, write_statistics

SERIES = [[1.0, 2.0, 6.0], [3.0], [4.0, 8.0]]
PAIRS = [[[1.0, 10.0], [3.0, 10.0]], [[2.0, 10.0]]]
NAN, INFINITE = float("nan"), float("inf")


@pytest.fixture
def frontend(tmp_path):
    """Returns the frontend of series of which these were the training data."""

    def build(series=SERIES, **fields):
        config = Series(**fields)
        inner = config.record.shape[1:]
        ragged = tf.ragged.constant(series, ragged_rank=1, inner_shape=inner)
        config.prepare([{"series": ragged}], tmp_path)
        return config.build(tmp_path)

    return build


def _served(frontend, series, lengths=None):
    series = np.array(series, np.float32)
    lengths = np.full(len(series), series.shape[1]) if lengths is None else np.array(lengths)
    inputs = {"series": tf.constant(series), "series_lengths": tf.constant(lengths, tf.int32)}
    return frontend.served(inputs)


def _example(numbers):
    """Returns a serialized `tf.Example` of a series."""
    feature = tf.train.Feature(float_list=tf.train.FloatList(value=numbers))
    features = tf.train.Features(feature={"series": feature})
    return tf.train.Example(features=features).SerializeToString()


def _in_a_graph(function, *arguments):
    return tf.function(lambda: function(*arguments))()


# Statistics.


@pytest.mark.parametrize("channels", [1, 3])
def test_statistics_are_those_of_all_batches_together(tmp_path, channels):
    batches = [
        scale * np.random.default_rng(n).normal(n, 2, (n + 2, channels)).astype(np.float32)
        for n, scale in enumerate((1.0, 100.0, 0.01))
    ]
    write_statistics(map(tf.constant, batches), channels, "value", tmp_path)
    written = json.loads((tmp_path / "value.json").read_text())
    together = np.concatenate(batches).astype(np.float64)
    np.testing.assert_allclose(written["mean"], together.mean(axis=0), rtol=1e-12)
    np.testing.assert_allclose(written["deviation"], together.std(axis=0), rtol=1e-12)


def test_statistics_are_exact_far_from_zero(tmp_path):
    batches = [np.array([1e7, 1e7 + 1], np.float32), np.array([1e7 + 2], np.float32)]
    write_statistics(map(tf.constant, batches), 1, "value", tmp_path)
    written = json.loads((tmp_path / "value.json").read_text())
    np.testing.assert_allclose(written["deviation"], np.sqrt(2 / 3), rtol=1e-9)


def test_what_is_no_finite_number_is_not_counted(tmp_path):
    batches = [np.array([1.0, NAN], np.float32), np.array([3.0, INFINITE], np.float32)]
    write_statistics(map(tf.constant, batches), 1, "value", tmp_path)
    assert json.loads((tmp_path / "value.json").read_text()) == {"mean": [2.0], "deviation": [1.0]}


@pytest.mark.parametrize("batches", [[], [[5.0, 5.0]], [[NAN]]])
def test_what_never_changes_is_divided_by_one(tmp_path, batches):
    write_statistics((tf.constant(b, tf.float32) for b in batches), 1, "value", tmp_path)
    assert json.loads((tmp_path / "value.json").read_text())["deviation"] == [1.0]


def test_restored_numbers_are_those_that_were_normalized(tmp_path):
    values = tf.constant([3.0, 5.0, 10.0])
    write_statistics([values], 1, "value", tmp_path)
    normalization = Normalization("value", tmp_path)
    normalized = normalization.normalized(values)
    np.testing.assert_allclose([np.mean(normalized), np.std(normalized)], [0, 1], atol=1e-6)
    np.testing.assert_allclose(normalization.restored(normalized), values, rtol=1e-6)


# Series.


def test_each_step_of_each_channel_is_normalized(frontend):
    encoded = frontend(PAIRS, channels=2).encode(tf.constant([[[2.0, 10.0], [4.0, 11.0]]]))
    assert isinstance(encoded, tf.RaggedTensor)
    expected = [[[0.0, 0.0], [2 / np.std([1, 3, 2]), 1.0]]]
    np.testing.assert_allclose(encoded.to_tensor(), expected, rtol=1e-5)


def test_what_is_served_is_what_is_trained_on_whatever_pads_it(frontend):
    built = frontend()
    served = _served(built, [[1, 2, 6], [3, NAN, 7], [4, 8, INFINITE]], [3, 1, 2])
    encoded = built.encode(tf.ragged.constant(SERIES))
    np.testing.assert_array_equal(served["series_lengths"], encoded.row_lengths())
    np.testing.assert_array_equal(served["series"], encoded.to_tensor())


@pytest.mark.parametrize("channels", [1, 2])
def test_examples_are_read_as_the_arrays_they_hold(frontend, channels):
    built = frontend(SERIES if channels == 1 else PAIRS, channels=channels)
    rows = [[1, 2, 3.5, 4], [5, 6]]
    examples = [_example(row) for row in rows]
    inner = built.signature["series"].shape[2:]
    arrays = [np.reshape(row, [-1, *inner]) for row in rows]
    padded = np.zeros((2, len(arrays[0]), *arrays[0].shape[1:]), np.float32)
    for row, array in zip(padded, arrays, strict=True):
        row[: len(array)] = array
    expected = _served(built, padded, [len(array) for array in arrays])
    found = built.served(built.parse(tf.constant(examples)))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.mark.parametrize(
    ("series", "lengths", "message"),
    [
        ([[1, 2], [1, NAN]], None, r"`series` must hold finite numbers.*\[1\]"),
        ([[INFINITE, 2], [1, 2]], None, r"`series` must hold finite numbers.*\[0\]"),
        ([[1, 2], [1, 2]], [2, 0], r"`series` must have 1 to 4 steps.*\[1\] \[0\]"),
        ([[1, 2], [1, 2]], [3, 2], r"`series` must have 1 to 4 steps.*\[0\] \[3\]"),
        ([[1, 2, 3, 4, 5]], None, r"`series` must have 1 to 4 steps.*\[0\] \[5\]"),
        (np.zeros([1, 0]), None, r"`series` must have 1 to 4 steps.*\[0\] \[0\]"),
    ],
)
def test_what_is_no_series_is_refused_with_its_number(frontend, series, lengths, message):
    with pytest.raises(tf.errors.InvalidArgumentError, match=message):
        _in_a_graph(_served, frontend(max_length=4), series, lengths)


def test_series_that_would_be_refused_are_told(frontend):
    built = frontend(max_length=4)
    series = tf.ragged.constant([[1.0], [], [1.0, NAN], [1.0] * 5, [INFINITE], [2.0] * 4])
    assert built.refuses(series).numpy().tolist() == [False, True, True, True, True, False]
    assert "--task.input.max_length, which is 4" in built.refusal
    feasible = built.feasible(built.encode(series))
    assert feasible.numpy().tolist() == [True, False, False, True, False, True]


def test_an_example_of_half_a_step_is_refused(frontend):
    examples = tf.constant([_example([1, 2]), _example([1, 2, 3])])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"2 numbers a step.*\[1\] \[3\]"):
        _in_a_graph(frontend(PAIRS, channels=2).parse, examples)


def test_no_series_are_no_batch(frontend):
    assert _served(frontend(), np.zeros([0, 3]), [])["series"].shape == (0, 1, 1)


# Classes of series.


def test_a_series_of_an_unknown_class_or_with_a_gap_is_not_learnt_from(tmp_path):
    records = {"series": tf.ragged.constant(SERIES), "label": tf.constant(["up", "down", "up"])}
    config = Classification(input=Series())
    config.prepare([records], tmp_path)
    task = config.build(LSTMConfig(units=3), tmp_path)
    asked = {
        "series": tf.ragged.constant([[1.0], [1.0], [NAN], []]),
        "label": tf.constant(["up", "sideways", "up", "down"]),
    }
    assert task.feasible(task.features(asked)).numpy().tolist() == [True, False, False, False]
