"""A task small enough to learn within a second, and words for it: `abc` is said `ABC`."""

import itertools
import random
import subprocess
from pathlib import Path

import keras
import pytest
import tensorflow as tf
from tensorflow.tsl.profiler.protobuf import xplane_pb2

from keras_models.frontends.padding import LENGTHS
from keras_models.layers.dropout import dropout
from keras_models.metrics import confusions, error_rates
from keras_models.tasks.task import Task

ALPHABET = "abcde"


class Letters(keras.layers.Layer):
    """Scores the sounds of each letter by itself. A layer is in a list, as a stack's layers are."""

    def __init__(self, units: int, rate: float):
        super().__init__()
        self._rate = rate
        self._embedding = keras.layers.Embedding(1 + len(ALPHABET), units)
        self._stack = [keras.layers.Dense(1 + len(ALPHABET))]
        self._embedding.build()
        self._stack[0].build((None, units))
        self.built = True

    def call(self, letters, dropout_seed=None):
        return self._stack[0](dropout(self._embedding(letters), self._rate, dropout_seed))


class Speller(Task):
    """Says a word letter by letter. A word has a letter at least, and no more sounds than letters.

    Args:
        units: Width of the vectors that stand for letters.
        rate: Share of activations dropped in training.
    """

    many_references = True

    def __init__(self, units: int = 7, rate: float = 0.3):
        super().__init__()
        self.frontends = {}
        self.model = Letters(units, rate)

    def features(self, records):
        return {"text": _numbers(records["text"], "a"), "sound": _numbers(records["sound"], "A")}

    def feasible(self, features):
        letters, sounds = (features[name].row_lengths() for name in ("text", "sound"))
        return (letters > 0) & (sounds <= letters)

    def refuses(self, records):
        return tf.zeros_like(records["text"], tf.bool)

    def losses(self, batch, dropout_seed=None):
        width = tf.minimum(tf.shape(batch["text"])[1], tf.shape(batch["sound"])[1])
        sounds, letters = batch["sound"][:, :width], batch["text"][:, :width]
        scores = tf.cast(self.model(letters, dropout_seed), tf.float32)  # [B, U, V]
        losses = tf.nn.sparse_softmax_cross_entropy_with_logits(sounds, scores)
        said = tf.sequence_mask(batch["sound" + LENGTHS], width, tf.float32)
        return tf.reduce_sum(losses * said, axis=1)

    def predict(self, batch):
        return (tf.argmax(self.model(batch["text"])[..., 1:], -1, tf.int32),)

    def answer(self, inputs):
        letters = _numbers(inputs["text"], "a")
        (sounds,) = self.predict({"text": letters.flat_values})
        sounds += ord("A")
        return {"sound": tf.strings.unicode_encode(letters.with_flat_values(sounds), "UTF-8")}

    @property
    def input_signature(self):
        return {"text": tf.TensorSpec([None], tf.string, "text")}

    @property
    def output_name(self):
        return "sound"

    @property
    def metrics(self):
        return ("sound_error_rate", "word_error_rate")

    def measure(self, answers, references):
        rates = error_rates(*_spaced(answers, references))
        values = (rates.token_error_rate, rates.sequence_error_rate)
        return dict(zip(self.metrics, values, strict=True))

    def confusions(self, answers, references):
        return confusions(*_spaced(answers, references))


def _spaced(answers, references):
    spaced = [[" ".join(reference) for reference in accepted] for accepted in references]
    return [" ".join(answer) for answer in answers], spaced


def _numbers(text: tf.Tensor, first: str) -> tf.RaggedTensor:
    return tf.strings.unicode_decode(text, "UTF-8") - ord(first) + 1


@pytest.fixture(scope="session")
def profiled():
    """Returns the steps that calls began with which are in the profile of a run's folder."""

    def steps(folder: Path) -> list[int]:
        (path,) = folder.glob("events/plugins/profile/*/*.xplane.pb")
        return sorted(
            stat.int64_value
            for plane in xplane_pb2.XSpace.FromString(path.read_bytes()).planes
            for line in plane.lines
            for event in line.events
            if plane.event_metadata[event.metadata_id].name == "train"
            for stat in event.stats
            if plane.stat_metadata[stat.metadata_id].name == "step_num"
        )

    return steps


@pytest.fixture(scope="session")
def speller() -> type[Speller]:
    """The task."""
    return Speller


@pytest.fixture(scope="session")
def words():
    """Returns distinct words of one to four letters, long and short ones mixed."""

    def some(count: int) -> list[str]:
        lengths = range(1, 5)
        every = ["".join(w) for n in lengths for w in itertools.product(ALPHABET, repeat=n)]
        return random.Random(3).sample(every, count)

    return some


@pytest.fixture(scope="session")
def records():
    """Returns raw records of (text, sound), some together and kept in memory."""

    def of(pairs: list[tuple[str, str]], together: int = 6) -> tf.data.Dataset:
        texts, sounds = zip(*pairs, strict=True)
        columns = {"text": list(texts), "sound": list(sounds)}
        return tf.data.Dataset.from_tensor_slices(columns).batch(together).cache()

    return of


@pytest.fixture(scope="session")
def read_until():
    """Returns what a process says on its standard error up to a line that begins so."""

    def read(process: subprocess.Popen, beginning: str) -> str:
        told = []
        for line in process.stderr:
            told.append(line)
            if line.startswith(beginning):
                return "".join(told)
        raise AssertionError("".join(told))

    return read
