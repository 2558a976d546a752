"""Classify, Regress and MultiInference, over gRPC and REST."""

import base64
import http.client
import json

import grpc
import pytest
from google.protobuf import text_format
from tensorflow.core.example.example_pb2 import Example
from tensorflow_serving.apis import (
    classification_pb2,
    inference_pb2,
    input_pb2,
    prediction_service_pb2_grpc,
    regression_pb2,
)

from serving.model_server import json_examples
from serving.model_server.flags import Options
from serving.model_server.server import Server

CLASSIFY, REGRESS = "tensorflow/serving/classify", "tensorflow/serving/regress"
INVALID = "INVALID_ARGUMENT"


@pytest.fixture(scope="module")
def prediction(server):
    with grpc.insecure_channel(server.address) as channel:
        yield prediction_service_pb2_grpc.PredictionServiceStub(channel)


@pytest.fixture(scope="module")
def ask(server):
    """Posts a document to a method of the model; returns status and body."""
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=20)

    def send(method, document, model="examples"):
        body = document if isinstance(document, str) else json.dumps(document)
        connection.request("POST", f"/v1/models/{model}:{method}", body.encode())
        response = connection.getresponse()
        return response.status, response.read().decode()

    yield send
    connection.close()


def example(**features):
    made = Example()
    for name, value in features.items():
        made.features.feature[name].float_list.value.append(value)
    return made


def of(*examples, context=None):
    if context is None:
        return input_pb2.Input(example_list=input_pb2.ExampleList(examples=examples))
    listed = input_pb2.ExampleListWithContext(examples=examples, context=context)
    return input_pb2.Input(example_list_with_context=listed)


ONE, TWO = of(example(x=1)), of(example(x=1), example(x=2))


def request_for(method, signature="", given=ONE, model="examples"):
    kind = {
        "Classify": classification_pb2.ClassificationRequest,
        "Regress": regression_pb2.RegressionRequest,
    }[method]
    request = kind(input=given)
    request.model_spec.name = model
    request.model_spec.signature_name = signature
    return request


def failure(method, request):
    with pytest.raises(grpc.RpcError) as raised:
        method(request)
    return raised.value.code().name, raised.value.details()


def rows(result):
    return [[(each.label, each.score) for each in row.classes] for row in result.classifications]


def test_classify_gives_labels_and_scores(prediction):
    response = prediction.Classify(request_for("Classify", given=TWO))
    assert rows(response.result) == [[("up", 1), ("down", -1)], [("up", 2), ("down", -2)]]
    spec = response.model_spec
    assert (spec.name, spec.version.value, spec.signature_name) == (
        *("examples", 3),
        "serving_default",
    )


@pytest.mark.parametrize(
    ("signature", "row"),
    [
        ("classes", [("up", 0), ("down", 0), ("é", 0)]),
        ("scores", [("", 1), ("", -1)]),
    ],
)
def test_classify_does_with_labels_or_scores_alone(prediction, signature, row):
    assert rows(prediction.Classify(request_for("Classify", signature)).result) == [row]


@pytest.mark.parametrize(
    ("signature", "values"), [("regress", [2.5, 3]), ("regress_column", [1, 2])]
)
def test_regress_gives_values(prediction, signature, values):
    response = prediction.Regress(request_for("Regress", signature, TWO))
    assert [each.value for each in response.result.regressions] == values
    assert response.model_spec.signature_name == signature


def test_the_context_is_part_of_every_example(prediction):
    given = of(example(x=1), example(), context=example(y=10))
    response = prediction.Regress(request_for("Regress", "regress", given))
    assert [each.value for each in response.result.regressions] == [7.5, 7]


CLASSIFY_ERRORS = [
    ("q", ONE, "No signature was found with the name: q"),
    ("two_inputs", ONE, "Expected one input Tensor."),
    ("three_outputs", ONE, "Expected one or two output Tensors, found 3"),
    ("other_input", ONE, "No classification inputs found in SignatureDef: inputs {"),
    (
        "other_outputs",
        ONE,
        "Expected classification signature outputs to contain at least one of "
        '"classes" or "scores". Signature was: inputs {',
    ),
    ("", of(), "Input is empty."),
    ("", of(context=example(x=1)), "Input is empty."),
    ("flat_scores", TWO, "Expected Tensor shape: [batch_size num_classes] but got [2]"),
    ("number_classes", ONE, "Expected classes Tensor of DT_STRING. Got: DT_FLOAT"),
    ("double_scores", ONE, "Expected scores Tensor of DT_FLOAT. Got: DT_DOUBLE"),
    ("short_scores", TWO, "Expected scores output batch size of 2. Got: 1"),
    ("uneven", ONE, "Tensors class and score should match in dim_size(1). Got 3 vs. 2"),
]


