import pytest

from serving.model_server.errors import ServingError
from serving.model_server.labels import Labels


def labels(*available, even_unavailable=False):
    return Labels(lambda model, version: (model, version) in available, even_unavailable)


def failure(call, *arguments):
    with pytest.raises(ServingError) as raised:
        call(*arguments)
    return str(raised.value)


def test_a_label_names_a_version():
    held = labels(("m", 1), ("m", 2), ("n", 1))
    held.assign({"m": {"stable": 1, "canary": 2}, "n": {"stable": 1}})
    assert [held.version("m", "stable"), held.version("m", "canary")] == [1, 2]


def test_labels_are_exchanged_as_a_whole():
    held = labels(("m", 1))
    held.assign({"m": {"stable": 1}})
    held.assign({"m": {"best": 1}})
    assert failure(held.version, "m", "stable") == (
        "INVALID_ARGUMENT: Unrecognized servable version label: stable"
    )


def test_before_the_first_labels_a_caller_may_come_back():
    text = "UNAVAILABLE: Model labels does not init yet.stable"
    assert failure(labels().version, "m", "stable") == text


REFUSED = (
    "FAILED_PRECONDITION: Request to assign label to version 2 of model m, which is not currently "
    "available for inference"
)


def test_a_label_needs_an_available_version():
    held = labels(("m", 1), ("n", 1))
    held.assign({"m": {"stable": 1}})
    assert failure(held.assign, {"m": {"stable": 2}, "n": {"stable": 1}}) == REFUSED
    assert held.version("m", "stable") == 1
    assert held.version("n", "stable") == 1


def test_where_allowed_a_new_label_may_wait_for_its_version():
    held = labels(("m", 1), even_unavailable=True)
    held.assign({"m": {"stable": 1, "canary": 2}})
    assert held.version("m", "canary") == 2
    assert failure(held.assign, {"m": {"stable": 2}}) == REFUSED
