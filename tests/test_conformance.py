"""What holds of the task of every job, whatever its kind.

A new job is tested by being there. A new kind of task adds one function: `_examples` of its
configuration.
"""

import base64
import functools
import itertools
import json
import random
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from dataclasses import dataclass, fields, replace

import keras
import numpy as np
import pytest
import tensorflow as tf

from keras_models.configs.classification import Classification
from keras_models.configs.image import Image
from keras_models.configs.language_modeling import LanguageModeling
from keras_models.configs.regression import Regression
from keras_models.configs.segmentation import Segmentation
from keras_models.configs.series import Series
from keras_models.configs.tagging import Tagging
from keras_models.configs.transcription import Text, TextToText
from keras_models.frontends.padding import LENGTHS, pad
from keras_models.tasks.explanation import NotExplained
from keras_models.tasks.task import Task
from pipelines import examples, jobfile, strategies
from pipelines.display import Display
from pipelines.examples import together
from pipelines.folder import RunFolder
from pipelines.job import Data, Train
from pipelines.run import Run
from pipelines.sources.records import to_example
from pipelines.step import TrainStep, forward_and_backward
from serving.export import export

SEED = np.array([3, 7], np.int32)


@dataclass
class Examples:
    """Raw data of one kind of task, by field; what a kind does not have is None.

    Attributes:
        records: Raw records: texts, bytes, or arrays. In every sequence the first is the longest
            and the second the shortest.
        empty: Inputs of nothing, which are to be answered.
        longest: Inputs of the greatest length that is answered.
        too_long: Inputs that are longer by one.
        limit: That length, as the refusal names it.
        foreign: Inputs that hold something that training did not know.
        native: The same inputs without it.
    """

    records: dict[str, list]
    empty: dict[str, list] | None = None
    longest: dict[str, list] | None = None
    too_long: dict[str, list] | None = None
    limit: int | None = None
    foreign: dict[str, list] | None = None
    native: dict[str, list] | None = None


@functools.singledispatch
def _examples(config) -> Examples:
    pytest.fail(
        f"A kind of task must have example records: add a function `_examples` for "
        f"{type(config).__name__} to {__file__}."
    )


@_examples.register
def _(config: TextToText) -> Examples:
    name = config.input.field
    lengths = {name: (9, 2, 5, 7), config.output.field: (6, 1, 3, 4)}
    records = {each.field: [_text(each, n) for n in lengths[each.field]] for each in config.texts}
    between = "漢{}🙂" if config.input.unit == "character" else "漢 {} 🙂"
    found = Examples(
        records=records,
        empty={name: [""]},
        foreign={name: [between.format(text) for text in records[name]]},
        native={name: records[name]},
    )
    if config.input.unit == "subword":  # of how many parts a text is, training says
        return found
    three, longest, too_long = (
        _text(config.input, n) for n in (3, config.max_length, config.max_length + 1)
    )
    return replace(
        found,
        longest={name: [three, longest]},
        too_long={name: [three, too_long]},
        limit=config.max_length,
    )


@_examples.register
def _(config: Tagging) -> Examples:
    text, tags = config.texts
    lengths, limit = (9, 2, 5, 7), config.max_length
    return Examples(
        records={each.field: [_text(each, n) for n in lengths] for each in (text, tags)},
        empty={text.field: [""]},
        longest={text.field: [_text(text, 3), _text(text, limit)]},
        too_long={text.field: [_text(text, 3), _text(text, limit + 1)]},
        limit=limit,
    )


@_examples.register
def _(config: Segmentation) -> Examples:
    inputs = _examples(config.input)
    shape = config.input.height, config.input.width, 1
    masks = [_pixels(seed, *shape) % len(config.classes) for seed in range(4)]
    return replace(inputs, records={**inputs.records, config.mask: masks})


