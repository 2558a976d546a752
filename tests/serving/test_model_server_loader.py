import pytest

from serving.model_server.batching import Batching
from serving.model_server.errors import ServingError
from serving.model_server.flags import Options
from serving.model_server.loader import Loader, _session_config
from serving.model_server.metrics import Metrics


def test_the_session_is_as_its_file_says_and_as_flags_say_over_it(tmp_path):
    file = tmp_path / "session.config"
    file.write_text("intra_op_parallelism_threads: 3 inter_op_parallelism_threads: 4")
    options = Options(
        tensorflow_session_config_file=str(file),
        tensorflow_inter_op_parallelism=5,
        per_process_gpu_memory_fraction=0.5,
    )
    config = _session_config(options)
    assert (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads) == (3, 5)
    assert config.gpu_options.per_process_gpu_memory_fraction == 0.5


def test_one_flag_sets_both_numbers_of_threads():
    config = _session_config(Options(tensorflow_session_parallelism=7))
    assert (config.intra_op_parallelism_threads, config.inter_op_parallelism_threads) == (7, 7)


def test_attempts_to_load_are_counted(model_root, tmp_path):
    metrics = Metrics()
    loader = Loader(Options(), metrics, Batching(Options(), metrics))
    loader.load(str(model_root / "half_plus/2"), "m").close()
    with pytest.raises(ServingError):
        loader.load(str(tmp_path), "m")
    lines = list(metrics.load_attempts.lines("n"))
    assert sorted(line.partition("status=")[2] for line in lines) == ['"fail"} 1', '"success"} 1']
    assert metrics.load_latency.total() > 0
