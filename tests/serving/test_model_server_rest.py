import base64
import codecs
import gzip
import http.client
import json
import threading
import time

import numpy as np
import pytest
import tensorflow as tf

from serving.model_server import json_response, json_text, json_values
from serving.model_server.admin import Admin
from serving.model_server.errors import Code, ServingError, not_found
from serving.model_server.journal import Journal
from serving.model_server.metrics import Metrics
from serving.model_server.rest_front import RestFront
from serving.model_server.server import Server

HALF = "/v1/models/half_plus:predict"
TWO = "/v1/models/two_inputs:predict"
WORDS = "/v1/models/words:predict"
IDENTITY = "/v1/models/identity:predict"
LONG = 3_000_000  # Counting so far takes seconds.


@pytest.fixture(scope="module")
def ask(server):
    """Returns status, headers and body of a request; keeps one connection."""
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=20)

    def send(method, path, body=None, headers=None):
        body = json.dumps(body) if isinstance(body, dict) else body
        body = body.encode() if isinstance(body, str) else body
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response.status, response.headers, response.read().decode()

    yield send
    connection.close()


def answer(ask, *request, **how):
    status, _, body = ask(*request, **how)
    assert status == 200, body
    return json.loads(body)


def error(ask, *request, **how):
    status, _, body = ask(*request, **how)
    return status, json.loads(body)["error"]


def identity(ask, dtype, text, key="inputs"):
    body = f'{{"signature_name": "{dtype}", "{key}": {text}}}'
    return ask("POST", IDENTITY, body)


def test_the_row_form_of_one_output_is_a_plain_list(ask):
    status, headers, body = ask("POST", HALF, {"instances": [1.0, 2, 5.0]})
    assert (status, headers["Content-Type"]) == (200, "application/json")
    assert body == '{\n    "predictions": [3.5, 4.0, 5.5\n    ]\n}'


def test_the_row_form_of_more_outputs_is_a_list_of_objects(ask):
    _, _, body = ask("POST", TWO, {"instances": [{"a": [1, 2], "b": [3, 4]}] * 2})
    row = '        {\n            "row_sum": 3.0,\n            "total": [4.0, 6.0]\n        }'
    assert body == f'{{\n    "predictions": [\n{row},\n{row}\n    ]\n}}'


def test_the_column_form_of_one_output_is_its_value(ask):
    _, _, body = ask("POST", HALF, {"inputs": [1.0, 2.0]})
    assert body == '{\n    "outputs": [\n        3.5,\n        4.0\n    ]\n}'


def test_the_column_form_of_more_outputs_is_an_object(ask):
    outputs = answer(ask, "POST", TWO, {"inputs": {"a": [[1, 2]], "b": [[3, 4]]}})["outputs"]
    assert outputs == {"row_sum": [3.0], "total": [[4.0, 6.0]]}


def test_a_version_can_be_asked_for(ask):
    path = "/v1/models/half_plus/versions/2:predict"
    assert answer(ask, "POST", path, {"inputs": [0.0]}) == {"outputs": [3.0]}


def test_what_follows_the_document_and_other_keys_are_passed_over(ask):
    body = '{"instances": [0.0], "other": 1} and more'
    assert answer(ask, "POST", HALF, body) == {"predictions": [3.0]}


def test_bytes_travel_as_base64(ask):
    encoded = base64.b64encode(b"two").decode()
    outputs = answer(ask, "POST", WORDS, {"instances": ["one", {"b64": encoded}]})["predictions"]
    assert [row["ids"] for row in outputs] == [0, 1]
    assert [row["words"] for row in outputs] == ["one", "two"]
    assert outputs[1]["words_bytes"] == {"b64": encoded}