@_examples.register
def _(config: Classification) -> Examples:
    inputs = _examples(config.input)
    return replace(inputs, records={**inputs.records, config.label: ["a", "b", "c", "a"]})


@_examples.register
def _(config: Regression) -> Examples:
    inputs, values = _examples(config.input), list(np.array([1, -2, 5, 3], np.float32))
    return replace(inputs, records={**inputs.records, config.value: values})


@_examples.register
def _(config: Series) -> Examples:
    def series(steps):
        shape = (steps, *config.record.shape[1:])
        return np.random.default_rng(steps).normal(size=shape).astype(np.float32)

    name, limit = config.field, config.max_length
    return Examples(
        records={name: [series(n) for n in (9, 2, 5, 7)]},
        longest={name: [series(3), series(limit)]},
        too_long={name: [series(3), series(limit + 1)]},
        limit=limit,
    )


@_examples.register
def _(config: LanguageModeling) -> Examples:
    name = config.text.field
    records = [_text(config.text, length) for length in (9, 2, 5, 7)]
    between = {"character": "漢{}🙂", "token": "漢 {} 🙂"}[config.text.unit]
    return Examples(
        records={name: records},
        empty={name: [""]},
        foreign={name: [between.format(text) for text in records]},
        native={name: records},
    )


@_examples.register
def _(config: Image) -> Examples:
    name, limit = config.field, config.largest
    shape = config.height, config.width, config.channels
    images = [_pixels(seed, *shape) for seed in range(4)]
    files = [*map(_png, images[:3]), tf.io.encode_jpeg(images[3]).numpy()]
    return Examples(
        records={name: files},
        longest={name: [files[0], _png(_pixels(4, 1, limit, 1))]},
        too_long={name: [files[0], _png(_pixels(4, 1, limit + 1, 1))]},
        limit=limit,
    )