@pytest.mark.parametrize(
    ("signature", "given", "message"), CLASSIFY_ERRORS, ids=[row[2][:40] for row in CLASSIFY_ERRORS]
)
def test_a_bad_classify_request_fails_as_in_tensorflow_serving(
    prediction, signature, given, message
):
    code, text = failure(prediction.Classify, request_for("Classify", signature, given))
    assert (code, text[: len(message)]) == (INVALID, message)


REGRESS_ERRORS = [
    ("q", ONE, "No signature was found with the name: q"),
    ("two_inputs", ONE, "Expected one input Tensor."),
    ("serving_default", ONE, "Expected one output Tensor."),
    ("other_regress_input", ONE, "No regression inputs found in SignatureDef: inputs {"),
    ("scores", ONE, "No regression outputs found in SignatureDef: inputs {"),
    ("regress", of(), "Input is empty."),
    (
        "square_outputs",
        ONE,
        "Expected output Tensor shape to be either [batch_size] or [batch_size, 1] but got [1,2]",
    ),
    ("short_outputs", TWO, "Input batch size did not match output batch size: 2 vs. 1"),
    ("double_outputs", ONE, "Expected output Tensor of DT_FLOAT.  Got: DT_DOUBLE"),
]


@pytest.mark.parametrize(
    ("signature", "given", "message"), REGRESS_ERRORS, ids=[row[2][:40] for row in REGRESS_ERRORS]
)
def test_a_bad_regress_request_fails_as_in_tensorflow_serving(
    prediction, signature, given, message
):
    code, text = failure(prediction.Regress, request_for("Regress", signature, given))
    assert (code, text[: len(message)]) == (INVALID, message)


@pytest.mark.parametrize("method", ["Classify", "Regress"])
def test_a_request_must_say_which_model(prediction, method):
    call = getattr(prediction, method)
    nameless = request_for(method, model="")
    assert failure(call, nameless) == (INVALID, "ModelSpec has no name specified.")
    nameless.ClearField("model_spec")
    assert failure(call, nameless) == (INVALID, "Missing ModelSpec")
    text = "Servable not found for request: Latest(q)"
    assert failure(call, request_for(method, model="q")) == ("NOT_FOUND", text)


def test_method_names_are_checked_where_asked_for(model_root, options):
    chosen: Options = options(
        model_base_path=str(model_root / "examples"), enable_signature_method_name_check=True
    )
    with Server(chosen), grpc.insecure_channel(f"localhost:{chosen.port}") as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        for method, kind in (("Classify", "classification"), ("Regress", "regression")):
            code, text = failure(getattr(stub, method), request_for(method, model="default"))
            assert code == INVALID
            assert text == (
                f"Expected {kind} signature method_name to be "
                f"tensorflow/serving/{method.lower()}. Was: tensorflow/serving/predict"
            )


def multi(*tasks, given=TWO):
    request = inference_pb2.MultiInferenceRequest(input=given)
    for model, signature, method in tasks:
        task = request.tasks.add(method_name=method)
        task.model_spec.name = model
        task.model_spec.signature_name = signature
    return request


def test_multi_inference_answers_every_task(prediction):
    tasks = [("examples", "", CLASSIFY), ("examples", "regress", REGRESS)]
    first, second = prediction.MultiInference(multi(*tasks)).results
    assert rows(first.classification_result) == [
        [("up", 1), ("down", -1)],
        [("up", 2), ("down", -2)],
    ]
    assert [each.value for each in second.regression_result.regressions] == [2.5, 3]
    assert first.model_spec.signature_name == "serving_default"
    assert second.model_spec.signature_name == "regress"
    assert first.model_spec.version.value == second.model_spec.version.value == 3


GOOD = ("examples", "", CLASSIFY)
MULTI_ERRORS = [
    (multi(), INVALID, "ModelSpec has no name specified."),
    (multi(("", "", CLASSIFY)), INVALID, "ModelSpec has no name specified."),
    (multi(("q", "", CLASSIFY)), "NOT_FOUND", "Servable not found for request: Latest(q)"),
    (multi(GOOD, ("", "", CLASSIFY)), INVALID, "Found ModelSpec with an empty model name."),
    (
        multi(GOOD, ("half_plus", "", CLASSIFY)),
        INVALID,
        "All ModelSpecs in a MultiInferenceRequest must access the same model name.",
    ),
    (
        multi(GOOD, ("examples", "serving_default", REGRESS)),
        INVALID,
        "Duplicate evaluation of signature: serving_default",
    ),
    (
        multi(GOOD, ("examples", "q", REGRESS)),
        INVALID,
        "Requested signature not found in model graph: q",
    ),
    (
        multi(("examples", "", "predict")),
        "UNIMPLEMENTED",
        "Unsupported signature method_name: predict",
    ),
    (multi(("examples", "", REGRESS)), INVALID, "Expected one output Tensor."),
    (multi(GOOD, given=of()), INVALID, "Input is empty."),
]


