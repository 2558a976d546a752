"""What a prediction asks of a signature, without a graph."""

from types import SimpleNamespace

import numpy as np
import pytest
from google.protobuf import text_format
from tensorflow.core.protobuf.meta_graph_pb2 import SignatureDef
from tensorflow_serving.apis.model_pb2 import ModelSpec

from serving.model_server import predict
from serving.model_server.calls import Call, now
from serving.model_server.errors import Code, ServingError

ONE = np.float32(1)
SIGNATURE = text_format.Parse(
    """
    inputs { key: "a" value { name: "a:0" } } inputs { key: "b" value { name: "b:0" } }
    defaults { key: "b" value { dtype: DT_FLOAT tensor_shape {} float_val: 7 } }
    method_name: "tensorflow/serving/predict"
    """,
    SignatureDef(),
)


def test_what_is_not_given_has_its_default():
    assert predict.feeds(SIGNATURE, {"a": ONE}) == {"a:0": 1, "b:0": 7}
    assert predict.feeds(SIGNATURE, {"a": ONE, "b": ONE}) == {"a:0": 1, "b:0": 1}


@pytest.mark.parametrize(
    ("inputs", "said"),
    [
        (
            {"a": ONE, "c": ONE},
            "Inputs contains invalid name. Used request inputs: a, request input: a,c",
        ),
        (
            {"b": ONE},
            "Signature input alias: a(feed name: a:0) not found in request and no default value "
            "provided. Inputs expected to be in the request {b}, or default input alias set: b",
        ),
    ],
)
def test_inputs_that_are_not_the_signature_s_are_refused(inputs, said):
    with pytest.raises(ServingError) as raised:
        predict.feeds(SIGNATURE, inputs)
    assert (raised.value.code, raised.value.message) == (Code.INVALID_ARGUMENT, said)


def test_a_signature_of_another_method_is_refused_where_methods_are_checked():
    servable = SimpleNamespace(signatures={"serving_default": SignatureDef(method_name="q")})
    with pytest.raises(ServingError) as raised:
        now(predict.run(servable, ModelSpec(), {}, (), Call(), check_method=True))
    assert raised.value.code is Code.INTERNAL
    assert raised.value.message == (
        "Expected prediction signature method_name to be one of {tensorflow/serving/predict, "
        "tensorflow/serving/classify, tensorflow/serving/regress}. Was: q"
    )