def _pixels(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def _png(pixels: np.ndarray) -> bytes:
    return tf.io.encode_png(pixels).numpy()


def _text(config: Text, length: int) -> str:
    """Returns a text of so many symbols, always the same one."""
    symbols = random.Random(length).choices("abcdefg", k=length)
    return ("" if config.unit == "character" else " ").join(symbols)


def _small(config):
    """Returns a model's configuration with sizes that differ and are small multiples of 8."""
    sizes = [f.name for f in fields(config) if isinstance(getattr(config, f.name), int)]
    large = [name for name in sizes if getattr(config, name) > 8]
    return replace(config, **{name: 8 * n for n, name in enumerate(large, start=1)})


@dataclass
class Built:
    """A job's task of a small model, its examples, where its vocabulary and its variables lie."""

    name: str
    task: object
    examples: Examples
    folder: object
    strategy: tf.distribute.Strategy
    again: Callable[..., object]  # builds another one, where a strategy and fields are given

    def features(self, *rows):
        """Returns the features of the records in these rows, or of all."""
        records = _rows(self.examples.records)
        return self.task.features(together([records[n] for n in rows] if rows else records))

    def batch(self, *rows):
        return pad(self.features(*rows))

    def answer(self, inputs):
        """Returns the served answers to raw inputs by name."""
        given = examples.inputs(self.task, _rows(inputs))
        return self.answer_to(given)

    def answer_to(self, given):
        """Returns the served answers to what the signature takes, by name."""
        names = list(self.task.input_signature)
        outputs = self.serving_default(*(tf.constant(given[name]) for name in names))
        return {name: _plain(value) for name, value in outputs.items()}

    @functools.cached_property
    def serving_default(self):
        return self.task.signatures()["serving_default"]

    @property
    def inputs(self):
        """The inputs of all records."""
        records, names = self.examples.records, self.task.input_signature
        return {name: records[name] for name in names if name in records}

    @property
    def given(self):
        """The same as the signature takes them."""
        return examples.inputs(self.task, _rows(self.inputs))


def _rows(columns) -> list[examples.Example]:
    """Returns raw examples one by one."""
    plain = {
        name: [value.encode() if isinstance(value, str) else value for value in column]
        for name, column in columns.items()
    }
    return [dict(zip(plain, row, strict=True)) for row in zip(*plain.values(), strict=True)]


@pytest.fixture(scope="module", params=jobfile.names())
def built(request, tmp_path_factory) -> Built:
    """The task of a job's quick setting on a handful of records, its weights all random."""
    job = jobfile.load(request.param).job(quick=True)
    folder = tmp_path_factory.mktemp(request.param)
    data = _examples(job.task)
    job.task.prepare([together(_rows(data.records))], folder / "assets")
    strategy = strategies.choose("one_device")

    def build(where=strategy, **fields):
        with where.scope():
            return job.task.build(replace(_small(job.model), **fields), folder / "assets")

    task = build()
    generator = np.random.default_rng(0)
    for variable in task.model.variables:
        variable.assign(generator.normal(scale=0.5, size=variable.shape))
    return Built(request.param, task, data, folder, strategy, build)


def _plain(value):
    """Returns texts `[B]` as a list, all else as an array."""
    value = value.numpy()
    if value.dtype != object:
        return value
    texts = np.array([text.decode() for text in value.flat], str).reshape(value.shape)
    return texts.tolist() if texts.ndim == 1 else texts


def _assert_same(found, expected):
    """Compares answers: texts exactly, numbers nearly."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if isinstance(value, list) or value.dtype.kind not in "f":
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        else:
            np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-4, err_msg=name)


def _row(answers, n):
    return {name: value[n : n + 1] for name, value in answers.items()}


def _losses(built, batch):
    return built.task.losses(batch).numpy()


def _spoiled(batch):
    """Returns the batch with something else in its padding."""
    spoiled = dict(batch)
    for name in batch:
        if name + LENGTHS in batch:
            mask = tf.sequence_mask(batch[name + LENGTHS], tf.shape(batch[name])[1])
            mask = tf.reshape(mask, [*mask.shape, *[1] * (batch[name].shape.rank - 2)])
            spoiled[name] = tf.where(mask, batch[name], tf.ones_like(batch[name]))
    return spoiled


def test_features_in_tf_data_are_those_of_eager_code(built):
    records = together(_rows(built.examples.records))
    data = tf.data.Dataset.from_tensor_slices(records).ragged_batch(3)
    batches = [built.task.features(records) for records in data]
    for found, expected in zip(data.map(built.task.features), batches, strict=True):
        assert found.keys() == expected.keys()
        for name, feature in expected.items():
            assert isinstance(found[name], type(feature)), name
            for part, other in zip(*(_parts(f) for f in (found[name], feature)), strict=True):
                np.testing.assert_allclose(part, other, rtol=1e-5, atol=1e-5, err_msg=name)


def _parts(feature):
    ragged = isinstance(feature, tf.RaggedTensor)
    return [feature.flat_values, *feature.nested_row_splits] if ragged else [feature]


def test_all_examples_can_be_learnt_from(built):
    assert built.task.feasible(built.features()).numpy().all()


def test_padding_changes_no_loss(built):
    batch = built.batch(0, 1)
    sequences = [name for name in batch if name + LENGTHS in batch]
    for name in sequences:
        longest, shortest = batch[name + LENGTHS].numpy()
        assert longest == batch[name].shape[1] > shortest
    alone = [_losses(built, built.batch(row))[0] for row in (0, 1)]
    wider = {name: tf.shape(batch[name])[1] + 3 for name in sequences}
    for padded in (batch, _spoiled(batch), _spoiled(pad(built.features(0, 1), wider))):
        np.testing.assert_allclose(_losses(built, padded), alone, rtol=1e-5, atol=1e-5)


def test_the_order_of_a_batch_changes_no_loss(built):
    losses = _losses(built, built.batch(0, 1, 2))
    assert losses.shape == (3,)
    assert losses.dtype == np.float32
    assert len(set(losses.tolist())) == 3
    np.testing.assert_allclose(_losses(built, built.batch(2, 0, 1)), losses[[2, 0, 1]], rtol=1e-5)


def test_losses_and_gradients_under_xla_are_those_of_a_graph(built):
    batch, seed, scale = built.batch(), tf.constant(SEED), tf.constant(1.0)
    function = functools.partial(forward_and_backward, built.task)
    graph, compiled = (
        tf.function(function, jit_compile=jit_compile)(batch, seed, scale)
        for jit_compile in (False, True)
    )
    np.testing.assert_allclose(compiled[0], graph[0], rtol=1e-4)
    for found, expected in zip(compiled[2], graph[2], strict=True):
        assert np.linalg.norm(found - expected) <= 1e-4 * (1 + np.linalg.norm(expected))


def test_a_training_step_and_a_decoding_are_traced_once_for_each_bucket(built):
    """With static shapes, as a TPU needs them to compile each once, however often it comes."""
    config = Train(static_shapes=True, jit_compile=False, optimizer="sgd", learning_rate=1e-3)
    step = TrainStep(built.task, config, built.strategy)
    predict = tf.function(built.task.predict)
    sequences = [name for name in built.batch() if name + LENGTHS in built.batch()]
    buckets = [pad(built.features(), dict.fromkeys(sequences, width)) for width in (9, 12)]
    before = [variable.numpy() for variable in built.task.model.variables]
    for batch in [*buckets, *buckets]:
        totals, _ = step(((batch,),), stop=False)
        assert float(totals.skipped) == 0.0
        predict(batch)
    shapes = {tuple(batch[name].shape for name in batch) for batch in buckets}
    assert step.compilations == predict.experimental_get_tracing_count() == len(shapes)
    for variable, value in zip(built.task.model.variables, before, strict=True):
        variable.assign(value)


@pytest.mark.slow
def test_accumulated_steps_compile_with_their_updates(built):
    """As a TPU compiles them: all of a call as one."""
    step = TrainStep(built.task, Train(static_shapes=True, accumulate=2), built.strategy)
    before = [variable.numpy() for variable in built.task.model.variables]
    batch = built.batch()
    groups = ((batch, batch), (batch, batch))
    whole = tf.function(step._several, jit_compile=True)
    totals, _ = whole(groups, step.step.read_value(), tf.constant(0.0))
    assert float(totals.skipped) == 0.0
    assert float(totals.examples) == 4 * len(next(iter(batch.values())))
    for variable, value in zip(built.task.model.variables, before, strict=True):
        assert np.any(variable.numpy() != value)
        variable.assign(value)


ROWS = ((0, 1, 2), (3, 0, 1, 2), (2, 1), (0, 3, 1))  # of which most do not divide
SGD = Train(
    optimizer="sgd",
    beta_1=0.0,
    learning_rate=0.1,
    schedule="constant",
    warmup_steps=0,
    clip_limit=0.5,
    jit_compile=False,
)


def _dropouts(config):
    """Returns the names of the rates of dropout."""
    return [field.name for field in fields(config) if "dropout" in field.name]


def _trained(built, strategy, train=SGD, rows=ROWS, **changes):
    """Returns the weights after ten steps without dropout, which is another one on each replica.

    Where there is a moving average of them, it is among them.
    """
    config = jobfile.load(built.name).job(quick=True).model
    task = built.again(strategy, **dict.fromkeys(_dropouts(config), 0.0), **changes)
    for variable, value in zip(task.model.variables, built.task.model.variables, strict=True):
        variable.assign(value.numpy())
    step = TrainStep(task, train, strategy)
    batches = itertools.cycle(built.batch(*each) for each in rows)
    while int(step.step) < 10:
        of_a_call = range(train.steps_per_call)
        step(
            tuple(tuple(itertools.islice(batches, train.accumulate)) for _ in of_a_call), stop=False
        )
    averages = step.average.averages if step.average else []
    return [variable.numpy() for variable in [*task.model.variables, *averages]]


def test_two_replicas_do_what_one_does(built):
    two = strategies.mirrored(tf.config.list_logical_devices("CPU")[:2])
    before = [variable.numpy() for variable in built.task.model.variables]
    config = jobfile.load(built.name).job(quick=True).model
    for changes in [{}, {"fused_loss": True}] if hasattr(config, "fused_loss") else [{}]:
        weights = _trained(built, built.strategy, **changes)
        others = _trained(built, two, **changes)
        for one, other, start in zip(weights, others, before, strict=True):
            assert np.any(one != start)
            assert np.linalg.norm(other - one) <= 1e-6 * np.linalg.norm(one)


@pytest.mark.slow
@pytest.mark.parametrize("clip", ["none", "norm", "value"])
def test_three_replicas_do_what_one_does(built, clip):
    """Accumulating batches, several steps a call, with an average of the weights."""
    three = strategies.mirrored(tf.config.list_logical_devices("CPU")[:3])
    more = {"clip": clip, "accumulate": 2, "steps_per_call": 2, "ema": 0.9}
    train = replace(SGD, **more, learning_rate=0.01, clip_limit=0.05)
    rows = ((0, 1, 2), (3, 0, 1, 2), (0, 3, 1), (2, 0, 1, 3, 2))
    weights = _trained(built, built.strategy, train, rows)
    for one, other in zip(weights, _trained(built, three, train, rows), strict=True):
        assert np.linalg.norm(other - one) <= 1e-6 * np.linalg.norm(one)


def test_a_compiled_decoding_is_that_of_a_graph(built):
    batch = built.batch()
    graph, compiled = (
        tf.nest.flatten(tf.function(built.task.predict, jit_compile=jit_compile)(batch))
        for jit_compile in (False, True)
    )
    for found, expected in zip(compiled, graph, strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_in_mixed_precision_losses_and_gradients_are_nearly_the_same(built, precision):
    keras.config.set_dtype_policy(f"mixed_{precision}")
    try:
        task = built.again()
        for variable, right in zip(task.model.variables, built.task.model.variables, strict=True):
            assert variable.dtype == "float32"
            variable.assign(right)
        seed, scale = tf.constant(SEED), tf.constant(1.0)
        found = forward_and_backward(task, built.batch(), seed, scale)
    finally:
        keras.config.set_dtype_policy("float32")
    expected = forward_and_backward(built.task, built.batch(), seed, scale)
    np.testing.assert_allclose(found[0], expected[0], rtol=0.03)
    difference = [a - b for a, b in zip(found[2], expected[2], strict=True)]
    norm, whole = (float(tf.linalg.global_norm(each)) for each in (difference, expected[2]))
    assert norm < 0.1 * whole


def test_dropout_is_a_function_of_its_seed(built):
    batch = built.batch()
    config = jobfile.load(built.name).job(quick=True).model
    if not any(getattr(config, name) for name in _dropouts(config)):
        pytest.skip("this model has no dropout")
    losses = built.task.losses(batch, SEED).numpy()
    np.testing.assert_array_equal(built.task.losses(batch, SEED), losses)
    np.testing.assert_array_equal(_losses(built, batch), _losses(built, batch))
    assert not np.allclose(built.task.losses(batch, SEED + 1), losses)


def test_gradients_reach_every_variable_and_are_finite(built):
    variables = built.task.model.trainable_variables
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(built.task.losses(built.batch()))
    gradients = tape.gradient(loss, [variable.value for variable in variables])
    for variable, gradient in zip(variables, gradients, strict=True):
        assert gradient is not None, variable.path
        gradient = tf.convert_to_tensor(gradient).numpy()
        assert np.isfinite(gradient).all(), variable.path
        assert gradient.any(), variable.path


def test_an_input_in_a_batch_is_answered_as_it_is_alone(built):
    answers = built.answer(built.inputs)
    count = len(answers[built.task.output_name])
    assert len({str(_row(answers, n)) for n in range(count)}) > 1
    for n in range(count):
        _assert_same(built.answer(_row(built.inputs, n)), _row(answers, n))


def test_the_order_of_inputs_changes_no_answer(built):
    turned = built.answer({name: column[::-1] for name, column in built.inputs.items()})
    expected = {name: value[::-1] for name, value in built.answer(built.inputs).items()}
    _assert_same(turned, expected)


def test_an_empty_input_is_answered(built):
    if built.examples.empty is None:
        pytest.skip("there is no input of nothing for this kind of task")
    empty = built.answer(built.examples.empty)
    assert all(len(value) == 1 for value in empty.values())
    both = {name: [column[0], *built.examples.empty[name]] for name, column in built.inputs.items()}
    _assert_same(_row(built.answer(both), 1), empty)


def test_no_inputs_have_no_answers(built):
    specs = built.task.input_signature
    none = {
        name: tf.zeros([0, *(size or 3 for size in spec.shape[1:])], spec.dtype)
        for name, spec in specs.items()
    }
    assert all(len(value) == 0 for value in built.answer_to(none).values())


def test_an_input_at_the_limit_is_answered_and_a_longer_one_refused(built):
    if built.examples.limit is None:
        pytest.skip("inputs of this kind of task have no limit")
    answers = built.answer(built.examples.longest)
    assert all(len(value) == 2 for value in answers.values())
    with pytest.raises(tf.errors.InvalidArgumentError, match=rf"\b{built.examples.limit}\b"):
        built.answer(built.examples.too_long)


def test_an_answer_is_explained_or_it_is_said_that_it_cannot_be(built):
    answers = tf.constant(built.answer(built.inputs)[built.task.output_name])
    inputs = {name: tf.constant(column) for name, column in built.given.items()}
    if type(built.task).explain is Task.explain:
        with pytest.raises(NotExplained, match=type(built.task).__name__):
            built.task.explain(inputs, answers)
        return
    explanations = built.task.explain(inputs, answers)
    assert len(explanations) == len(answers)
    for each in explanations:
        parts, said = len(each.inputs), len(each.outputs)
        assert each.weights.shape in {(parts, said), (parts, said + 1)}
        assert len(each.frames) == len(each.certainties) == said
        assert np.all((each.weights >= 0) & (each.weights <= 1.00001))
        assert set(each.frames) <= set(range(parts))


def test_what_training_did_not_know_is_passed_over(built):
    if built.examples.foreign is None:
        pytest.skip("this kind of task knows all there is, or has a symbol for the rest")
    _assert_same(built.answer(built.examples.foreign), built.answer(built.examples.native))


# Loads models and answers by them, one line of JSON each, where there is TensorFlow and nothing
# of ours.
_ELSEWHERE = """
import base64, json, sys
sys.path += json.loads(sys.argv[1])
import numpy as np
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow.python.framework import op_def_registry

def plain(value):
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, list):
        return [plain(x) for x in value]
    return value.decode() if isinstance(value, bytes) else value

