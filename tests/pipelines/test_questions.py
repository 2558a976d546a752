import re

import pytest

from pipelines.errors import UsageError
from pipelines.questions import inputs


def takes(**dtypes):
    return {name: {"dtype": dtype, "shape": shape} for name, (dtype, shape) in dtypes.items()}


TEXT = takes(text=("string", [None]))
SERIES = takes(series=("float32", [None, None]), series_lengths=("int32", [None]))
GENERATE = takes(prompt=("string", [None]), temperature=("float32", [None]), seed=("int64", []))


def test_texts_and_files_go_to_the_only_input():
    assert inputs(["a", "b"], {}, TEXT) == {"text": ["a", "b"]}
    assert inputs([b"\x89PNG"], {}, TEXT) == {"text": [b"\x89PNG"]}


def test_numbers_are_read_as_json_and_padded_where_lengths_go_with_them():
    assert inputs(["[1, 2.5, 3]", "[4]"], {}, SERIES) == {
        "series": [[1, 2.5, 3], [4, 0, 0]],
        "series_lengths": [3, 1],
    }
    assert inputs(["[1, 2]"], {}, takes(pixels=("float32", [None, 2]))) == {"pixels": [[1, 2]]}


def test_a_series_of_several_numbers_a_step_is_padded_with_as_many():
    asked = inputs(["[[1, 2]]", "[[3, 4], [5, 6]]"], {}, SERIES)
    assert asked["series"] == [[[1, 2], [0, 0]], [[3, 4], [5, 6]]]


def test_what_is_given_goes_with_everything_that_is_asked():
    assert inputs(["a", "b"], {"temperature": "0.5", "seed": "7"}, GENERATE) == {
        "prompt": ["a", "b"],
        "temperature": [0.5, 0.5],
        "seed": 7,
    }


def test_the_input_of_strings_is_asked_where_others_have_defaults():
    assert inputs(["a"], {}, GENERATE) == {"prompt": ["a"]}


@pytest.mark.parametrize(
    ("asked", "given", "signature", "told"),
    [
        (["a"], {"heat": "1"}, GENERATE, "prompt (string), seed (int64), temperature (float32)"),
        (["a"], {}, takes(a=("string", [None]), b=("string", [None])), "a (string), b (string)"),
        (["one"], {}, SERIES, "as in '[0.5, 1, 2]'. Received: 'one'"),
        (["a"], {"seed": "x"}, GENERATE, "Received: 'x'"),
        (["[]"], {}, SERIES, "`series` must be lists of numbers. Received: [[]]"),
        (["3"], {}, SERIES, "`series` must be lists of numbers. Received: [3]"),
    ],
)
def test_what_does_not_fit_is_refused(asked, given, signature, told):
    with pytest.raises(UsageError, match=re.escape(told)):
        inputs(asked, given, signature)
