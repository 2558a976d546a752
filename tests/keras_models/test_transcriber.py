"""What is served of a text beside its answer: the best answers, their tokens and frames."""

import dataclasses

import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.transcription import Text, Transcription
from keras_models.configs.transducer import TransducerConfig

TEXTS = ["abcde", "b", "", "ca?d", "eeaab"]
SIZES = {
    "embedding_units": 5,
    "encoder_units": 4,
    "encoder_layers": 1,
    "predictor_units": 3,
    "joint_units": 6,
}


@pytest.fixture(scope="module")
def build(tmp_path_factory):
    """Returns a task of random weights, always the same, with some other fields of its model."""
    config = Transcription(input=Text("text"), output=Text("sound", unit="token"))
    folder = tmp_path_factory.mktemp("assets")
    records = {"text": tf.constant(["abcde"]), "sound": tf.constant(["A B C D"])}
    config.prepare([records], folder)

    def task(**fields):
        built = config.build(TransducerConfig(**SIZES, **fields), folder)
        random = np.random.default_rng(3)
        for variable in built.model.variables:
            variable.assign(random.normal(scale=1.5, size=variable.shape))
        return built

    return task


def _served(task, signature, texts=TEXTS):
    outputs = task.signatures()[signature](tf.constant(texts))
    return {name: value.numpy() for name, value in outputs.items()}


def test_the_best_of_all_is_the_answer_of_a_beam_as_wide(build):
    task = build(beam=6, n_best=4)
    answer, best = _served(task, "serving_default"), _served(task, "n_best")
    assert best["sound"].shape == best["log_probability"].shape == (len(TEXTS), 4)
    np.testing.assert_array_equal(best["sound"][:, 0], answer["sound"])
    np.testing.assert_allclose(best["log_probability"][:, 0], answer["log_probability"], rtol=1e-5)
    assert (np.diff(best["log_probability"][[0, 1, 3, 4]]) <= 0).all()


def test_no_two_answers_to_a_text_are_the_same(build):
    best = _served(build(n_best=5), "n_best")
    for texts, scores in zip(best["sound"], best["log_probability"], strict=True):
        present = texts[np.isfinite(scores)]
        assert len(set(present)) == len(present)


@pytest.mark.parametrize("search", ["frame", "alignment", "adaptive"])
def test_a_wide_beam_finds_what_is_likelier_than_the_greedy_answer(build, search):
    greedy = _served(build(), "serving_default")
    beam = _served(build(beam=32, search=search), "serving_default")
    assert (beam["log_probability"] >= greedy["log_probability"] - 1e-5).all()
    assert (beam["sound"] != greedy["sound"]).any()


@pytest.mark.parametrize("beam", [1, 3])
def test_timestamps_are_of_the_tokens_of_the_answer(build, beam):
    task = build(beam=beam)
    answer, stamped = _served(task, "serving_default"), _served(task, "timestamps")
    for name in answer:
        np.testing.assert_array_equal(stamped[name], answer[name])
    symbols = [5, 1, 0, 3, 5]  # that of which training knew nothing is not counted
    for row, count in enumerate(symbols):
        tokens = answer["sound"][row].split()
        frames = stamped["frames"][row]
        assert list(stamped["tokens"][row][: len(tokens)]) == tokens
        assert set(stamped["tokens"][row][len(tokens) :]) <= {b""}
        assert (np.diff(frames[: len(tokens)]) >= 0).all()
        assert (frames < max(count, 1)).all()
        assert not frames[len(tokens) :].any()


def test_the_timestamps_of_the_best_are_those_of_each(build):
    best = _served(build(n_best=3), "n_best")
    assert best["tokens"].shape == best["frames"].shape == (len(TEXTS), 3, best["frames"].shape[2])
    joined = [[b" ".join(t for t in tokens if t) for tokens in row] for row in best["tokens"]]
    np.testing.assert_array_equal(joined, best["sound"])


def test_a_text_without_symbols_has_one_answer_the_empty_one(build):
    best = _served(build(n_best=3), "n_best", [""])
    assert best["sound"].tolist() == [[b"", b"", b""]]
    np.testing.assert_array_equal(best["log_probability"], [[0.0, -np.inf, -np.inf]])


def test_an_output_has_a_name_of_its_own():
    with pytest.raises(
        ValueError, match="must be none of log_probability, tokens, frames, attention"
    ):
        Transcription(input=Text("text"), output=Text("tokens"))


def test_the_search_is_no_part_of_the_weights(build):
    shapes = [[v.shape for v in build(**f).model.variables] for f in ({}, {"beam": 4})]
    assert shapes[0] == shapes[1]
    assert dataclasses.asdict(TransducerConfig())["beam"] == 1