def given(inputs):
    return {
        name: np.array([base64.b64decode(x) for x in values], object)
        if dtype == "object" else np.array(values, dtype)
        for name, (dtype, values) in inputs.items()
    }

def answer(path, inputs):
    served = tf.saved_model.load(path).signatures["serving_default"]
    outputs = served(**{name: tf.constant(column) for name, column in given(inputs).items()})
    return {name: plain(value.numpy()) for name, value in outputs.items()}

def answer_in_a_session(path, inputs):
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        model = tf.compat.v1.saved_model.load(session, ["serve"], path)
        signature = model.signature_def["serving_default"]
        feed = {signature.inputs[name].name: column for name, column in given(inputs).items()}
        fetch = {name: info.name for name, info in signature.outputs.items()}
        return {name: plain(x) for name, x in session.run(fetch, feed).items()}

def unknown_ops(path, inputs):
    with open(f"{path}/saved_model.pb", "rb") as file:
        graph = saved_model_pb2.SavedModel.FromString(file.read()).meta_graphs[0].graph_def
    own = {function.signature.name for function in graph.library.function}
    nodes = [*graph.node, *(n for function in graph.library.function for n in function.node_def)]
    return sorted({n.op for n in nodes if n.op not in own and op_def_registry.get(n.op) is None})

