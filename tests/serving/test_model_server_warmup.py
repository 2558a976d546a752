import numpy as np
import pytest
import tensorflow as tf
from tensorflow.core.example.example_pb2 import Example
from tensorflow_serving.apis.prediction_log_pb2 import PredictionLog

from serving.model_server.batching import Batching
from serving.model_server.calls import Call
from serving.model_server.errors import ServingError
from serving.model_server.flags import Options
from serving.model_server.loader import Loader
from serving.model_server.metrics import Metrics


def predict_log(by=1.0, signature=""):
    log = PredictionLog()
    request = log.predict_log.request
    request.model_spec.name = "whatever it was then"
    request.model_spec.version.value = 99
    request.model_spec.signature_name = signature
    request.inputs["by"].CopyFrom(tf.make_tensor_proto(np.float32(by)))
    return log.SerializeToString()


def example_log(kind, signature):
    log = PredictionLog()
    request = getattr(log, kind).request
    example = Example()
    example.features.feature["x"].float_list.value.append(1)
    request.input.example_list.examples.append(example)
    if kind == "multi_inference_log":
        task = request.tasks.add(method_name="tensorflow/serving/regress")
        task.model_spec.name = "m"
        task.model_spec.signature_name = signature
    else:
        request.model_spec.signature_name = signature
    return log.SerializeToString()


@pytest.fixture
def version(tmp_path, model_root):
    """A copy of a version; says how to write its warm-up records."""

    def copy(path, *records):
        folder = tmp_path / "version"
        for source in sorted((model_root / path).rglob("*")):
            target = folder / source.relative_to(model_root / path)
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_file():
                target.write_bytes(source.read_bytes())
        (folder / "assets.extra").mkdir()
        with tf.io.TFRecordWriter(str(folder / "assets.extra/tf_serving_warmup_requests")) as out:
            for record in records:
                out.write(record)
        return folder

    return copy


def loaded(folder, **changed):
    """Returns the servable, and the metrics of its loading."""
    metrics = Metrics()
    options = Options(**changed)
    loader = Loader(options, metrics, Batching(options, metrics))
    return loader.load(str(folder), "m"), metrics


def count(servable):
    (value,) = servable.run({"by:0": np.float32(0)}, ["AssignAdd:0"], Call())
    return float(value)


def failure(folder):
    with pytest.raises(ServingError) as raised:
        loaded(folder)
    return str(raised.value)


@pytest.mark.parametrize(
    ("changed", "times"),
    [
        ({}, 1),
        ({"num_request_iterations_for_warmup": 3}, 3),
        ({"num_request_iterations_for_warmup": -1}, 1),
        ({"enable_model_warmup": False}, 0),
    ],
)
def test_the_records_are_asked_as_often_as_told(version, changed, times):
    folder = version("counter/1", predict_log(1), predict_log(10))
    servable, metrics = loaded(folder, **changed)
    assert count(servable) == 11 * times
    assert metrics.warmup_records.total() == (2 if times else 0)
    servable.close()


def test_every_kind_of_request_warms_up(version):
    folder = version(
        "examples/3",
        example_log("classify_log", ""),
        example_log("regress_log", "regress"),
        example_log("multi_inference_log", "regress"),
        b"",
    )
    servable, metrics = loaded(folder)
    assert metrics.warmup_records.total() == 4
    assert metrics.runs.total() == 3
    servable.close()


@pytest.mark.parametrize(("kind", "number"), [("predict_streamed_log", 7), ("session_run_log", 5)])
def test_other_kinds_are_not_for_warming_up(version, kind, number):
    log = PredictionLog()
    getattr(log, kind).SetInParent()
    message = failure(version("counter/1", log.SerializeToString()))
    assert message == f"UNIMPLEMENTED: Unsupported log_type for warmup: {number}"


def test_signatures_warm_up_where_there_are_no_records(model_root):
    servable, metrics = loaded(model_root / "two_inputs/7", enable_signature_warmup=True)
    assert metrics.runs.total() == 3
    servable.close()


def test_operations_that_initialize_are_no_signatures_to_warm_up(model_root, caplog):
    caplog.set_level("INFO")
    servable, _ = loaded(model_root / "half_plus/2", enable_signature_warmup=True)
    assert "__saved_model_init_op" in servable.signatures
    assert "could not be warmed up" not in caplog.text
    servable.close()


def test_records_come_before_signatures(version):
    servable, metrics = loaded(version("counter/1", predict_log()), enable_signature_warmup=True)
    assert metrics.runs.total() == 1
    servable.close()


def test_a_signature_that_wants_more_than_it_tells_is_no_reason_not_to_load(model_root):
    servable, metrics = loaded(model_root / "examples/3", enable_signature_warmup=True)
    assert metrics.runs.total() == len(servable.signatures) - 1
    servable.close()


def test_a_failing_request_fails_the_load(version):
    message = failure(version("counter/1", predict_log(), predict_log(signature="q")))
    assert message == 'FAILED_PRECONDITION: Serving signature key "q" not found.'


def test_more_than_a_thousand_records_are_too_many(version):
    folder = version("counter/1", *[predict_log()] * 1001)
    file = folder / "assets.extra/tf_serving_warmup_requests"
    text = f"Number of warmup records exceeds the maximum (1000) at {file}"
    assert failure(folder) == f"INVALID_ARGUMENT: {text}"


def test_a_record_that_is_no_request_is_refused(version):
    folder = version("counter/1", b"\xff\xff")
    assert failure(folder).startswith("INVALID_ARGUMENT: Failed to parse warmup record: ")


def test_a_file_that_is_no_tfrecord_is_refused(version):
    folder = version("counter/1")
    (folder / "assets.extra/tf_serving_warmup_requests").write_bytes(b"q" * 100)
    message = failure(folder)
    assert message.startswith("DATA_LOSS: ")
    assert message.endswith(". Please verify your warmup data is in TFRecord format.")