@pytest.mark.parametrize(
    ("request_", "code", "message"), MULTI_ERRORS, ids=[row[2][:40] for row in MULTI_ERRORS]
)
def test_a_bad_multi_inference_request_fails_as_in_tensorflow_serving(
    prediction, request_, code, message
):
    assert failure(prediction.MultiInference, request_) == (code, message)


def test_classify_over_rest_is_a_list_of_pairs(ask):
    status, body = ask("classify", {"examples": [{"x": 1.0}, {"x": 2.5}]})
    assert status == 200
    assert body == (
        '{\n    "results": [[["up", 1.0], ["down", -1.0]], [["up", 2.5], ["down", -2.5]]\n    ]\n}'
    )


def test_regress_over_rest_is_a_list_of_values(ask):
    document = {"signature_name": "regress", "context": {"y": 1.0}, "examples": [{"x": 1.0}, {}]}
    assert ask("regress", document) == (200, '{\n    "results": [3.0, 2.5]\n}')


@pytest.mark.parametrize(
    ("value", "feature"),
    [
        ("2.0", "float_list { value: 2.0 }"),
        ("[1.5, 2.5]", "float_list { value: 1.5 value: 2.5 }"),
        ("2", "int64_list { value: 2 }"),
        ("-9223372036854775808", "int64_list { value: -9223372036854775808 }"),
        ("18446744073709551616", "float_list { value: 18446744073709551616 }"),
        ("[true, false, 3]", "int64_list { value: 1 value: 0 value: 3 }"),
        ('"é"', 'bytes_list { value: "\\303\\251" }'),
        ('["a", {"b64": "Yg=="}]', 'bytes_list { value: "a" value: "b" }'),
        ("[]", ""),
    ],
)
def test_a_json_value_becomes_a_feature_of_its_kind(value, feature):
    given = json_examples.parse(json.loads(f'{{"examples": [{{"f": {value}}}]}}'))
    (made,) = given.example_list.examples
    wanted = text_format.Parse(
        f'features {{ feature {{ key: "f" value {{ {feature} }} }} }}', Example()
    )
    assert made == wanted


EXAMPLES_EXPECTED = "When method is classify, key 'examples' is expected and was not found"
JSON_ERRORS = [
    ("", "JSON Parse error: The document is empty"),
    ("{}", f"JSON Value: {{}} {EXAMPLES_EXPECTED}"),
    (
        '{"examples": 1}',
        "JSON Value: {\n    \"examples\": 1\n} Expecting 'examples' value to be an list/array",
    ),
    (
        '{"examples": []}',
        "JSON Value: {\n    \"examples\": []\n} 'examples' value is an empty array",
    ),
    ('{"examples": [1]}', "Example must be JSON object but got JSON Number"),
    ('{"context": [], "examples": [{}]}', "Example must be JSON object but got JSON Array"),
    ('{"examples": [{"f": null}]}', "Feature: f has element with unexpected JSON type: Null"),
    ('{"examples": [{"f": [[1]]}]}', "Feature: f has element with unexpected JSON type: Array"),
    ('{"examples": [{"f": {"a": 1}}]}', "Feature: f has element with unexpected JSON type: Object"),
    (
        '{"examples": [{"f": [1, 2.0]}]}',
        "Unexpected element type in feature: f expecting type: int64",
    ),
    (
        '{"examples": [{"f": [1.0, true]}]}',
        "Unexpected element type in feature: f expecting type: float",
    ),
    (
        '{"examples": [{"f": ["a", 1]}]}',
        "Unexpected element type in feature: f expecting type: bytes",
    ),
    (
        '{"examples": [{"f": 9223372036854775808}]}',
        "Feature: f has uint64 element. Only int64 is supported.",
    ),
    ('{"examples": [{"f": {"b64": "?"}}]}', "Unable to base64 decode"),
    ('{"signature_name": "q", "examples": [{}]}', "No signature was found with the name: q"),
]


@pytest.mark.parametrize("method", ["classify", "regress"])
@pytest.mark.parametrize(("body", "message"), JSON_ERRORS, ids=[row[0][:40] for row in JSON_ERRORS])
def test_a_bad_body_is_refused_as_in_tensorflow_serving(ask, method, body, message):
    status, answer = ask(method, body)
    assert (status, json.loads(answer)["error"]) == (400, message)


def test_base64_of_a_feature_is_decoded():
    text = base64.b64encode(b"\xff\x00").decode()
    given = json_examples.parse({"examples": [{"f": {"b64": text}}]})
    assert given.example_list.examples[0].features.feature["f"].bytes_list.value == [b"\xff\x00"]
