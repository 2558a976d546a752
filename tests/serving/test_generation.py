"""Texts generated over gRPC: a language model exported, served and asked to go on."""

import json

import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.language_model import LanguageModelConfig
from keras_models.configs.language_modeling import LanguageModeling
from keras_models.configs.transcription import Text
from pipelines import cli
from serving.client import Client, InvalidInput
from serving.export import export
from serving.model_server.server import Server

STOPS = ("symbol", "bernoulli", "length")
PROMPTS = ["ab", "", "gf\ned", "ab"]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    """By its stop, a task of random weights."""
    folder, config = tmp_path_factory.mktemp("assets"), LanguageModeling(Text(), max_length=30)
    config.prepare([{"text": tf.constant(["abcdefg\n"])}], folder)
    tasks = {}
    for stop in STOPS:
        tasks[stop] = config.build(LanguageModelConfig(units=8, stop=stop, longest=20), folder)
        random = np.random.default_rng(5)
        for variable in tasks[stop].model.variables:
            variable.assign(random.normal(scale=0.7, size=variable.shape))
    return tasks


@pytest.fixture(scope="module")
def models(tasks, tmp_path_factory):
    """The models' folder."""
    root = tmp_path_factory.mktemp("models")
    for stop, task in tasks.items():
        export(task, root, stop)
    return root


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "batching"])
def address(request, models, options):
    chosen = options(model_root=str(models), enable_batching=request.param)
    with Server(chosen):
        yield f"localhost:{chosen.port}"


@pytest.fixture
def client(address):
    with Client(address) as client:
        yield client


@pytest.mark.parametrize("stop", STOPS)
def test_texts_are_those_that_the_task_generates(client, tasks, stop):
    given = {
        "temperature": np.float32([1, 0.5, 2, 1]),
        "top_k": np.int32([0, 3, 5, 0]),
        "top_p": np.float32([1, 0.9, 1, 1]),
        "seed": np.int64([1, 2, 3, 4]),
        "max_length": np.int32([30, 5, 30, 30]),
    }
    found = client.predict(stop, {"text": PROMPTS, **given}, signature="generate")
    expected = tasks[stop].generate({"text": tf.constant(PROMPTS), **given})
    assert found["text"].tolist() == [text.decode() for text in expected["text"].numpy()]
    np.testing.assert_array_equal(found["ended"], expected["ended"])
    np.testing.assert_allclose(found["log_probability"], expected["log_probability"], rtol=1e-4)
    assert found["text"][0] != found["text"][3]


@pytest.mark.parametrize("stop", STOPS)
def test_all_but_the_text_may_be_left_out(client, stop):
    given = {"temperature": [1] * 4, "top_k": [0] * 4, "top_p": [1] * 4, "max_length": [30] * 4}
    found = client.predict(stop, {"text": PROMPTS, "seed": [0] * 4, **given}, signature="generate")[
        "text"
    ].tolist()
    for prompt, text in zip(PROMPTS, found, strict=True):
        assert client.predict(stop, [prompt], signature="generate")["text"].tolist() == [text]
        assert text.startswith(prompt)
    assert found[0] == found[3]


def test_the_metadata_says_what_is_taken_where_an_input_is_left_out(client):
    inputs = client.metadata("symbol")["signatures"]["generate"]["inputs"]
    assert {name: info.get("default") for name, info in inputs.items()} == {
        "text": None,
        "temperature": [1.0],
        "top_k": [0],
        "top_p": [1.0],
        "seed": [0],
        "max_length": [30],
    }


def test_what_cannot_be_drawn_by_is_refused(client):
    with pytest.raises(InvalidInput, match="`top_p` must be in"):
        client.predict("symbol", {"text": ["a"], "top_p": [1.5]}, signature="generate")


def test_the_command_line_asks_for_texts_by_a_seed(address, tasks, capsys):
    command = ["query", "symbol", "ab", "--address", address, "--signature", "generate"]
    with pytest.raises(SystemExit, match="0"):
        cli.main([*command, "--json", "--given", "temperature", "0.5", "seed", "7"])
    (line,) = capsys.readouterr().out.splitlines()
    expected = tasks["symbol"].generate(
        {
            "text": tf.constant(["ab"]),
            "temperature": np.float32([0.5]),
            "top_k": np.int32([0]),
            "top_p": np.float32([1]),
            "seed": np.int64([7]),
            "max_length": np.int32([30]),
        }
    )
    assert json.loads(line)["text"] == expected["text"].numpy()[0].decode()
