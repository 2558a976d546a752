import contextlib
import os
import re
import resource
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace

import keras
import pytest
import tensorflow as tf
from tensorflow.core.protobuf import saved_model_pb2

from serving.export import ExportError, export, next_version

BYTES_OF_A_FILE = 2**14


class Looker:
    """A task of a vocabulary and a weight: words in, their numbers plus the weight out.

    As far as `export` goes this is a task. It is the least that has all that is exported:
    weights, an asset and a signature.
    """

    def __init__(self, vocabulary: Path, weight: float = 0.5):
        self.model = keras.layers.Layer()
        self.model.add_weight((), initializer=keras.initializers.Constant(weight))
        whole, number = tf.lookup.TextFileIndex.WHOLE_LINE, tf.lookup.TextFileIndex.LINE_NUMBER
        initializer = tf.lookup.TextFileInitializer(
            str(vocabulary), tf.string, whole, tf.int64, number
        )
        self.frontend = tf.Module()
        self.frontend.table = tf.lookup.StaticHashTable(initializer, -1)
        self.frontends = {"word": self.frontend}

    def signatures(self):
        @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "word")])
        def serving_default(word):
            numbers = tf.cast(self.frontend.table.lookup(word), tf.float32)
            return {"number": numbers + self.model.variables[0]}

        return {"serving_default": serving_default}


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    vocabulary = tmp_path_factory.mktemp("vocabulary") / "word.txt"
    vocabulary.write_text("one\ntwo\n" + "".join(f"word {n}\n" for n in range(2000)))
    assert vocabulary.stat().st_size > BYTES_OF_A_FILE
    return Looker(vocabulary)


def _answer(path):
    served = tf.saved_model.load(str(path)).signatures["serving_default"]
    return served(word=tf.constant(["two", "three"]))["number"].numpy().tolist()


def _content(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in folder.rglob("*")
    }


def test_versions_count_up_from_one(task, tmp_path):
    paths = [export(task, tmp_path / "models", "looker") for _ in range(2)]
    assert paths == [tmp_path / "models" / "looker" / version for version in "12"]
    assert export(task, tmp_path / "models", "looker", version=11).name == "11"
    assert export(task, tmp_path / "models", "looker").name == "12"
    assert _answer(paths[0]) == [1.5, -0.5]


def test_the_next_version_is_found_among_numbers_only(tmp_path):
    assert next_version(tmp_path / "none") == 1
    for name in ("3", "10", ".12-x", "old", "-20", "2.5"):
        (tmp_path / name).mkdir()
    assert next_version(tmp_path) == 11


def test_a_version_that_exists_is_refused_and_untouched(task, tmp_path):
    path = export(task, tmp_path, "looker", version=3)
    before = _content(tmp_path)
    with pytest.raises(ExportError, match=rf"{re.escape(str(path))}.* next free one is 4"):
        export(task, tmp_path, "looker", version=3)
    assert _content(tmp_path) == before


def test_a_version_holds_its_vocabulary_and_may_move(task, tmp_path):
    vocabulary = tmp_path / "word.txt"
    vocabulary.write_text("one\ntwo\n")
    path = export(Looker(vocabulary, weight=0.25), tmp_path / "models", "looker")
    assert (path / "assets" / "word.txt").read_text() == vocabulary.read_text()
    vocabulary.unlink()
    moved = shutil.move(path, tmp_path / "elsewhere")
    assert _answer(moved) == [1.25, -0.75]


def test_others_may_read_a_version(task, tmp_path):
    path = export(task, tmp_path, "looker")
    assert path.stat().st_mode & 0o777 == 0o755


def test_without_its_vocabulary_a_model_is_not_loaded_and_the_file_is_named(task, tmp_path):
    path = export(task, tmp_path, "looker")
    (path / "assets" / "word.txt").unlink()
    with pytest.raises(Exception, match=re.escape(str(path / "assets" / "word.txt"))):
        _answer(path)


def _assert_nothing_is_left(root):
    assert [path for path in root.rglob("*") if path != root / "looker"] == []


def test_a_full_disk_leaves_nothing_behind_and_is_told(task, tmp_path):
    if os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    mount = ["mount", "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(tmp_path)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a small disk cannot be mounted here")
    try:
        with pytest.raises(ExportError, match=r"looker must .* Received: its disk is full$"):
            export(task, tmp_path, "looker")
        _assert_nothing_is_left(tmp_path)
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