def test_a_body_may_be_compressed(ask):
    body = gzip.compress(b'{"instances": [0.0]}')
    headers = {"Content-Encoding": "gzip"}
    assert answer(ask, "POST", HALF, body, headers=headers) == {"predictions": [3.0]}
    large = gzip.compress(b'{"instances": [0.0]}'.ljust(100 * 2**20 + 1), 1)
    for broken in (b"not gzip", body[:-1], large):
        empty = 400, "JSON Parse error: The document is empty"
        assert error(ask, "POST", HALF, broken, headers=headers) == empty


def test_a_body_may_come_in_chunks(ask):
    pieces = iter([b'{"instances"', b": [0.0]}"])
    assert answer(ask, "POST", HALF, pieces) == {"predictions": [3.0]}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_floats_that_are_not_finite_travel(ask, dtype):
    _, _, body = identity(ask, dtype, "[NaN, Infinity, -Infinity, 1]")
    values = [line.strip(" ,") for line in body.split("\n")[2:-2]]
    assert values == ["NaN", "Infinity", "-Infinity", "1.0"]


def test_floats_that_are_not_finite_have_shorter_names_too(ask):
    _, _, body = identity(ask, "float32", "[-NaN, Inf, -Inf, 1]")
    values = [line.strip(" ,") for line in body.split("\n")[2:-2]]
    assert values == ["NaN", "Infinity", "-Infinity", "1.0"]


@pytest.mark.parametrize(
    "body", ['{"inputs": [0], "inputs": [8]}', '{"inputs": {"x": [0], "x": [8]}, "inputs": 1}']
)
def test_of_members_of_one_name_the_first_counts(ask, body):
    assert answer(ask, "POST", HALF, body) == {"outputs": [3.0]}


DOCUMENTS = [
    '{"a": [1, -2.5e-3, true, false, null], "b": {"c": {}, "d": []}}',
    ' [ "", "\\"\\\\\\/\\b\\f\\n\\r\\t", "\\u00e9\\u0000é", "\\ud83d\\uDE00", "\\\\ud83d" ] [',
    "[0, -0, 0.0, 1E+2, 18446744073709551616, 1.7976931348623157e+308]",
]


@pytest.mark.parametrize("text", DOCUMENTS, ids=range(3))
def test_both_ways_of_reading_a_document_agree(text):
    value, _ = json.JSONDecoder().raw_decode(text.strip())
    assert json_text.read(text.encode()) == value
    assert json_text._Reader(codecs.BOM_UTF8 + text.encode()).read() == value


@pytest.mark.parametrize(
    ("dtype", "values"),
    [
        ("int8", [-128, 127]),
        ("int32", [-(2**31), 2**31 - 1]),
        ("int64", [-(2**63), 2**63 - 1]),
        ("uint32", [0, 2**32 - 1]),
        ("uint64", [0, 2**64 - 1]),
        ("bool", [True, False]),
        ("string", ["", 'é "\\\n']),
        ("float64", [0.1, 1e300]),
        ("float32", [[[]], [[]]]),
    ],
)
def test_values_come_back_as_they_went(ask, dtype, values):
    _, _, body = identity(ask, dtype, json.dumps(values))
    assert json.loads(body) == {"outputs": values}


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0, "0.0"),
        (1.0, "1.0"),
        (0.2, "0.2"),
        (123456.0, "123456.0"),
        (9e6, "9e+06"),
        (3e-05, "3e-05"),
        (16777217.0, "16777216.0"),
        (0.1234567, "0.123456702"),
        (-1.5, "-1.5"),
    ],
)
def test_a_float_is_as_short_as_it_can_be(value, text):
    assert json_response.floats(np.array([value], np.float32)) == [text]


def test_a_double_has_as_many_digits_as_it_needs():
    texts = json_response.floats(np.array([0.1, 1 / 3, 1e22]))
    assert texts == ["0.1", "0.33333333333333331", "1e+22"]


