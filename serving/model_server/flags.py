"""The command line: TF Serving's flags, their defaults, and how they are read.

The fields of `Options` are the flags. This file imports nothing heavy, so that a mistake in a
flag is told at once.
"""

import dataclasses
import os
import sys
from collections.abc import Sequence

from serving.model_server.errors import ServingError, invalid

_THREADS = 4 * (os.cpu_count() or 1)


def _flag(default, text: str):
    return dataclasses.field(default=default, metadata={"text": text, "why_not": ""})


def _without_effect(default, text: str, why: str):
    return dataclasses.field(default=default, metadata={"text": text, "why_not": why})


@dataclasses.dataclass(frozen=True)
class Options:
    """What the server was asked to do; one field a flag."""

    port: int = _flag(8500, "gRPC port; 0 turns it off.")
    grpc_socket_path: str = _flag("", "UNIX socket to serve gRPC on as well.")
    rest_api_port: int = _flag(0, "HTTP/REST port; 0 turns it off.")
    rest_api_num_threads: int = _flag(_THREADS, "Threads for REST.")
    rest_api_timeout_in_ms: int = _flag(30000, "Longest time for one REST call; 0 for any.")
    rest_api_enable_cors_support: bool = _flag(False, "Answer other origins' browsers.")
    enable_batching: bool = _flag(False, "Batch requests together.")
    allow_version_labels_for_unavailable_models: bool = _flag(False, "Labels before loading.")
    batching_parameters_file: str = _flag("", "BatchingParameters in text form.")
    enable_per_model_batching_parameters: bool = _flag(False, "Read them from each version.")
    model_config_file: str = _flag("", "ModelServerConfig in text form.")
    model_config_file_poll_wait_seconds: int = _flag(0, "Re-read it this often.")
    model_name: str = _flag("default", "Name of the model at --model_base_path.")
    model_base_path: str = _flag("", "Folder of one model: DIR/VERSION/saved_model.pb.")
    num_load_threads: int = _flag(0, "Versions that load at the same time; 0 for four a core.")
    num_unload_threads: int = _flag(0, "Versions that unload at the same time; 0 for four a core.")
    max_num_load_retries: int = _flag(5, "Further attempts after a failed load.")
    load_retry_interval_micros: int = _flag(60_000_000, "Time between those attempts.")
    file_system_poll_wait_seconds: int = _flag(1, "Look for versions this often; 0 for once.")
    flush_filesystem_caches: bool = _without_effect(
        True, "Drop caches of remote file systems.", "none are kept"
    )
    tensorflow_session_parallelism: int = _flag(0, "Threads in and between operations.")
    tensorflow_session_config_file: str = _flag("", "ConfigProto in text form.")
    tensorflow_intra_op_parallelism: int = _flag(0, "Threads in one operation.")
    tensorflow_inter_op_parallelism: int = _flag(0, "Operations at the same time.")
    use_alts_credentials: bool = _flag(False, "Google ALTS; works on Google Cloud only.")
    ssl_config_file: str = _flag("", "SSLConfig in text form.")
    platform_config_file: str = _flag(
        "", "PlatformConfigMap in text form; its session_config is taken."
    )
    per_process_gpu_memory_fraction: float = _flag(0.0, "Part of the GPU's memory to take.")
    saved_model_tags: str = _flag("serve", "Tags of the graph to load, with commas between.")
    max_sequence_number: int = _flag(500, "Most sequences of one model. Not in TF Serving.")
    sequence_idle_seconds: float = _flag(
        300.0, "Forget a sequence that nobody goes on with. Not in TF Serving."
    )
    grpc_channel_arguments: str = _flag("", "key=value,key=value for the gRPC server.")
    grpc_max_threads: int = _flag(_THREADS, "Threads that answer gRPC.")
    enable_model_warmup: bool = _flag(True, "Run a version's warm-up requests.")
    num_request_iterations_for_warmup: int = _flag(0, "How often to run them.")
    version: bool = _flag(False, "Print the version and leave.")
    monitoring_config_file: str = _flag("", "MonitoringConfig in text form.")
    remove_unused_fields_from_bundle_metagraph: bool = _without_effect(
        True, "Save memory.", "of a graph's description only the signatures are ever kept"
    )
    prefer_tflite_model: bool = _flag(False, "Serve model.tflite.")
    num_tflite_pools: int = _flag(os.cpu_count() or 1, "TFLite pools.")
    num_tflite_interpreters_per_pool: int = _flag(1, "TFLite interpreters.")
    enable_signature_method_name_check: bool = _flag(False, "Check a signature's method name.")
    xla_cpu_compilation_enabled: bool = _without_effect(
        False, "Let graphs compile for CPU.", "graphs that ask to be compiled always are"
    )
    xla_gpu_compilation_enabled: bool = _without_effect(
        False, "Let graphs compile for GPU.", "graphs that ask to be compiled always are"
    )
    enable_profiler: bool = _flag(True, "Serve TensorFlow's profiler.")
    thread_pool_factory_config_file: str = _without_effect(
        "", "ThreadPoolFactoryConfig in text form.", "TensorFlow's own pools are used"
    )
    mixed_precision: str = _flag("", "bfloat16 where the processor is good at it, or nothing.")
    skip_initialize_tpu: bool = _without_effect(
        False, "Leave TPUs alone.", "TPUs are always left alone"
    )
    enable_grpc_healthcheck_service: bool = _flag(False, "Serve grpc.health.v1.Health.")
    enable_serialization_as_tensor_content: bool = _flag(False, "Answer in tensor_content.")

    # Those that TF Serving does not have.
    model_root: str = _flag("", "Folder of models: DIR/NAME/VERSION/saved_model.pb.")
    access_log: str = _flag("", "File for a line of JSON a request; - for the standard output.")
    enable_tracing: bool = _flag(False, "Send OpenTelemetry spans, as OTEL_* variables say.")
    enable_signature_warmup: bool = _flag(
        False, "Warm versions up by their signatures where they bring no requests for it."
    )
    auth_token_file: str = _flag("", "File of tokens, one a line, of which callers show one.")
    rest_api_ssl_config_file: str = _flag("", "SSLConfig in text form, for REST.")
    max_request_bytes: int = _flag(0, "Largest request; 0 for any.")
    max_tensor_bytes: int = _flag(0, "Largest tensor in a request; 0 for any that is sent whole.")
    max_json_depth: int = _flag(0, "Deepest JSON; 0 for as deep as can be read.")
    shutdown_delay_seconds: float = _flag(
        0.0, "Time between saying not to be ready and taking no more requests."
    )
    shutdown_grace_seconds: float = _flag(30.0, "Time for requests under way to end.")