def ours(path, inputs):
    return [name for name in ("keras_models", "pipelines", "serving") if name in sys.modules]

for line in sys.stdin:
    function, *arguments = json.loads(line)
    print(json.dumps(globals()[function](*arguments)), flush=True)
"""


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    """Calls a function in a process that has TensorFlow and nothing of ours."""
    folder = tmp_path_factory.mktemp("elsewhere")
    paths = sorted({sysconfig.get_path(name) for name in ("purelib", "platlib")})
    command = [sys.executable, "-I", "-S", "-c", _ELSEWHERE, json.dumps(paths)]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder,
            text=True,
        ) as process,
    ):

        def call(*request):
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
            assert line, (folder / "log").read_text()[-4000:]
            return json.loads(line)

        yield call


@pytest.fixture(scope="module")
def exported(built):
    """The exported model, moved, and without the vocabulary that it was built from."""
    expected = built.answer(built.inputs)
    assets, aside = built.folder / "assets", built.folder / "aside"
    path = export(built.task, built.folder / "models", built.name)
    moved = shutil.move(path, built.folder / "elsewhere")
    assets.rename(aside)
    yield str(moved), expected
    aside.rename(assets)


def _portable(value):
    """Returns an array's dtype and values as JSON can hold them."""
    if value.dtype == object:
        return "object", [base64.b64encode(each).decode() for each in value]
    return value.dtype.name, value.tolist()