@contextlib.contextmanager
def _small_files():
    """Lets no file of this process become larger than a vocabulary.

    Not for longer than need be: what the tests themselves print may go to a larger file.
    """
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (BYTES_OF_A_FILE, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)


def test_a_write_that_fails_leaves_nothing_behind(task, tmp_path):
    with (
        pytest.raises(ExportError, match="looker must be a folder that can be written to"),
        _small_files(),
    ):
        export(task, tmp_path, "looker")
    _assert_nothing_is_left(tmp_path)


def test_a_folder_that_cannot_be_written_to_is_named(task, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(ExportError, match=rf"{re.escape(str(tmp_path / 'file'))}.* must be"):
        export(task, tmp_path / "file", "looker")


def test_a_read_only_folder_is_named(task, tmp_path):
    if os.geteuid() == 0:
        pytest.skip("root can write to any folder")
    tmp_path.chmod(0o555)
    with pytest.raises(ExportError, match=re.escape(str(tmp_path))):
        export(task, tmp_path, "looker")


def test_what_is_not_an_error_of_the_disk_leaves_nothing_behind_either(task, tmp_path):
    broken = SimpleNamespace(**vars(task), signatures=lambda: {"serving_default": "no function"})
    with pytest.raises(ValueError, match="no function"):
        export(broken, tmp_path, "looker")
    _assert_nothing_is_left(tmp_path)


def test_no_server_ever_sees_a_part_of_a_version(task, tmp_path):
    """What has a number for a name has every file it will have, whenever one looks."""
    seen, done = [], threading.Event()

    def watch():
        while not done.is_set():
            seen.extend(
                frozenset(_files(path)) for path in tmp_path.glob("looker/*") if path.name.isdigit()
            )

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        paths = [export(task, tmp_path, "looker") for _ in range(2)]
    finally:
        done.set()
        watcher.join()
    assert seen
    assert set(seen) == {frozenset(_files(path)) for path in paths}
    assert {path.name for path in (tmp_path / "looker").iterdir()} == {"1", "2"}


def _files(folder):
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("version", [None, 7])
def test_exports_of_one_version_at_once_do_not_mix(task, tmp_path, version):
    """Some may be refused, as their version exists; the others are whole."""
    weights = (1.0, 2.0, 3.0)
    tasks = [Looker(_vocabulary(tmp_path, weight), weight) for weight in weights]
    results, ready = {}, threading.Barrier(len(weights))

    def run(weight, task):
        ready.wait()
        try:
            results[weight] = export(task, tmp_path / "models", "looker", version)
        except ExportError as error:
            results[weight] = error

    threads = [threading.Thread(target=run, args=each) for each in zip(weights, tasks, strict=True)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    paths = {weight: result for weight, result in results.items() if isinstance(result, Path)}
    assert paths
    for weight, path in paths.items():
        assert _answer(path) == [1 + weight, -1 + weight]
    assert sorted(paths.values()) == sorted((tmp_path / "models" / "looker").iterdir())
    for weight in results.keys() - paths.keys():
        assert "exists" in str(results[weight])


def _vocabulary(folder, weight):
    path = folder / f"word-{weight}.txt"
    path.write_text("one\ntwo\n")
    return path


class Judge(Looker):
    """A task that serves by all methods that TensorFlow Serving has."""

    def signatures(self):
        def served(*names):
            @tf.function(input_signature=[tf.TensorSpec([None], tf.string, "inputs")])
            def serve(inputs):
                numbers = tf.cast(self.frontend.table.lookup(inputs), tf.float32)
                values = {"classes": inputs[:, tf.newaxis], "scores": numbers[:, tf.newaxis]}
                return {name: values.get(name, numbers) for name in names}

            return serve

        return {
            **super().signatures(),
            "kinds": served("classes", "scores"),
            "amount": served("outputs"),
            "other": served("outputs", "scores"),
        }


def test_a_signature_is_for_the_method_whose_inputs_and_outputs_it_has(tmp_path):
    path = export(Judge(_vocabulary(tmp_path, 1.0)), tmp_path / "models", "judge")
    model = saved_model_pb2.SavedModel.FromString((path / "saved_model.pb").read_bytes())
    methods = {
        name: signature.method_name.removeprefix("tensorflow/serving/")
        for name, signature in model.meta_graphs[0].signature_def.items()
        if not name.startswith("__")
    }
    assert methods == {
        "serving_default": "predict",
        "kinds": "classify",
        "amount": "regress",
        "other": "predict",
    }
    assert _answer(path) == [1.5, -0.5]