PARSE = "JSON Parse error: "
TOO_BIG = "Number too big to be stored in double."
HALVES = "The surrogate pair in string is invalid."
MALFORMED = [
    ("", "JSON Parse error: The document is empty"),
    (" \n", "JSON Parse error: The document is empty. at offset: 2"),
    ('{"instances": [1,', "JSON Parse error: Invalid value. at offset: 17"),
    ('{"é" 1}', "JSON Parse error: Missing a colon after a name of object member. at offset: 6"),
    (
        '{"instances": [1 2]}',
        "JSON Parse error: Missing a comma or ] after an array element. at offset: 17",
    ),
    (
        '{"instances": [1] 2}',
        "JSON Parse error: Missing a comma or } after an object member. at offset: 18",
    ),
    ("{1: 2}", "JSON Parse error: Missing a name for object member. at offset: 1"),
    ('{"inputs": 1,}', "JSON Parse error: Missing a name for object member. at offset: 13"),
    ('{"inputs": [1,]}', "JSON Parse error: Invalid value. at offset: 14"),
    ('{"inputs": [tru]}', "JSON Parse error: Invalid value. at offset: 15"),
    ('{"inputs": [Infinite]}', "JSON Parse error: Invalid value. at offset: 19"),
    ('{"inputs": [-]}', "JSON Parse error: Invalid value. at offset: 13"),
    ('{"inputs": [01]}', f"{PARSE}Missing a comma or ] after an array element. at offset: 13"),
    ('{"inputs": [1.]}', f"{PARSE}Miss fraction part in number. at offset: 14"),
    ('{"inputs": [1e]}', f"{PARSE}Miss exponent in number. at offset: 14"),
    ('{"inputs": [1e-]}', f"{PARSE}Miss exponent in number. at offset: 15"),
    ('{"inputs": [0, -1e999]}', f"{PARSE}{TOO_BIG} at offset: 15"),
    ('{"inputs": [1E+0400]}', f"{PARSE}{TOO_BIG} at offset: 12"),
    (f'{{"inputs": {"9" * 309}}}', f"{PARSE}{TOO_BIG} at offset: 11"),
    (f'{{"inputs": {"9" * 309}.5}}', f"{PARSE}{TOO_BIG} at offset: 11"),
    (f'{{"inputs": {"9" * 5000}}}', f"{PARSE}{TOO_BIG} at offset: 11"),
    ('{"inputs": "a', f"{PARSE}Missing a closing quotation mark in string. at offset: 13"),
    ('{"inputs": "\0"}', f"{PARSE}Missing a closing quotation mark in string. at offset: 12"),
    ('{"inputs": "\n"}', f"{PARSE}Invalid escape character in string. at offset: 12"),
    ('{"inputs": "é\\q"}', f"{PARSE}Invalid escape character in string. at offset: 14"),
    (
        '{"inputs": "\\uZZZZ"}',
        f"{PARSE}Incorrect hex digit after \\u escape in string. at offset: 12",
    ),
    ('{"inputs": "\\ud800"}', f"{PARSE}{HALVES} at offset: 12"),
    ('{"inputs": "\\ude00"}', f"{PARSE}{HALVES} at offset: 12"),
    ('{"inputs": "\\ud83d\\u0041"}', f"{PARSE}{HALVES} at offset: 12"),
    ('{"inputs": "\\\\ud83d\\ude00"}', f"{PARSE}{HALVES} at offset: 19"),
    ("[1]", "JSON Value: [\n    1\n] Is not object"),
    ("{}", "Missing 'inputs' or 'instances' key"),
    (
        '{"signature_name": 3, "inputs": 1}',
        'JSON Value: {\n    "signature_name": 3,\n    "inputs": 1\n} not formatted correctly. '
        "'signature_name' key must be a string value.",
    ),
    (
        '{"signature_name": "q", "inputs": 1}',
        'Serving signature name: "q" not found in signature def',
    ),
    (
        '{"inputs": 1, "instances": [1]}',
        'JSON Value: {\n    "inputs": 1,\n    "instances": [\n        1\n    ]\n} Not formatted '
        "correctly expecting only one of 'inputs' or 'instances' keys to exist ",
    ),
    (
        '{"instances": 1}',
        "JSON Value: {\n    \"instances\": 1\n} Expecting 'instances' to be an list/array",
    ),
    (
        f'{{"instances": "z{"é" * 300}"}}',
        f'JSON Value: {{\n    "instances": "z{"é" * 117} '
        "Expecting 'instances' to be an list/array",
    ),
    (
        '{"instances": []}',
        "JSON Value: {\n    \"instances\": []\n} No values in 'instances' array",
    ),
    (
        '{"instances": [1.0, "a"]}',
        "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
        'JSON Value: "a" Type: String is not of expected type: float',
    ),
    (
        '{"instances": [1, [2]]}',
        "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
        "Expecting shape [] but got: [1]",
    ),
    (
        '{"instances": [[1, 2], [3]]}',
        "Failed to process element: 1 of 'instances' list. Error: INVALID_ARGUMENT: "
        "Expecting tensor size: 2 but got: 1",
    ),
    (
        '{"instances": [{"z": 1}]}',
        "Failed to process element: 0 key: z of 'instances' list. Error: INVALID_ARGUMENT: "
        "JSON object: does not have named input: z",
    ),
    (
        '{"instances": [{"x": 1}, 2]}',
        "Expecting object but got list at item 1 of input list",
    ),
    (
        '{"instances": [1, {"x": 2}]}',
        "Expecting value/list but got object at item 1 of input list",
    ),
    ('{"inputs": {"z": 1}}', "Missing named input: x in 'inputs' object."),
    ('{"inputs": [1, true]}', "JSON Value: true Type: True is not of expected type: float"),
    ('{"inputs": [1, null]}', "JSON Value: null Type: Null is not of expected type: float"),
    (
        '{"inputs": [1, [2]]}',
        "Encountered list at unexpected level: 1 expected < 1",
    ),
    (
        '{"inputs": [[1, 2], [3]]}',
        "Encountered list at unexpected size: 1 at level: 1 expected size: 2",
    ),
    (
        '{"inputs": [[1], 2]}',
        "JSON Value: 2 found at incorrect level: 2 in the JSON DOM. Expected at level: 2",
    ),
]


