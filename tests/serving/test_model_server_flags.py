import dataclasses
import os
import re

import pytest

from serving.model_server import flags, main
from serving.model_server.errors import ServingError

DIR = "--model_base_path=/models/m"


@pytest.mark.parametrize(
    ("arguments", "name", "value"),
    [
        (["--port=9000"], "port", 9000),
        (["--port", "9000"], "port", 9000),
        (["--model_name=a=b"], "model_name", "a=b"),
        (["--enable_batching"], "enable_batching", True),
        (["--enable_batching=true"], "enable_batching", True),
        (["--enable_batching=false"], "enable_batching", False),
        (["--enable_batching=1"], "enable_batching", True),
        (["--per_process_gpu_memory_fraction=0.5"], "per_process_gpu_memory_fraction", 0.5),
        (["--port=1", "--port=2"], "port", 2),
    ],
)
def test_a_flag_is_read(arguments, name, value):
    assert getattr(flags.parse(arguments).options, name) == value


OFF = """
    rest_api_enable_cors_support enable_batching allow_version_labels_for_unavailable_models
    enable_per_model_batching_parameters use_alts_credentials version prefer_tflite_model
    enable_signature_method_name_check xla_cpu_compilation_enabled xla_gpu_compilation_enabled
    skip_initialize_tpu enable_grpc_healthcheck_service enable_serialization_as_tensor_content
"""
ON = """
    flush_filesystem_caches enable_model_warmup remove_unused_fields_from_bundle_metagraph
    enable_profiler
"""
EMPTY = """
    grpc_socket_path batching_parameters_file model_config_file model_base_path
    tensorflow_session_config_file ssl_config_file platform_config_file grpc_channel_arguments
    monitoring_config_file thread_pool_factory_config_file mixed_precision
"""
ZERO = """
    rest_api_port model_config_file_poll_wait_seconds num_load_threads num_unload_threads
    tensorflow_session_parallelism tensorflow_intra_op_parallelism tensorflow_inter_op_parallelism
    per_process_gpu_memory_fraction num_request_iterations_for_warmup
"""
DEFAULTS = {
    **dict.fromkeys(OFF.split(), False),
    **dict.fromkeys(ON.split(), True),
    **dict.fromkeys(EMPTY.split(), ""),
    **dict.fromkeys(ZERO.split(), 0),
    "port": 8500,
    "rest_api_num_threads": 4 * os.cpu_count(),
    "rest_api_timeout_in_ms": 30000,
    "model_name": "default",
    "max_num_load_retries": 5,
    "load_retry_interval_micros": 60_000_000,
    "file_system_poll_wait_seconds": 1,
    "saved_model_tags": "serve",
    "grpc_max_threads": 4 * os.cpu_count(),
    "num_tflite_pools": os.cpu_count(),
    "num_tflite_interpreters_per_pool": 1,
}


def test_the_defaults_are_those_of_tensorflow_serving():
    chosen = dataclasses.asdict(flags.Options())
    found = {name: chosen[name] for name in DEFAULTS}
    assert found == DEFAULTS
    assert {name: type(value) for name, value in found.items() if value in (0, 1)} == {
        name: float if name == "per_process_gpu_memory_fraction" else type(default)
        for name, default in DEFAULTS.items()
        if default in (0, 1)
    }


def test_unknown_arguments_are_kept_aside():
    command = flags.parse(["--prot=1", "word", "--port=2"])
    assert command.unknown == ("--prot=1", "word")
    assert command.options.port == 2


def test_a_flag_without_effect_is_named_where_it_would_change_something():
    assert flags.parse(["--skip_initialize_tpu"]).ignored == ("skip_initialize_tpu",)
    assert flags.parse(["--skip_initialize_tpu=false", "--port=1"]).ignored == ()


def test_the_usage_names_every_flag():
    for name in flags.FLAGS:
        assert f"--{name}=" in flags.usage("server")


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("--port=many", "--port must have a value of type int. Received: 'many'"),
        ("--port", "--port must have a value of type int. Received: nothing"),
        ("--enable_batching=yes", "--enable_batching must have a value of type bool"),
    ],
)
def test_a_bad_value_ends_with_the_usage(argument, said, capsys):
    assert main([argument]) == 255
    printed = capsys.readouterr().out
    assert said in printed
    assert "usage: " in printed


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "Both server_options.model_base_path and server_options.model_config_file are empty!"),
        (
            [DIR, "--port=0"],
            "At least one of server_options.grpc_port or server_options.grpc_socket_path must "
            "be set.",
        ),
        (
            [DIR, "--use_alts_credentials", "--ssl_config_file=/s"],
            "Either use_alts_credentials must be false or ssl_config_file must be empty.",
        ),
        (
            ["--model_config_file=/c", "--model_root=/models"],
            "Give --model_config_file or --model_root, not both.",
        ),
        (
            [DIR, "--batching_parameters_file=/b"],
            "server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true.",
        ),
        ([DIR, "--model_root=/models"], "Give --model_base_path or --model_root, not both."),
        (
            [DIR, "--tensorflow_session_parallelism=1", "--tensorflow_intra_op_parallelism=1"],
            "Either configure server_options.tensorflow_session_parallelism or",
        ),
    ],
)
def test_flags_that_do_not_fit_together_are_refused(arguments, said):
    with pytest.raises(ServingError, match=re.escape(said)):
        flags.check(flags.parse(arguments).options)


def test_the_version_is_printed(capsys):
    assert main(["--version"]) == 0
    assert re.fullmatch(
        r"TensorFlow ModelServer: .+\nTensorFlow Library: 2\..+\n", capsys.readouterr().out
    )
