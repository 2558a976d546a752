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


@pytest.mark.parametrize(
    ("name", "default"),
    [
        ("port", 8500),
        ("rest_api_port", 0),
        ("rest_api_timeout_in_ms", 30000),
        ("model_name", "default"),
        ("max_num_load_retries", 5),
        ("load_retry_interval_micros", 60_000_000),
        ("file_system_poll_wait_seconds", 1),
        ("saved_model_tags", "serve"),
    ],
)
def test_a_default_is_that_of_tensorflow_serving(name, default):
    assert getattr(flags.Options(), name) == default


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
