import numpy as np
import pytest
import tensorflow as tf

from pipelines.store import FeatureStore, write_features

ROWS = [[3, 1], [], [4, 1, 5], [9], []]


def ragged(rows, dtype=tf.int32):
    return tf.ragged.constant(rows, dtype, ragged_rank=1)


def some(first, last):
    """Returns the features of a few examples: two sequences and two that are none."""
    frames = [np.arange(6 * n).reshape(2 * n, 3) + 0.5 for n in range(5)]
    return {
        "text": ragged(ROWS[first:last]),
        "frames": tf.RaggedTensor.from_row_lengths(
            tf.constant(np.concatenate(frames[first:last]), tf.float32),
            [len(each) for each in frames[first:last]],
        ),
        "label": tf.range(first, last, dtype=tf.int64),
        "image": tf.cast(tf.reshape(tf.range(5 * 2 * 3), [5, 2, 3])[first:last], tf.uint8),
    }


@pytest.fixture
def store(tmp_path):
    return write_features([[some(0, 2), some(2, 3)], [some(3, 5)]], tmp_path / "features")


def plain(features):
    return {
        name: each.to_list() if isinstance(each, tf.RaggedTensor) else each.numpy().tolist()
        for name, each in features.items()
    }


@pytest.mark.parametrize("cache", ["disk", "memory", None])
@pytest.mark.parametrize("examples", [[0, 1, 2, 3, 4], [4, 2, 2, 0], [1], []])
def test_examples_come_back_as_they_were_in_any_order(store, cache, examples):
    whole = {name: [column[n] for n in examples] for name, column in plain(some(0, 5)).items()}
    opened = FeatureStore(store.folder, cache)
    found = opened.gather(tf.constant(examples, tf.int64))
    assert plain(found) == whole
    dtypes = {name: feature.dtype for name, feature in some(0, 5).items()}
    assert {name: feature.dtype for name, feature in found.items()} == dtypes


@pytest.mark.parametrize("cache", ["disk", "memory"])
def test_a_store_holds_what_the_files_held_when_it_was_opened(store, cache):
    """Those of another run in the same folder, say; small ones are read at once."""
    opened = [FeatureStore(store.folder, cache)]
    (store.folder / "label.values").write_bytes(bytes(5 * 8))
    opened.append(FeatureStore(store.folder, cache))
    found = [each.values("label").numpy().tolist() for each in opened]
    assert found == [[0, 1, 2, 3, 4], [0, 0, 0, 0, 0]]


def test_it_knows_parts_sequences_and_lengths(store):
    opened = FeatureStore(store.folder)
    assert (opened.examples, opened.sequences) == ([3, 2], ["text", "frames"])
    assert opened.lengths().tolist() == [[len(row), 2 * n] for n, row in enumerate(ROWS)]


def test_sequences_of_no_length_take_no_file_of_values(tmp_path):
    store = write_features([[{"text": ragged([[], []])}]], tmp_path)
    assert store.gather(tf.constant([1, 0], tf.int64))["text"].to_list() == [[], []]


def test_what_is_not_asked_for_is_not_read(tmp_path):
    """Of 200 MB, a few pages."""
    size = 50_000_000
    store = write_features([[{"x": tf.zeros([size], tf.int32)}]], tmp_path)

    @tf.function
    def gather(n):
        return store.gather(n)["x"]

    gather(tf.constant([5], tf.int64))
    before = _resident()
    gather(tf.constant([0, size - 1], tf.int64))
    assert _resident() - before < 20_000_000


def _resident():
    with open("/proc/self/status", encoding="ascii") as status:
        (line,) = (line for line in status if line.startswith("VmRSS:"))
    return 1024 * int(line.split()[1])


def test_writing_again_leaves_nothing_of_before(store):
    write_features([[{"label": tf.constant([7])}]], store.folder)
    assert plain(FeatureStore(store.folder).gather(tf.constant([0], tf.int64))) == {"label": [7]}
    assert sorted(path.name for path in store.folder.iterdir()) == ["label.values", "store.json"]


@pytest.mark.parametrize(
    "feature",
    [tf.constant(["a"]), tf.ragged.constant([[[1], [2, 3]]]), ragged([["a"]], tf.string)],
    ids=["string", "twice ragged", "ragged string"],
)
def test_what_no_batch_can_be_made_of_is_refused_with_its_name(tmp_path, feature):
    with pytest.raises(ValueError, match=r"must be of numbers, .* Received: 'text'"):
        write_features([[{"text": feature}]], tmp_path)


@pytest.mark.parametrize("other", [tf.zeros([1, 3]), tf.zeros([1, 2], tf.int32)])
def test_shapes_and_dtypes_that_change_are_refused(tmp_path, other):
    with pytest.raises(ValueError, match=r"one dtype, and of one shape .* Received: 'x', float32"):
        write_features([[{"x": tf.zeros([4, 2])}, {"x": other}]], tmp_path)
