"""Inputs of unlike lengths in one batch, where a version says how they are lengthened."""

import asyncio
import http.client
import json

import grpc
import numpy as np
import pytest
import tensorflow as tf
from tensorflow_serving.apis import predict_pb2

from serving.model_server import batch_padding, batch_parameters
from serving.model_server.batch_padding import Padding
from serving.model_server.errors import ServingError
from serving.model_server.flags import Options
from serving.model_server.server import Server

PARAMETERS = """
    batch_timeout_micros { value: 300000 } max_batch_size { value: 4 }
    padding { input: "x" value: -1 lengths: "x_lengths" outputs: "same" allowed_lengths: [4, 8] }
    padding { input: "words" text: "<pad>" }
"""


class Ragged(tf.Module):
    """Tells what it sees: the inputs as they come, and sums over their true lengths."""

    def signatures(self):
        x = tf.TensorSpec([None, None], tf.float32, name="x")
        lengths = tf.TensorSpec([None], tf.int64, name="x_lengths")
        words = tf.TensorSpec([None, None], tf.string, name="words")
        flat = tf.TensorSpec([None], tf.float32, name="x")

        def sums(x, x_lengths):
            mask = tf.sequence_mask(x_lengths, tf.shape(x)[1], tf.float32)
            width = tf.fill([tf.shape(x)[0]], tf.shape(x)[1])
            return {"sum": tf.reduce_sum(x * mask, 1), "raw": tf.reduce_sum(x, 1), "width": width}

        return {
            "serving_default": tf.function(
                lambda x, x_lengths: {"same": x * 2, "lengths": x_lengths, **sums(x, x_lengths)},
                input_signature=[x, lengths],
            ),
            "words": tf.function(
                lambda words: {"text": tf.strings.reduce_join(words, 1, separator=" ")},
                input_signature=[words],
            ),
            "shorter": tf.function(lambda x: {"same": x[:, 1:]}, input_signature=[x]),
            "flat": tf.function(lambda x, x_lengths: {"y": x}, input_signature=[flat, lengths]),
        }


@pytest.fixture(scope="module")
def ports(tmp_path_factory, options, free_port):
    """A batching server of such a model: its ports."""
    folder = tmp_path_factory.mktemp("ragged")
    module = Ragged()
    tf.saved_model.save(module, str(folder / "m/1"), signatures=module.signatures())
    (folder / "m/1/batching_params.pbtxt").write_text(PARAMETERS)
    chosen = options(
        model_base_path=str(folder / "m"),
        rest_api_port=free_port(),
        enable_batching=True,
        enable_per_model_batching_parameters=True,
    )
    with Server(chosen):
        yield chosen.port, chosen.rest_api_port


def predict(port, *requests, signature=""):
    """Returns the answers to requests that are sent at the same time."""

    async def ask():
        async with grpc.aio.insecure_channel(f"localhost:{port}") as channel:
            method = channel.unary_unary(
                "/tensorflow.serving.PredictionService/Predict",
                predict_pb2.PredictRequest.SerializeToString,
                predict_pb2.PredictResponse.FromString,
            )
            asked = [method(_request(inputs, signature), timeout=20) for inputs in requests]
            return await asyncio.gather(*asked)

    return [
        {name: tf.make_ndarray(proto) for name, proto in response.outputs.items()}
        for response in asyncio.run(ask())
    ]


def _request(inputs, signature):
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "default"
    request.model_spec.signature_name = signature
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    return request


def rows(*shape):
    return np.arange(1, np.prod(shape) + 1, dtype=np.float32).reshape(shape)


def test_requests_of_unlike_lengths_share_a_batch_with_the_declared_value_and_their_lengths(ports):
    short, long = rows(1, 2), rows(2, 3)
    answers = predict(ports[0], {"x": short}, {"x": long})
    for x, answer in zip((short, long), answers, strict=True):
        np.testing.assert_array_equal(answer["sum"], x.sum(1))
        np.testing.assert_array_equal(answer["lengths"], [x.shape[1]] * len(x))
        np.testing.assert_array_equal(answer["width"], [4] * len(x))
        np.testing.assert_array_equal(answer["raw"], x.sum(1) - (4 - x.shape[1]))


def test_outputs_as_long_as_an_input_come_back_as_long_as_it_was(ports):
    answers = predict(ports[0], {"x": rows(1, 2)}, {"x": rows(1, 3)})
    assert [answer["same"].tolist() for answer in answers] == [[[2, 4]], [[2, 4, 6]]]


def test_lengths_that_come_with_a_request_are_kept(ports):
    lengths = np.array([1, 3], np.int64)
    (answer,) = predict(ports[0], {"x": rows(2, 3), "x_lengths": lengths})
    assert answer["sum"].tolist() == [1, 15]