@pytest.mark.parametrize(("body", "message"), MALFORMED, ids=[row[0][:30] for row in MALFORMED])
def test_a_malformed_body_is_refused_as_in_tensorflow_serving(ask, body, message):
    assert error(ask, "POST", HALF, body) == (400, message)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (
            {"instances": [1]},
            "instances is a plain list, but expecting list of objects as multiple input tensors "
            "required as per tensorinfo_map",
        ),
        (
            {"inputs": [1]},
            "inputs is a plain value/list, but expecting an object as multiple input tensors "
            "required as per tensorinfo_map",
        ),
        (
            {"instances": [{"a": 1}]},
            "Failed to process element: 0 of 'instances' list. JSON object: "
            '{\n    "a": 1\n} keys must be equal to: a,b',
        ),
        ({"inputs": {"a": [[1, 2]]}}, "Missing named input: b in 'inputs' object."),
        (
            {"signature_name": "uneven", "instances": [[1, 2]]},
            "Tensor name: z has inconsistent batch size: 2 expecting: 1",
        ),
        (
            {"signature_name": "scalar", "instances": [[1, 2]]},
            "Tensor name: y has no shape information ",
        ),
    ],
    ids=range(6),
)
def test_named_tensors_are_checked_as_in_tensorflow_serving(ask, body, message):
    assert error(ask, "POST", TWO, body) == (400, message)


