"""A number for a series: its unit, its errors, its losses."""

import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.lstm import LSTMConfig
from keras_models.configs.regression import Regression
from keras_models.configs.series import Series

RECORDS = {
    "series": tf.ragged.constant([[1.0, 2.0], [3.0], [4.0, 5.0, 6.0]]),
    "value": tf.constant([100.0, 200.0, 600.0]),
}


@pytest.fixture
def build(tmp_path):
    """Returns a task that learnt of these records."""

    def task(**fields):
        config = Regression(input=Series(), **fields)
        config.prepare([RECORDS], tmp_path)
        return config.build(LSTMConfig(units=3, layers=1), tmp_path)

    return task


def _constant(task, estimate):
    """Lets the model estimate the same whatever it reads, in deviations from the mean."""
    *_, kernel, bias = task.model.variables
    kernel.assign(tf.zeros_like(kernel))
    bias.assign([estimate])


def _batch(task):
    features = task.features(RECORDS)
    return {
        "series": features["series"].to_tensor(),
        "series_lengths": tf.cast(features["series"].row_lengths(), tf.int32),
        "value": features["value"],
    }


def test_an_answer_is_in_the_unit_of_the_values(build):
    task = build()
    _constant(task, 2.0)
    inputs = {"series": tf.ones([2, 3]), "series_lengths": tf.constant([3, 1])}
    found = task.answer(inputs)["value"]
    assert found.dtype == tf.float32
    np.testing.assert_allclose(found, 2 * [300 + 2 * np.std([100, 200, 600])], rtol=1e-6)


@pytest.mark.parametrize(("loss", "power"), [("squared", 2), ("absolute", 1)])
def test_a_loss_is_of_the_error_in_deviations(build, loss, power):
    task = build(loss=loss)
    _constant(task, 0.5)
    values = np.array([100, 200, 600])
    errors = np.abs(0.5 - (values - 300) / values.std())
    np.testing.assert_allclose(task.losses(_batch(task)), errors**power, rtol=1e-5)


def test_errors_are_measured_in_the_unit_of_the_values(build):
    numbers = build().measure([1.0, 5.0], [[4.0], [1.0]])
    assert numbers == {
        "mean_absolute_error": 3.5,
        "root_mean_squared_error": pytest.approx(np.sqrt(12.5)),
    }
    assert build().metrics == tuple(numbers)
    assert not build().higher_is_better


def test_what_has_a_gap_or_no_finite_value_is_not_learnt_from(build):
    nan = float("nan")
    records = {
        "series": tf.ragged.constant([[1.0], [1.0, nan], [], [2.0]]),
        "value": tf.constant([1.0, 1.0, 1.0, nan]),
    }
    task = build()
    assert task.feasible(task.features(records)).numpy().tolist() == [True, False, False, False]


def test_the_value_has_a_name_of_its_own():
    with pytest.raises(ValueError, match="`value` must be another name"):
        Regression(input=Series(), value="series")