@pytest.mark.parametrize(
    ("lengths", "widths"), [((3, 6), (4, 8)), ((5, 6, 7), (8, 8, 8)), ((9, 10), (9, 10))]
)
def test_lengths_are_filled_up_to_those_allowed(ports, lengths, widths):
    answers = predict(ports[0], *({"x": rows(1, length)} for length in lengths))
    assert tuple(int(answer["width"][0]) for answer in answers) == widths
    assert [answer["same"].shape for answer in answers] == [(1, length) for length in lengths]


def test_strings_are_lengthened_with_text(ports):
    requests = [{"words": np.array([["a"]])}, {"words": np.array([["b", "c"]])}]
    answers = predict(ports[0], *requests, signature="words")
    assert [answer["text"].tolist() for answer in answers] == [[b"a <pad>"], [b"b c"]]


@pytest.mark.parametrize(
    ("signature", "inputs", "code", "message"),
    [
        (
            "shorter",
            {"x": rows(1, 3)},
            "FAILED_PRECONDITION",
            "is declared to be as long as an input, 4 along its second axis, but has shape [1, 3].",
        ),
        ("flat", {"x": rows(2)}, "INVALID_ARGUMENT", "Input x must have a second axis"),
    ],
)
def test_what_is_not_as_declared_is_refused(ports, signature, inputs, code, message):
    with pytest.raises(grpc.RpcError) as raised:
        predict(ports[0], inputs, signature=signature)
    assert raised.value.code().name == code
    assert message in raised.value.details()


def ask(port, document):
    connection = http.client.HTTPConnection("localhost", port, timeout=20)
    connection.request("POST", "/v1/models/default:predict", json.dumps(document))
    response = connection.getresponse()
    answer = response.status, json.loads(response.read())
    connection.close()
    return answer


EXPECTED = {"sum": [6.0, 9.0], "lengths": [3, 2], "width": [4, 4], "raw": [5.0, 7.0]}


@pytest.mark.parametrize(
    "document",
    [
        {"inputs": [[1, 2, 3], [4, 5]]},
        {"inputs": {"x": [[1, 2, 3], [4, 5]]}},
        {"inputs": {"x": [[1, 2, 3], [4, 5]], "x_lengths": [3, 2]}},
    ],
)
def test_columns_of_one_request_may_have_unlike_lengths(ports, document):
    status, answer = ask(ports[1], document)
    assert status == 200
    assert {name: answer["outputs"][name] for name in EXPECTED} == EXPECTED


@pytest.mark.parametrize(
    "instances",
    [
        [[1, 2, 3], [4, 5]],
        [{"x": [1, 2, 3]}, {"x": [4, 5]}],
        [{"x": [1, 2, 3], "x_lengths": 3}, {"x": [4, 5], "x_lengths": 2}],
    ],
)
def test_rows_of_one_request_may_have_unlike_lengths(ports, instances):
    status, answer = ask(ports[1], {"instances": instances})
    assert status == 200
    for name, values in EXPECTED.items():
        assert [row[name] for row in answer["predictions"]] == values


def test_rows_of_unlike_ranks_are_refused_as_ever(ports):
    status, answer = ask(ports[1], {"instances": [[1, 2], [[3]]]})
    assert status == 400
    assert answer["error"].startswith("Failed to process element: 1 of 'instances' list. Error:")


def test_the_declaration_is_read(tmp_path):
    (tmp_path / "batching_params.pbtxt").write_text(PARAMETERS)
    assert batch_parameters.of_version(str(tmp_path)).paddings == (
        Padding("x", -1.0, b"", "x_lengths", ("same",), (4, 8)),
        Padding("words", 0.0, b"<pad>"),
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("padding { value: 1 }", "A padding must name its input"),
        ('padding { input: "x" allowed_lengths: [4, 2] }', "Entries of allowed_lengths must rise"),
    ],
)
def test_a_bad_declaration_is_refused(tmp_path, text, message):
    file = tmp_path / "batching.config"
    file.write_text(text)
    options = Options(enable_batching=True, batching_parameters_file=str(file))
    with pytest.raises(ServingError, match=message):
        batch_parameters.of_server(options)


def test_every_dimension_is_lengthened():
    arrays = [np.full([1, 2, 3], 7), np.full([1, 1, 4], 8)]
    first, second = batch_padding.lengthen(arrays, Padding("x", 5, allowed_lengths=(4,)))
    assert first.shape == second.shape == (1, 4, 4)
    assert first.sum() == 6 * 7 + 10 * 5
    assert second.sum() == 4 * 8 + 12 * 5