@pytest.mark.parametrize(
    ("dtype", "value", "status", "message"),
    [
        ("int32", "1.0", 400, "JSON Value: 1.0 Type: Number is not of expected type: int32"),
        ("int32", str(2**31), 400, f"JSON Value: {2**31} Type: Number is not of expected type"),
        ("uint64", "-1", 400, "JSON Value: -1 Type: Number is not of expected type: uint64"),
        ("bool", "1", 400, "JSON Value: 1 Type: Number is not of expected type: bool"),
        ("float64", '"1"', 400, 'JSON Value: "1" Type: String is not of expected type: double'),
        ("string", "1", 400, "JSON Value: 1 Type: Number is not of expected type: string"),
        ("string", '[{"b64": "?"}]', 400, "Unable to base64 decode"),
        ("string", '[{"b64": "", "a": 1}]', 400, "not formatted correctly for base64 data"),
        ("string", '"\\ud800"', 400, "The surrogate pair in string is invalid."),
        ("float16", "1.0", 501, "Conversion of JSON Value: 1.0 to type: half"),
        ("bfloat16", "1.0", 501, "Conversion of JSON Value: 1.0 to type: bfloat16"),
    ],
)
def test_types_are_strict(ask, dtype, value, status, message):
    got, _, body = identity(ask, dtype, value)
    assert got == status
    assert message in json.loads(body)["error"]


@pytest.mark.parametrize("value", [[], [[]], [[[1, 2]], [[3, 4]]], 5, [1.5, 2], [[1], [2]]])
def test_flattening_and_visiting_agree(value):
    quick = json_values.quick(value, tf.float32)
    walked = json_values.walk(value, tf.float32)
    assert quick.shape == walked.shape == np.array(value).shape
    np.testing.assert_array_equal(quick, walked)


@pytest.mark.parametrize("value", [[1, [2]], [[1], 2], [[1, 2], [3]], [None], ["a"], [{}]])
def test_what_flattening_leaves_is_what_visiting_refuses(value):
    assert json_values.quick(value, tf.float32) is None
    with pytest.raises(ServingError):
        json_values.walk(value, tf.float32)


PATHS = [
    ("GET", "/v1/foo", 400, "Malformed request: GET /v1/foo"),
    ("GET", HALF, 400, f"Malformed request: GET {HALF}"),
    ("POST", "/v1/models/half_plus", 400, "Malformed request: POST /v1/models/half_plus"),
    ("PUT", HALF, 400, f"Malformed request: PUT {HALF}"),
    ("POST", f"{HALF}?x=1", 400, f"Malformed request: POST {HALF}?x=1"),
    ("GET", "/v1/models", 400, "Missing model name in request."),
    ("GET", "/v1/models/q", 404, "Could not find any versions of model q"),
    ("GET", "/v1/models/q/metadata", 404, "Servable not found for request: Latest(q)"),
    (
        "GET",
        "/v1/models/half_plus/versions/9",
        404,
        "Could not find version 9 of model half_plus",
    ),
    (
        "GET",
        f"/v1/models/half_plus/versions/{2**63}",
        400,
        f"Failed to convert version: {2**63} to numeric.",
    ),
    (
        "POST",
        "/v1/models/half_plus/labels/canary:predict",
        400,
        "Unrecognized servable version label: canary",
    ),
    ("POST", "/v1/models/q%20r:predict", 404, "Servable not found for request: Latest(q r)"),
]


@pytest.mark.parametrize(
    ("method", "path", "status", "message"), PATHS, ids=[f"{row[0]} {row[1][:40]}" for row in PATHS]
)
def test_a_path_is_answered_as_in_tensorflow_serving(ask, method, path, status, message):
    body = '{"inputs": [1.0]}' if method != "GET" else None
    assert error(ask, method, path, body) == (status, message)


def test_paths_do_not_mind_case(ask):
    assert answer(ask, "POST", "/V1/MODELS/half_plus:Predict", {"inputs": [0]}) == {"outputs": [3]}


def test_an_error_is_printed_with_four_blanks(ask):
    assert ask("GET", "/v1/models")[2] == '{\n    "error": "Missing model name in request."\n}'


def test_other_paths_are_not_found(ask):
    status, headers, _ = ask("GET", "/metrics")
    assert (status, headers["Content-Type"]) == (404, "text/html")


def test_status_is_json(ask):
    assert answer(ask, "GET", "/v1/models/half_plus") == {
        "model_version_status": [
            {
                "version": "2",
                "state": "AVAILABLE",
                "status": {"error_code": "OK", "error_message": ""},
            }
        ]
    }


