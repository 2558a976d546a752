"""What `transduce run` does: a run in this process, as one of several, or under a supervisor."""

from __future__ import annotations

import importlib.util
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import NonNegativeInt
from pydantic.dataclasses import dataclass

from keras_models.configs import STRICT
from pipelines.cluster import SUPERVISED, Cluster, Role, command, is_host_and_port
from pipelines.display import Display
from pipelines.errors import LOST, Interrupted, Terminated, Termination, UsageError
from pipelines.folder import RunFolder
from pipelines.job import STRATEGIES, Job, PositiveFloat
from pipelines.jobfile import JobFile
from pipelines.lending import find, lend, stay_with_lenders
from pipelines.meeting import meet
from pipelines.summary import summarise
from pipelines.supervisor import supervise
from serving.model_server.quiet import import_tensorflow

if TYPE_CHECKING:
    from pipelines.run import Run

_SCHEME = "grpc://"
_MOST_PROCESSES = 99  # that make batches on this machine


# Of the strategies that have several processes.
_LEAST_WORKERS = {"multi_worker": 2, "parameter_server": 1}


@dataclass(frozen=True, config=STRICT)
class Options:
    """What is asked of a run beside its job.

    Attributes:
        folder: Where it is recorded.
        strategy: Where replicas of the model run.
        workers: How many to start on this machine; 0: TF_CONFIG names them.
        servers: How many parameter servers to start beside them; 0: one.
        worker_timeout: Seconds to wait until all workers are there.
        profile: Number of training steps to write a profile of.
        service: What makes batches: so many processes of this machine, or grpc://HOST:PORT; empty:
            those that train.
    """

    folder: Path
    strategy: STRATEGIES
    workers: NonNegativeInt
    servers: NonNegativeInt
    worker_timeout: PositiveFloat
    profile: NonNegativeInt
    service: str


def run_job(file: JobFile, job: Job, options: Options, arguments: Sequence[str]) -> int:
    """Runs a job, or takes part in running it, and returns an exit code.

    Args:
        file: The job's.
        job: As it is to be run.
        options: How.
        arguments: The command's, for processes that are to be started.

    Raises:
        UsageError: If what is asked for does not fit together, or cannot be done here.
        LostWorker: If another process did not come, or ended.
        Interrupted: On SIGINT or SIGTERM.
    """
    _require_possible(options, job)
    _require_service(options.service)
    cluster, folder = _cluster(options), RunFolder(options.folder)
    if cluster is not None and cluster.supervised:
        _end_with_the_supervisor()
    if cluster is not None and not cluster.is_chief:
        return _assist(file, job, options, cluster)
    if cluster is not None and cluster.supervised:
        _run(folder, options, cluster)
        return 0
    with folder.in_use():
        folder.start(file, job)
        if options.workers and cluster is None and not _is_trained(folder):
            code = supervise(command(arguments), folder, *_processes(options))
            if code:
                return code
        else:
            _run(folder, options, cluster)
    summarise(folder, job.export.name or file.name, job.train.seed)
    return 0


def prepare_job(
    file: JobFile, job: Job, path: Path, runner: str = "", runner_options: Sequence[str] = ()
) -> None:
    """Does the first stage of a run, which `run_job` goes on from.

    Args:
        file: The job's.
        job: As it is to be run.
        path: The run's folder.
        runner: What prepares data sets of TFDS by Beam; empty: this process.
        runner_options: Its options.

    Raises:
        UsageError: If what is asked for cannot be done here.
    """
    if runner:
        if all(origin.train for origin in job.data.origins):
            raise UsageError("`runner` goes with data sets of TFDS: files of your own need none.")
        if importlib.util.find_spec("apache_beam") is None:
            raise UsageError("`runner` needs Beam. Install it with: pip install 'transduce[beam]'")
    with RunFolder(path).in_use() as folder:
        folder.start(file, job)
        run = open_run(path)
        if runner:
            from pipelines.sources import beam

            beam.prepare(job.data, runner, runner_options)
        run.run_first()


def open_run(path: Path, *arguments: Any, **keywords: Any) -> Run:
    """Returns the run recorded in a folder; what else is given goes to `Run`."""
    folder = RunFolder(path)
    folder.job()  # bad usage is told before the seconds that TensorFlow takes
    import_tensorflow()
    from pipelines.run import Run

    return Run(folder, Display(), *arguments, **keywords)


def is_dispatcher(address: str) -> bool:
    """Returns whether this is grpc://HOST:PORT."""
    return address.startswith(_SCHEME) and is_host_and_port(address.removeprefix(_SCHEME))


def serve_data(join: str, host: str, port: int) -> None:
    """Takes part in a tf.data service; see `service.serve`."""
    if SUPERVISED in os.environ:
        _end_with_the_supervisor()
    import_tensorflow()
    from pipelines import service

    service.serve(join, host, port)