FLAGS = {field.name: field for field in dataclasses.fields(Options)}


@dataclasses.dataclass(frozen=True)
class CommandLine:
    """What was read: the options, the arguments that no flag knows, the flags without effect."""

    options: Options
    unknown: tuple[str, ...]
    ignored: tuple[str, ...]


def parse(arguments: Sequence[str]) -> CommandLine:
    """Returns the command line, read as TF Serving reads it.

    `--flag=value`, `--flag value` and, for a boolean, `--flag` are understood. An argument that
    no flag knows is kept aside, not refused.

    Raises:
        ServingError: A value is not of its flag's type.
    """
    values, unknown = {}, []
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, equals, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or name not in FLAGS:
            unknown.append(argument)
            continue
        if not equals:
            value = _bare_value(name, rest)
        values[name] = _convert(name, value)
    ignored = [name for name in values if not _has_effect(name, values[name])]
    return CommandLine(Options(**values), tuple(unknown), tuple(ignored))


def usage(program: str) -> str:
    """Returns the list of flags, each with its default."""
    lines = [f"usage: {program}", "Flags:"]
    for name, field in FLAGS.items():
        text, why_not = field.metadata["text"], field.metadata["why_not"]
        note = f" (no effect: {why_not})" if why_not else ""
        lines.append(f"\t--{name}={_show(field.default)}\t{field.type.__name__}\t{text}{note}")
    return "\n".join(lines)


def check(options: Options) -> None:
    """Raises a ServingError where flags do not fit together."""
    if not options.port and not options.grpc_socket_path:
        raise invalid(
            "At least one of server_options.grpc_port or server_options.grpc_socket_path "
            "must be set."
        )
    if options.use_alts_credentials and options.ssl_config_file:
        raise invalid("Either use_alts_credentials must be false or ssl_config_file must be empty.")
    if not (options.model_base_path or options.model_root or options.model_config_file):
        raise invalid(
            "Both server_options.model_base_path and server_options.model_config_file are empty! "
            "Give --model_base_path=DIR (DIR/VERSION/saved_model.pb), "
            "--model_root=DIR (DIR/NAME/VERSION/saved_model.pb) or --model_config_file=FILE."
        )
    if options.model_base_path and options.model_root:
        raise invalid("Give --model_base_path or --model_root, not both.")
    if options.model_config_file and options.model_root:
        raise invalid("Give --model_config_file or --model_root, not both.")
    if options.mixed_precision not in ("", "bfloat16"):
        raise invalid(f'--mixed_precision must be bfloat16 or "", not {options.mixed_precision!r}')
    if options.batching_parameters_file and not options.enable_batching:
        raise invalid(
            "server_options.batching_parameters_file is set without setting "
            "server_options.enable_batching to true."
        )
    _check_parallelism(options)


def _check_parallelism(options: Options) -> None:
    apart = options.tensorflow_intra_op_parallelism or options.tensorflow_inter_op_parallelism
    if options.tensorflow_session_parallelism and apart:
        raise invalid(
            "Either configure server_options.tensorflow_session_parallelism or "
            "(server_options.tensorflow_intra_op_parallelism, "
            "server_options.tensorflow_inter_op_parallelism) separately. "
            "You cannot configure all."
        )


def _bare_value(name: str, rest: list[str]) -> str:
    if FLAGS[name].type is bool:
        return "true"
    if rest and not rest[0].startswith("--"):
        return rest.pop(0)
    raise _bad(name, "nothing")


def _convert(name: str, text: str):
    kind = FLAGS[name].type
    try:
        return _BOOLEANS[text.lower()] if kind is bool else kind(text)
    except (KeyError, ValueError):
        raise _bad(name, repr(text)) from None


_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}


def _bad(name: str, received: str) -> ServingError:
    kind = FLAGS[name].type.__name__
    return invalid(f"Flag --{name} must have a value of type {kind}. Received: {received}.")


def _has_effect(name: str, value) -> bool:
    return not FLAGS[name].metadata["why_not"] or value == FLAGS[name].default


def _show(value) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value) if value != "" else '""'


def program_name() -> str:
    """Returns how the server was called, for the usage text."""
    return os.path.basename(sys.argv[0]) or "model_server"