def test_metadata_is_json(ask):
    metadata = answer(ask, "GET", "/v1/models/half_plus/versions/2/metadata")
    spec = {"name": "half_plus", "signature_name": "", "version": "2"}
    assert metadata["model_spec"] == spec
    signature = metadata["metadata"]["signature_def"]["signature_def"]["serving_default"]
    assert signature["inputs"]["x"]["tensor_shape"]["dim"] == [{"size": "-1", "name": ""}]
    assert signature["defaults"] == {}


def test_a_slow_answer_is_cut_off(model_root, options, free_port):
    port = free_port()
    chosen = options(
        model_base_path=str(model_root / "slow"), rest_api_port=port, rest_api_timeout_in_ms=200
    )
    with Server(chosen):
        connection = http.client.HTTPConnection("localhost", port, timeout=20)
        connection.request("POST", "/v1/models/default:predict", f'{{"inputs": {LONG}}}')
        assert connection.getresponse().status == 504
        connection.close()


@pytest.mark.parametrize("timeout", [0, -1])
def test_where_there_is_no_time_limit_a_call_may_take_any(model_root, options, free_port, timeout):
    port = free_port()
    chosen = options(
        model_base_path=str(model_root / "slow"), rest_api_port=port, rest_api_timeout_in_ms=timeout
    )
    with Server(chosen):
        connection = http.client.HTTPConnection("localhost", port, timeout=20)
        connection.putrequest("POST", "/v1/models/default:predict")
        connection.putheader("Content-Length", "18")
        connection.endheaders()
        time.sleep(0.05)
        connection.send(b'{"inputs": 100000}')
        response = connection.getresponse()
        assert (response.status, json.loads(response.read())) == (200, {"outputs": 100000})
        connection.close()


def test_other_origins_are_answered_where_asked_for(model_root, options, free_port):
    port = free_port()
    chosen = options(
        model_base_path=str(model_root / "half_plus"),
        rest_api_port=port,
        rest_api_enable_cors_support=True,
    )
    with Server(chosen):
        connection = http.client.HTTPConnection("localhost", port, timeout=20)
        for headers, status in (({"Origin": "https://a.b"}, 200), ({}, 400)):
            connection.request("OPTIONS", "/v1/models/default:predict", headers=headers)
            response = connection.getresponse()
            response.read()
            assert response.status == status
            assert response.headers["Access-Control-Allow-Origin"] == "*"
        for method, path, status in (
            ("GET", "/v1/models/default", 200),
            ("GET", "/v1/models", 400),
            ("OPTIONS", "/elsewhere", 404),
        ):
            connection.request(method, path, headers={"Origin": "https://a.b"})
            response = connection.getresponse()
            response.read()
            assert (response.status, response.headers["Access-Control-Allow-Origin"]) == (
                *(status, "*"),
            )
        connection.close()


def test_a_signature_must_be_named_in_characters(ask):
    status, text = error(ask, "POST", HALF, b'{"signature_name": "\xff", "inputs": [1]}')
    assert (status, text) == (400, "JSON Parse error: Invalid encoding in string.")


def test_a_length_that_is_no_number_is_refused(server):
    connection = http.client.HTTPConnection("localhost", server.rest_port, timeout=20)
    connection.putrequest("POST", HALF)
    connection.putheader("Content-Length", "many")
    connection.endheaders()
    assert connection.getresponse().status == 400
    connection.close()


STATUS = {
    "CANCELLED": 499,
    "UNKNOWN": 500,
    "INVALID_ARGUMENT": 400,
    "DEADLINE_EXCEEDED": 504,
    "NOT_FOUND": 404,
    "ALREADY_EXISTS": 409,
    "PERMISSION_DENIED": 403,
    "RESOURCE_EXHAUSTED": 429,
    "FAILED_PRECONDITION": 400,
    "ABORTED": 409,
    "OUT_OF_RANGE": 400,
    "UNIMPLEMENTED": 501,
    "INTERNAL": 500,
    "UNAVAILABLE": 503,
    "DATA_LOSS": 500,
    "UNAUTHENTICATED": 401,
}


