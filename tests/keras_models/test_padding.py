import numpy as np
import pytest
import tensorflow as tf

from keras_models.frontends.padding import LENGTHS, pad

ROWS = [[3, 1, 4], [], [1, 5, 9, 2, 6], [5]]


def test_sequences_are_filled_with_zeros_and_joined_by_their_lengths():
    dense = pad({"text": tf.ragged.constant(ROWS, dtype=tf.int32)})
    assert dense.keys() == {"text", "text" + LENGTHS}
    assert dense["text"].numpy().tolist() == [
        [3, 1, 4, 0, 0],
        [0, 0, 0, 0, 0],
        [1, 5, 9, 2, 6],
        [5, 0, 0, 0, 0],
    ]
    assert dense["text_lengths"].numpy().tolist() == [3, 0, 5, 1]
    assert dense["text"].dtype == dense["text_lengths"].dtype == tf.int32


def test_a_width_is_what_its_sequence_is_padded_to_and_no_other():
    ragged = tf.ragged.constant(ROWS, dtype=tf.int32)
    dense = pad({"text": ragged, "sounds": ragged}, {"text": tf.constant(7)})
    assert dense["text"].shape == (4, 7)
    assert dense["sounds"].shape == (4, 5)
    assert dense["text_lengths"].numpy().tolist() == [3, 0, 5, 1]


@pytest.mark.parametrize("inner", [(2,), (2, 3)])
def test_only_time_is_padded_of_sequences_of_arrays(inner):
    values = np.random.default_rng(0).normal(size=(9, *inner)).astype(np.float32)
    ragged = tf.RaggedTensor.from_row_lengths(values, [3, 0, 5, 1])
    dense = pad({"audio": ragged}, {"audio": tf.constant(6)})
    assert dense["audio"].shape == (4, 6, *inner)
    for row, length, expected in zip(dense["audio"], [3, 0, 5, 1], ragged, strict=True):
        np.testing.assert_array_equal(row[:length], expected)
        assert not row[length:].numpy().any()


def test_what_is_no_sequence_is_passed_on():
    label = tf.constant([2, 7])
    dense = pad({"label": label})
    assert dense.keys() == {"label"}
    assert dense["label"] is label


def test_there_is_a_step_even_if_every_example_is_empty():
    none = tf.RaggedTensor.from_row_lengths(tf.zeros([0], tf.int32), tf.zeros([0], tf.int64))
    empty = tf.RaggedTensor.from_row_lengths(tf.zeros([0], tf.int32), tf.constant([0, 0, 0]))
    assert pad({"text": none})["text"].shape == (0, 1)
    assert pad({"text": none}, {"text": tf.constant(4)})["text"].shape == (0, 4)
    dense = pad({"text": empty})
    assert dense["text"].numpy().tolist() == [[0], [0], [0]]
    assert dense["text_lengths"].numpy().tolist() == [0, 0, 0]


def test_eager_and_tf_data_agree():
    features = {"text": tf.ragged.constant(ROWS, dtype=tf.int32)}
    data = tf.data.Dataset.from_tensors(features)
    for widths in (None, {"text": tf.constant(6)}):
        (dense,) = data.map(lambda batch, widths=widths: pad(batch, widths))
        for name, expected in pad(features, widths).items():
            np.testing.assert_array_equal(dense[name], expected)
