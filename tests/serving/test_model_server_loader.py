import shutil
import subprocess
import sys
from contextlib import closing

import pytest
import tensorflow as tf

from serving.model_server import protos, session_options
from serving.model_server.batching import Batching
from serving.model_server.errors import ServingError
from serving.model_server.flags import Options
from serving.model_server.loader import Loader
from serving.model_server.metrics import Metrics
from serving.model_server.server import Server

PLATFORM = """platform_configs { key: "tensorflow" value { source_adapter_config {
    [type.googleapis.com/tensorflow.serving.SavedModelBundleSourceAdapterConfig] {
        legacy_config { %s }
} } } }"""


def load(path, options=None):
    options, metrics = options or Options(), Metrics()
    return Loader(options, metrics, Batching(options, metrics)).load(str(path), "m")


def test_the_session_is_as_its_file_says_and_as_flags_say_over_it(tmp_path):
    file = tmp_path / "session.config"
    file.write_text("intra_op_parallelism_threads: 3 inter_op_parallelism_threads: 4")
    options = Options(
        tensorflow_session_config_file=str(file),
        tensorflow_inter_op_parallelism=5,
        per_process_gpu_memory_fraction=0.5,
    )
    config = session_options.of_server(options)
    assert (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads) == (3, 5)
    assert config.gpu_options.per_process_gpu_memory_fraction == 0.5


def test_one_flag_sets_both_numbers_of_threads():
    config = session_options.of_server(Options(tensorflow_session_parallelism=7))
    assert (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads) == (7, 7)


def test_a_platform_file_says_what_sessions_are_like(tmp_path, caplog):
    file = tmp_path / "platform.config"
    file.write_text(
        PLATFORM
        % """session_config { intra_op_parallelism_threads: 3 }
        batching_parameters { max_batch_size { value: 8 } }"""
    )
    config = session_options.of_server(Options(platform_config_file=str(file)))
    assert config.intra_op_parallelism_threads == 3
    assert "batching_parameters are not taken from here" in caplog.text


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('platform_configs { key: "other" }', "must have a platform_configs entry"),
        ('platform_configs { key: "tensorflow" value {} }', "must hold a tensorflow.serving.Saved"),
        ("platforms {}", "Invalid protobuf file"),
    ],
)
def test_a_bad_platform_file_is_refused(tmp_path, text, said):
    file = tmp_path / "platform.config"
    file.write_text(text)
    with pytest.raises(ServingError, match=said):
        session_options.of_server(Options(platform_config_file=str(file)))


def test_mixed_precision_is_asked_of_the_graph_optimizer():
    config = session_options.of_server(Options(mixed_precision="bfloat16"))
    assert config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 == 1


def test_a_version_says_how_its_graph_is_rewritten(model_root, tmp_path):
    version = tmp_path / "version"
    shutil.copytree(model_root / "half_plus/2", version)
    (version / "assets.extra").mkdir()
    overrides = protos.SavedModelConfig()
    overrides.session_overrides.batch_op_rewriter_config = b"\x08\x01"
    file = version / "assets.extra/saved_model_config.pb"
    file.write_bytes(overrides.SerializeToString())
    server_wide = session_options.of_server(Options())
    config = session_options.of_version(str(version), server_wide)
    (optimizer,) = config.graph_options.rewrite_options.custom_optimizers
    assert optimizer.name == "batch_op_rewriter"
    assert optimizer.parameter_map["batch_op_rewrite_config"].s == b"CAE="
    assert not server_wide.graph_options.rewrite_options.custom_optimizers
    load(version).close()
    file.write_bytes(b"\xff")
    with pytest.raises(ServingError, match="it is no SavedModelConfig"):
        load(version)


class Fusible(tf.Module):
    """Three operations that TensorFlow's optimizer of graphs makes one of."""

    def __init__(self):
        self.weights, self.bias = tf.Variable(tf.ones([2, 3])), tf.Variable(tf.ones([3]))

    @tf.function(input_signature=[tf.TensorSpec([None, 2], tf.float32, name="x")])
    def __call__(self, x):
        return {"y": tf.nn.relu(tf.nn.bias_add(x @ self.weights, self.bias))}


def fuses(servable):
    """Tells whether the session has made one operation of several of the signature's."""
    signature, found = servable.signatures["serving_default"], tf.compat.v1.RunMetadata()
    servable._servable._session.run(
        signature.outputs["y"].name,
        {signature.inputs["x"].name: [[1.0, 2.0]]},
        tf.compat.v1.RunOptions(output_partition_graphs=True),
        found,
    )
    operations = [node.op for graph in found.partition_graphs for node in graph.node]
    return any("FusedMatMul" in operation for operation in operations)