@pytest.mark.parametrize("loader", ["answer", "answer_in_a_session"])
def test_an_exported_model_answers_elsewhere_as_its_task_does_here(
    built, exported, elsewhere, loader
):
    path, expected = exported
    answers = elsewhere(loader, path, {n: _portable(value) for n, value in built.given.items()})
    texts = {name: isinstance(value, list) for name, value in expected.items()}
    _assert_same({n: v if texts[n] else np.array(v) for n, v in answers.items()}, expected)
    assert elsewhere("ours", path, {}) == []


def test_an_exported_model_needs_only_the_ops_of_tensorflow(exported, elsewhere):
    path, _ = exported
    assert elsewhere("unknown_ops", path, {}) == []


def test_the_quick_setting_runs_from_a_file_to_a_verified_server(built, tmp_path):
    """A few steps of it, on the example records as somebody's own file."""
    file, own = jobfile.load(built.name), tmp_path / "own.tfrecord"
    job = file.job(quick=True)
    with tf.io.TFRecordWriter(str(own)) as writer:
        for record in _rows(built.examples.records):
            writer.write(to_example(record, job.task.fields))
    size = None if job.data.batch_size is None else 4
    train = replace(
        job.train, steps=2, warmup_steps=1, evaluate_every=2, log_every=1, jit_compile=False
    )
    data = Data(train=own, validation=own, test=own, buckets=2, batch_tokens=64, batch_size=size)
    folder = RunFolder(tmp_path / "run")
    folder.start(file, replace(job, data=data, train=train))
    Run(folder, Display()).run()
    assert folder.done("train")["steps"] == 2
    assert folder.done("verify")["examples"] == len(_rows(built.examples.records))
    assert {*built.task.metrics, "loss"} <= folder.done("evaluate").keys()
    assert (folder.path / "report.md").read_text().startswith(f"# {built.name}")
