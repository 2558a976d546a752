"""Streams over gRPC: a transducer that streams, exported, served and asked piece by piece."""

import io
import shutil
import sys
import time

import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.transcription import Text, Transcription
from keras_models.configs.transducer import TransducerConfig
from pipelines import cli
from serving.client import Client, InvalidInput, ModelNotFound, SignatureNotFound
from serving.export import export
from serving.model_server.server import Server

TEXTS = ["bad cafés", "", "e", "decade\u0301 fee", "aaaabbbbccccdddd"]
# By name of the served model: its encoder and search, and how its output is written.
MODELS = {
    "causal": ({"encoder": "causal"}, "token"),
    "chunked": (
        {"encoder": "chunked", "chunk": 2, "lookahead": 3, "beam": 4, "search": "frame"},
        "character",
    ),
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The models' folder."""
    root = tmp_path_factory.mktemp("models")
    for name, (fields, unit) in MODELS.items():
        export(_task(tmp_path_factory.mktemp(name), fields, unit), root, name)
    return root


def _task(folder, fields, unit):
    """Returns a task of a small model without biases, whose answers differ in length and kind."""
    config = Transcription(Text("text", lowercase=True), Text("sound", unit=unit))
    sounds = " ".join("ABCDEFGH") if unit == "token" else "ABCDEFGH é"
    records = {"text": tf.constant(["abcdef é"]), "sound": tf.constant([sounds])}
    config.prepare([records], folder)
    sizes = {"embedding_units": 5, "encoder_units": 4, "predictor_units": 3, "joint_units": 6}
    task = config.build(TransducerConfig(**sizes, **fields, max_symbols_per_frame=3), folder)
    random = np.random.default_rng(5)
    for variable in task.model.variables:
        variable.assign(1.5 * random.normal(size=variable.shape) * (len(variable.shape) > 1))
    return task


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "batching"])
def address(request, models, options):
    chosen = options(model_root=str(models), enable_batching=request.param)
    with Server(chosen):
        yield f"localhost:{chosen.port}"


@pytest.fixture
def client(address):
    with Client(address) as client:
        yield client


def _pieces(size):
    """Returns how all texts look in pieces of so many characters, `[pieces, B]`."""
    longest = max(map(len, TEXTS))
    return [[text[n : n + size] for text in TEXTS] for n in range(0, longest, size)]


def _assert_same(outputs, expected):
    assert outputs.keys() == expected.keys() == {"sound", "log_probability"}
    assert outputs["sound"].tolist() == expected["sound"].tolist()
    np.testing.assert_allclose(
        outputs["log_probability"], expected["log_probability"], rtol=1e-5, atol=1e-5
    )


@pytest.mark.parametrize("model", ["causal", "chunked"])
@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_a_stream_ends_with_the_answers_to_the_whole(client, model, size):
    whole = client.predict(model, TEXTS)
    assert len(set(whole["sound"])) == len(TEXTS)
    *partial, last = client.stream(model, _pieces(size))
    assert [each.final for each in (*partial, last)] == [False] * len(_pieces(size)) + [True]
    _assert_same(last.outputs, whole)
    if model == "chunked":
        return  # a beam may take answers back
    for before, after in zip(partial, [*partial[1:], last], strict=True):
        for one, more in zip(before.outputs["sound"], after.outputs["sound"], strict=True):
            assert more.startswith(one)