def test_every_code_has_the_status_that_it_has_in_tensorflow_serving(options, free_port):
    class Core:
        metrics, journal = Metrics(), Journal()

        def status(self, request):
            raise ServingError(Code[request.model_spec.name], "so it is")

    chosen = options(rest_api_port=free_port())
    front = RestFront(Core(), Admin(None, None, None), chosen, tokens=None)
    front.start()
    connection = http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20)
    found = {}
    for code in STATUS:
        connection.request("GET", f"/v1/models/{code}")
        response = connection.getresponse()
        assert json.loads(response.read()) == {"error": "so it is"}
        found[code] = response.status
    connection.close()
    front.stop()
    assert found == STATUS
    assert found.keys() == Code.__members__.keys() - {"OK"}


def test_only_so_many_requests_are_answered_at_the_same_time(options, free_port):
    class Core:
        metrics, journal = Metrics(), Journal()

        def status(self, request):
            asked.release()
            go_on.wait(20)
            raise not_found("after all")

    asked, go_on = threading.Semaphore(0), threading.Event()
    chosen = options(rest_api_port=free_port(), rest_api_num_threads=2)
    front = RestFront(Core(), Admin(None, None, None), chosen, tokens=None)
    front.start()
    connections = [
        http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20) for _ in range(3)
    ]
    for connection in connections:
        connection.request("GET", "/v1/models/m")
    assert asked.acquire(timeout=20)
    assert asked.acquire(timeout=20)
    assert not asked.acquire(timeout=0.2)
    go_on.set()
    assert [connection.getresponse().status for connection in connections] == [404] * 3
    for connection in connections:
        connection.close()
    front.stop()


def test_a_caller_that_leaves_before_its_turn_is_not_answered(options, free_port):
    class Core:
        metrics, journal = Metrics(), Journal()

        def status(self, request):
            asked.append(request.model_spec.name)
            begun.set()
            go_on.wait(20)
            raise not_found("after all")

    asked, begun, go_on = [], threading.Event(), threading.Event()
    chosen = options(rest_api_port=free_port(), rest_api_num_threads=1)
    front = RestFront(Core(), Admin(None, None, None), chosen, tokens=None)
    front.start()
    first, gone, last = (
        http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20) for _ in range(3)
    )
    first.request("GET", "/v1/models/first")
    assert begun.wait(20)
    gone.request("GET", "/v1/models/gone")
    while len(front._server._connections) < 2:
        time.sleep(0.001)
    gone.close()
    while len(front._server._connections) > 1:
        time.sleep(0.001)
    last.request("GET", "/v1/models/last")
    go_on.set()
    assert [each.getresponse().status for each in (first, last)] == [404] * 2
    assert asked == ["first", "last"]
    for connection in (first, last):
        connection.close()
    front.stop()


def test_stopping_waits_for_the_answers_under_way(options, free_port):
    class Core:
        metrics, journal = Metrics(), Journal()

        def status(self, request):
            asked.set()
            go_on.wait(20)
            raise not_found("after all")

    asked, go_on, stopped = threading.Event(), threading.Event(), threading.Event()
    chosen = options(rest_api_port=free_port())
    front = RestFront(Core(), Admin(None, None, None), chosen, tokens=None)
    front.start()
    connection = http.client.HTTPConnection("localhost", chosen.rest_api_port, timeout=20)
    connection.request("GET", "/v1/models/m")
    assert asked.wait(20)
    stopping = threading.Thread(target=lambda: (front.stop(), stopped.set()))
    stopping.start()
    assert not stopped.wait(0.3)
    go_on.set()
    assert connection.getresponse().status == 404
    assert stopped.wait(20)
    connection.close()
    stopping.join()
