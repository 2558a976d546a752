"""The models of `benchmarks.serving`: `python -m benchmarks.serving_models FOLDER`.

Their weights are random, from one seed: what is measured is not what they know.
"""

import sys
import tempfile
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

from keras_models.configs.transcription import Text, Transcription
from keras_models.configs.transducer import TransducerConfig
from serving.export import export

_LETTERS = "abcdefghijklmnopqrstuvwxyz'"
_PHONEMES = " ".join(f"P{number}" for number in range(39))


class Cnn(tf.Module):
    """Two convolutions over a picture of 28 × 28, and a class."""

    def __init__(self, normal):
        self.weights = [
            tf.Variable(normal(*shape)) for shape in ((3, 3, 1, 8), (3, 3, 8, 16), (784, 10))
        ]

    @tf.function(input_signature=[tf.TensorSpec([None, 28, 28, 1], tf.float32, "x")])
    def __call__(self, x):
        first, second, dense = self.weights
        for kernel in (first, second):
            x = tf.nn.relu(tf.nn.conv2d(x, kernel, 2, "SAME"))
        return {"y": tf.nn.softmax(tf.reshape(x, [-1, 784]) @ dense)}


class Mlp(tf.Module):
    """64 numbers, 128 hidden ones, 10 classes."""

    def __init__(self, normal):
        self.weights = [tf.Variable(normal(*shape)) for shape in ((64, 128), (128, 10))]

    @tf.function(input_signature=[tf.TensorSpec([None, 64], tf.float32, "x")])
    def __call__(self, x):
        hidden, out = self.weights
        return {"y": tf.nn.softmax(tf.nn.relu(x @ hidden) @ out)}


def write(folder):
    """Writes every model as FOLDER/NAME/1."""
    generator = np.random.default_rng(0)

    def normal(*shape):
        return (0.1 * generator.standard_normal(shape)).astype(np.float32)

    for name, kind in (("cnn", Cnn), ("mlp", Mlp)):
        module = kind(normal)
        tf.saved_model.save(module, str(folder / name / "1"), signatures=module.__call__)
    keras.utils.set_random_seed(0)
    with tempfile.TemporaryDirectory() as vocabulary:
        export(_transducer(Path(vocabulary)), folder, "g2p")


def _transducer(vocabulary):
    """Returns the transducer of the job `g2p_transducer --quick`, untrained."""
    task = Transcription(
        input=Text(field="text", unit="character", lowercase=True),
        output=Text(field="pronunciation", unit="token"),
        token="phoneme",
        sequence="word",
    )
    records = {"text": tf.constant([_LETTERS]), "pronunciation": tf.constant([_PHONEMES])}
    task.prepare([records], vocabulary)
    model = TransducerConfig(encoder_units=128, predictor_units=128, joint_units=128)
    return task.build(model, vocabulary)


if __name__ == "__main__":
    write(Path(sys.argv[1]))