def _require_service(service: str) -> None:
    count = int(service) if service.isdecimal() else 0
    if service and not is_dispatcher(service) and not 1 <= count <= _MOST_PROCESSES:
        raise UsageError(
            f"`data.service` must be a number in 1 … {_MOST_PROCESSES}, of processes to start, or "
            f"grpc://HOST:PORT of a dispatcher to join. Received: {service!r}"
        )


def _require_possible(options: Options, job: Job) -> None:
    """Raises UsageError for what a strategy cannot do."""
    if options.strategy == "tpu" and not job.train.static_shapes:
        raise UsageError(
            "The strategy 'tpu' must have batches of fixed shapes: --train.static_shapes. "
            "Received: --train.no_static_shapes"
        )
    if options.strategy == "parameter_server" and job.train.precision == "float16":
        raise UsageError(
            "The strategy 'parameter_server' must have --train.precision float32 or bfloat16: "
            "what losses in float16 are multiplied by goes from one step to the next, and its "
            "steps do not wait for one another. Received: float16"
        )
    if options.strategy == "parameter_server" and options.profile:
        raise UsageError(
            "`profile` must go with another strategy than 'parameter_server', whose steps are "
            f"made in other processes than the one it would look into. Received: {options.profile}"
        )


def _cluster(options: Options) -> Cluster | None:
    """Returns the processes of the run, or None for a run of this process alone."""
    strategy = options.strategy
    if options.workers and strategy not in _LEAST_WORKERS:
        raise UsageError(
            "`workers` goes with the strategies 'multi_worker' and 'parameter_server'. Received: "
            f"--workers {options.workers} --strategy {strategy}"
        )
    if options.servers and strategy != "parameter_server":
        raise UsageError(
            "`servers` goes with the strategy 'parameter_server'. Received: "
            f"--servers {options.servers} --strategy {strategy}"
        )
    if strategy not in _LEAST_WORKERS:
        return None
    cluster = Cluster.of_environment()
    if cluster is None and options.workers < _LEAST_WORKERS[strategy]:
        raise UsageError(
            f"The strategy {strategy!r} must have {_LEAST_WORKERS[strategy]} or more workers: "
            "--workers 2 starts them on this machine; on others, each process finds the cluster "
            f"in TF_CONFIG. Received: --workers {options.workers}, and no TF_CONFIG"
        )
    if cluster is not None:
        cluster.require(strategy == "parameter_server")
        _require_equal("workers", options.workers, cluster.workers)
        _require_equal("servers", options.servers, len(cluster.addresses.get("ps", [])))
    return cluster


def _require_equal(name: str, asked: int, there: int) -> None:
    if asked not in (0, there):
        raise UsageError(
            f"`{name}` must be those of TF_CONFIG, or left out. Received: {asked}, and {there} in "
            "TF_CONFIG"
        )


def _processes(options: Options) -> tuple[dict[Role, int], Role | None]:
    """Returns how many processes of each role a supervisor starts, and which role it replaces."""
    if options.strategy == "multi_worker":
        return {"worker": options.workers}, None
    return {"chief": 1, "ps": options.servers or 1, "worker": options.workers}, "worker"


def _run(folder: RunFolder, options: Options, cluster: Cluster | None) -> None:
    """Does all stages; those after training need no other process."""
    strategy = options.strategy
    if cluster is not None and _is_trained(folder):
        strategy, cluster = "auto", None
    if cluster is not None:
        if cluster.has_servers:
            find(cluster, options.worker_timeout)
            threading.Thread(target=_end_without_lenders, args=(cluster,), daemon=True).start()
        else:
            meet(cluster, options.worker_timeout)
    run = open_run(folder.path, strategy, options.profile, cluster=cluster, service=options.service)
    try:
        run.run()
    except KeyboardInterrupt as error:
        kind = Terminated if isinstance(error, Termination) else Interrupted
        raise kind("stopped between two checkpoints") from None


def _end_without_lenders(cluster: Cluster) -> None:
    """Ends this process when one who lent it devices is lost; what waits for that one hears not."""
    lost = stay_with_lenders(cluster)
    print(f"transduce: {lost.told}", file=sys.stderr, flush=True)
    os._exit(LOST)


def _assist(file: JobFile, job: Job, options: Options, cluster: Cluster) -> int:
    """Takes part in training with the chief, and writes nothing."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)  # what waits in TensorFlow hears no other handler
    folder = RunFolder(options.folder)
    if _is_trained(folder):
        return 0
    if cluster.has_servers:
        lend(cluster, options.worker_timeout)
        return 0
    meet(cluster, options.worker_timeout)
    if not folder.path.exists():
        raise UsageError(
            f"The folder of a run must be shared by all workers. Received: {folder.path}, which "
            f"{cluster.chief} has made and {cluster.name} does not see"
        )
    folder.check(file, job)
    open_run(folder.path, options.strategy, cluster=cluster, service=options.service).train()
    return 0


def _is_trained(folder: RunFolder) -> bool:
    return folder.done("train") is not None


def _end_with_the_supervisor() -> None:
    """Sends this process SIGTERM when its standard input ends."""

    def wait():
        os.read(0, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()
