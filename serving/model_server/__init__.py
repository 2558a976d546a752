"""A server of SavedModels that speaks TF Serving's protocol, gRPC and REST.

    flags → config → reload → source → manager → core → grpc_front, rest_front
                     labels ↗         loader ↗ predict, inference
                        servable, batching ↗

`config` says which models there are to be, `reload` puts another configuration in its place,
`source` watches folders, `manager` loads and unloads as `lifecycle` decides; once there are
requests `gentle_loading` and the `background` let these go first. `batching` stands before every
servable, `core` answers. `metrics` counts everything; `journal` notes each request for `access_log`
and `tracing`; `request_log` keeps some for `warmup`, which asks a version before others do; `admin`
tells of the server itself.

gRPC is answered by one event loop. What has been quick runs in it, all else in the threads of
`batch_scheduler`; REST's threads run graphs themselves or wait for a batch. A `Call` hides which.
`sequences` remembers the state that `sequenced` goes on with; `grpc_streaming` streams.

`python -m serving.model_server --model_root=models --rest_api_port=8501` serves every model
under `models`, which holds NAME/VERSION/saved_model.pb. It serves any SavedModel.
"""

import gc
import sys
from collections.abc import Sequence
from importlib import metadata

from serving.model_server import flags, quiet
from serving.model_server.errors import ServingError

__all__ = ["main"]

_BAD_USAGE = 255


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the server with TF Serving's flags, until SIGTERM or SIGINT.

    Args:
        argv: The arguments without the program's name; those of this process by default.

    Returns:
        The exit code: 0 after a graceful stop, 255 where the server could not start.
    """
    try:
        command = flags.parse(sys.argv[1:] if argv is None else argv)
    except ServingError as error:
        print(f"{error.message}\n{flags.usage(flags.program_name())}", flush=True)
        return _BAD_USAGE
    if command.options.version:
        print(_versions())
        return 0
    _tell_oddities(command)
    return _serve(command.options)


def _serve(options: flags.Options) -> int:
    try:
        flags.check(options)
    except ServingError as error:
        print(f"Failed to start server. Error: {error}", flush=True)
        return _BAD_USAGE
    quiet.import_tensorflow()
    from serving.model_server import server

    _share_time()
    with server.log_to_stderr():
        return server.run(options)


def _share_time() -> None:
    """Has neither collections of garbage nor loads of versions hold up all requests.

    TensorFlow's modules are half a million objects that never go: a full collection, which every
    few thousand requests bring about, would take 0.2 s to look at them. And a thread that runs
    Python is asked for its lock after 1 ms, not 5.
    """
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(0.001)


def _tell_oddities(command: flags.CommandLine) -> None:
    for argument in command.unknown:
        print(f"unknown argument: {argument}\n{flags.usage(flags.program_name())}", flush=True)
    for name in command.ignored:
        why = flags.FLAGS[name].metadata["why_not"]
        print(f"--{name} has no effect in this server: {why}.", file=sys.stderr, flush=True)


def _versions() -> str:
    server, library = (metadata.version(name) for name in ("transduce", "tensorflow"))
    return f"TensorFlow ModelServer: transduce {server}\nTensorFlow Library: {library}"