@pytest.mark.parametrize("model", ["causal", "chunked"])
def test_answers_come_before_the_input_is_over(client, model):
    *partial, last = client.stream(model, TEXTS[-1])
    lengths = [len(each.outputs["sound"]) for each in partial]
    assert lengths[len(lengths) // 2] > 0
    if model == "causal":
        assert lengths[len(lengths) // 2] < lengths[-1] <= len(last.outputs["sound"])


def test_one_text_has_outputs_without_rows(client):
    whole = client.predict("chunked", TEXTS[3:4])
    *_, last = client.stream("chunked", TEXTS[3])
    assert last.outputs["sound"] == whole["sound"][0]
    assert last.outputs["log_probability"] == pytest.approx(whole["log_probability"][0], rel=1e-5)


def test_a_character_may_come_in_two_pieces(client):
    text = "é e\u0301".encode()
    whole = client.predict("causal", [text])
    *_, last = client.stream("causal", ([text[n : n + 1]] for n in range(len(text))))
    _assert_same(last.outputs, whole)


@pytest.mark.parametrize("model", ["causal", "chunked"])
def test_a_request_may_hold_streams_at_different_places(client, model):
    def ask(signature, **inputs):
        outputs = client.predict(model, inputs, signature=signature)
        return {n: x for n, x in outputs.items() if n.startswith("state_")}, outputs

    whole = client.predict(model, TEXTS[3:])
    ones = np.ones(1, np.int32)
    first, _ = ask("stream_start", batch_size=ones)
    first, _ = ask("stream_step", text=[TEXTS[3][:5]], **first)
    second, _ = ask("stream_start", batch_size=ones)
    both = {name: np.concatenate([first[name], second[name]]) for name in first}
    both, _ = ask("stream_step", text=[TEXTS[3][5:], TEXTS[4][:2]], **both)
    both, _ = ask("stream_step", text=["", TEXTS[4][2:]], **both)
    _, outputs = ask("stream_end", **both)
    _assert_same(outputs, whole)


@pytest.mark.parametrize("model", ["causal", "chunked"])
def test_the_server_may_hold_the_state(client, model):
    text = np.array(TEXTS[3:4], object)
    whole = client.predict(model, text)
    begin, go_on, end = (np.array([n], np.uint32) for n in (1, 0, 2))
    number = {}
    for control, piece in [(begin, text[0][:5]), (go_on, text[0][5:7]), (end, text[0][7:])]:
        inputs = {"text": np.array([piece], object), "sequence_control_input": control, **number}
        outputs = client.predict(model, inputs, signature="stream_step")
        number = {"sequence_id": outputs.pop("sequence_id")}
    _assert_same({name: outputs[name] for name in whole}, whole)


def test_no_pieces_have_no_answers(client):
    assert list(client.stream("causal", [])) == []


def test_a_piece_longer_than_the_limit_is_refused(client):
    with pytest.raises(InvalidInput, match="at most 256 symbols"):
        list(client.stream("causal", ["a" * 257]))
    *_, last = client.stream("causal", ["a" * 200, "b" * 200])
    assert last.final


def test_a_model_that_does_not_stream_says_what_it_has(server):
    with Client(server.address) as client:
        with pytest.raises(SignatureNotFound, match=r"stream_step.* It has: serving_default\."):
            list(client.stream("half_plus", [[1.0]]))
        with pytest.raises(SignatureNotFound, match=r"stream_start.* It has: serving_default\."):
            list(client.stream("half_plus", [{"x": np.ones(1, np.float32)}]))


def test_the_state_has_the_same_names_types_and_shapes_going_in_and_out(client):
    for model in ("causal", "chunked"):
        signatures = client.metadata(model)["signatures"]
        start, step, end = (signatures[f"stream_{name}"] for name in ("start", "step", "end"))
        state = start["outputs"]
        assert state
        assert {name[:6] for name in state} == {"state_"}
        assert {info["shape"][0] for info in state.values()} == {None}
        assert step["inputs"] == {"text": {"dtype": "string", "shape": [None]}, **state}
        assert step["outputs"] == {**end["outputs"], **state}
        assert end["inputs"] == state
        assert end["outputs"] == signatures["serving_default"]["outputs"]


def test_a_scalar_says_how_many_streams_there_are(models):
    loaded = tf.saved_model.load(str(models / "causal" / "1"))
    state = loaded.signatures["stream_start"](batch_size=tf.constant(3))
    assert {tensor.shape[0] for tensor in state.values()} == {3}


def test_no_other_version_goes_on_with_a_stream(models, options, tmp_path):
    first, second, aside = (tmp_path / "models" / "changing" / n for n in ("1", "2", "aside"))
    shutil.copytree(models / "causal" / "1", first)
    shutil.copytree(models / "causal" / "1", aside)
    chosen = options(model_root=str(tmp_path / "models"))
    with Server(chosen), Client(f"localhost:{chosen.port}") as client:
        streamed = client.stream("changing", ["ab", "cd"])
        assert not next(streamed).final
        aside.rename(second)
        while {"version": 2, "state": "AVAILABLE", "error": ""} not in client.status("changing"):
            time.sleep(0.05)
        with pytest.raises(ModelNotFound, match=r"changing, 1\b"):
            next(streamed)


@pytest.mark.parametrize("asked", ["arguments", "lines"])
def test_the_command_line_prints_the_answer_as_it_grows(
    address, client, asked, capsys, monkeypatch
):
    pieces = ("bad ", "ca", "fés")
    if asked == "lines":
        monkeypatch.setattr(sys, "stdin", io.StringIO("".join(f"{piece}\n" for piece in pieces)))
    texts = pieces if asked == "arguments" else ()
    cli.query("causal", texts, address=address, stream=True)
    printed = capsys.readouterr().out.splitlines()
    expected = client.stream("causal", pieces)
    assert printed == [each.outputs["sound"] for each in expected]
    assert len(printed) == 4