def test_a_version_can_do_without_the_optimizer_of_graphs(tmp_path):
    module = Fusible()
    tf.saved_model.save(module, str(tmp_path / "m/1"), signatures=module.__call__)
    with closing(load(tmp_path / "m/1")) as servable:
        assert fuses(servable)
    (tmp_path / "m/1/assets.extra").mkdir()
    without = protos.SavedModelConfig(session_overrides={"disable_meta_optimizer": True})
    file = tmp_path / "m/1/assets.extra/saved_model_config.pb"
    file.write_bytes(without.SerializeToString())
    with closing(load(tmp_path / "m/1")) as servable:
        assert not fuses(servable)


def test_all_versions_can_do_without_the_optimizer_of_graphs(tmp_path):
    module = Fusible()
    tf.saved_model.save(module, str(tmp_path / "m/1"), signatures=module.__call__)
    rewriting = "rewrite_options { disable_meta_optimizer: true }"
    session = tmp_path / "session.config"
    session.write_text(f"graph_options {{ {rewriting} }}")
    options = Options(tensorflow_session_config_file=str(session))
    with closing(load(tmp_path / "m/1", options)) as servable:
        assert not fuses(servable)
    platform = tmp_path / "platform.config"
    platform.write_text(PLATFORM % f"session_config {{ graph_options {{ {rewriting} }} }}")
    options = Options(platform_config_file=str(platform))
    with closing(load(tmp_path / "m/1", options)) as servable:
        assert not fuses(servable)


def test_a_version_replaces_what_the_server_says_of_an_optimizer(tmp_path):
    (tmp_path / "assets.extra").mkdir()
    overrides = protos.SavedModelConfig()
    overrides.session_overrides.batch_op_rewriter_config = b"\x08\x01"
    file = tmp_path / "assets.extra/saved_model_config.pb"
    file.write_bytes(overrides.SerializeToString())
    server_wide = tf.compat.v1.ConfigProto()
    rewriting = server_wide.graph_options.rewrite_options
    rewriting.disable_meta_optimizer = True
    added = rewriting.custom_optimizers.add(name="batch_op_rewriter")
    added.parameter_map["batch_op_rewrite_config"].s = b"other"
    changed = session_options.of_version(str(tmp_path), server_wide).graph_options.rewrite_options
    assert not changed.disable_meta_optimizer
    (optimizer,) = changed.custom_optimizers
    assert optimizer.parameter_map["batch_op_rewrite_config"].s == b"CAE="
    file.write_bytes(protos.SavedModelConfig(critical=True).SerializeToString())
    assert session_options.of_version(str(tmp_path), server_wide) == server_wide


def test_a_name_in_ml_metadata_is_a_metric(model_root, options, tmp_path):
    shutil.copytree(model_root / "half_plus/2", tmp_path / "m/2")
    (tmp_path / "m/2/assets.extra").mkdir()
    (tmp_path / "m/2/assets.extra/mlmd_uuid").write_text("the-name")
    line = ':tensorflow:serving:mlmd_map{model_name="m",version="2",uuid="the-name"} 1'
    with Server(options(model_base_path=str(tmp_path / "m"), model_name="m")) as server:
        page = server._metrics.page()
        assert "# TYPE :tensorflow:serving:mlmd_map gauge" in page
        assert line in page


@pytest.mark.slow
def test_operations_of_tensorflow_text_are_there_for_the_graph_that_asks_for_them(tmp_path):
    pytest.importorskip("tensorflow_text")
    save = """
import sys, tensorflow as tf, tensorflow_text as text
module = tf.Module()
fold = tf.function(
    lambda words: {"words": text.case_fold_utf8(words)},
    input_signature=[tf.TensorSpec([None], tf.string, name="words")],
)
tf.saved_model.save(module, sys.argv[1], signatures=fold)
"""
    load = """
import sys
from serving.model_server.flags import Options
from serving.model_server.loader import Loader
from serving.model_server.metrics import Metrics
from serving.model_server.server import Server
from serving.model_server import calls, predict
from serving.model_server.batching import Batching
assert "tensorflow_text" not in sys.modules
import numpy as np
metrics, options = Metrics(), Options()
servable = Loader(options, metrics, Batching(options, metrics)).load(sys.argv[1], "m")
spec, inputs = predict.ModelSpec(name="m"), {"words": np.array([b"ABC"], object)}
print(calls.now(predict.run(servable, spec, inputs, (), calls.Call())))
"""
    for code in (save, load):
        command = [sys.executable, "-c", code, str(tmp_path / "m/1")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
    assert "abc" in done.stdout


def test_attempts_to_load_are_counted(model_root, tmp_path):
    metrics = Metrics()
    loader = Loader(Options(), metrics, Batching(Options(), metrics))
    loader.load(str(model_root / "half_plus/2"), "m").close()
    with pytest.raises(ServingError):
        loader.load(str(tmp_path), "m")
    lines = list(metrics.load_attempts.lines("n"))
    assert sorted(line.partition("status=")[2] for line in lines) == ['"fail"} 1', '"success"} 1']
    assert metrics.load_latency.total() > 0
