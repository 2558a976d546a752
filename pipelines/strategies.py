"""Where replicas of a model run: chosen here and nowhere else."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import contextmanager
from typing import get_args

import tensorflow as tf

from pipelines.calls import Calls, ScheduledCalls
from pipelines.cluster import Cluster, Role
from pipelines.errors import LostWorker, UsageError
from pipelines.job import STRATEGIES

# What another worker's end looks like from here.
_LOST = (
    tf.errors.UnavailableError,
    tf.errors.AbortedError,
    tf.errors.CancelledError,
    tf.errors.DeadlineExceededError,  # of a network that is cut
)
# Why, between what else TensorFlow says, such as where in a graph.
_REASON = re.compile(
    r"(?:.*Collective ops is aborted by: )?(.*?)(?:The error could be from|\Z)", re.DOTALL
)


def choose(name: STRATEGIES, cluster: Cluster | None = None) -> tf.distribute.Strategy:
    """Returns the strategy called `name`.

    Args:
        name: `auto` is every GPU of this machine, else its one device; `one_device` the first GPU,
            else the CPU; `mirrored` every GPU, else every logical CPU; `multi_worker` the same of
            every worker; `parameter_server` every worker by itself, its weights on the servers;
            `tpu` the TPU called TPU_NAME, else this machine's.
        cluster: The processes of `multi_worker` or `parameter_server`, all of which are to be
            there.

    Raises:
        UsageError: If this machine cannot do it.
    """
    if name == "multi_worker":
        return _multi_worker(cluster)
    if name == "parameter_server":
        return _parameter_server(cluster)
    if name == "tpu":
        return _tpu()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "auto":
        name = "mirrored" if len(gpus) > 1 else "one_device"
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy("GPU:0" if gpus else "CPU:0")
    if name == "mirrored":
        return mirrored(gpus or tf.config.list_logical_devices("CPU"))
    raise UsageError(f"`strategy` must be one of {get_args(STRATEGIES)}. Received: {name!r}")


def _multi_worker(cluster: Cluster) -> tf.distribute.Strategy:
    _see_own_gpus(cluster)
    return tf.distribute.MultiWorkerMirroredStrategy()


def _see_own_gpus(cluster: Cluster) -> None:
    gpus = tf.config.list_physical_devices("GPU")
    own = [gpus[number] for number in _own(cluster, len(gpus))]
    if own != gpus:
        tf.config.set_visible_devices(own, "GPU")


def _own(cluster: Cluster, gpus: int) -> Sequence[int]:
    """Returns which of this machine's GPUs a process takes: under a supervisor, a part of them."""
    if not cluster.supervised or not gpus:
        return range(gpus)
    if not cluster.trains:
        return []
    if gpus < cluster.workers:
        raise UsageError(
            "Workers on one machine must have a GPU each, or none. Received: "
            f"{cluster.workers} workers and {gpus} GPUs; with CUDA_VISIBLE_DEVICES= they use the "
            "CPU."
        )
    return range(cluster.index, gpus, cluster.workers)


def serve(cluster: Cluster) -> tf.distribute.Server:
    """Returns the server of a worker or a parameter server, which has begun to listen.

    Raises:
        UsageError: If workers under a supervisor cannot have a GPU each.
    """
    own = _own(cluster, len(tf.config.list_physical_devices("GPU")))
    config = tf.compat.v1.ConfigProto(device_count={"GPU": len(own)})
    config.gpu_options.visible_device_list = ",".join(map(str, own))
    # A server must be able to wait on behalf of every worker at once.
    config.inter_op_parallelism_threads = max(os.cpu_count(), cluster.workers + 1)
    spec = tf.train.ClusterSpec(dict(cluster.addresses))
    return tf.distribute.Server(spec, cluster.role, cluster.index, "grpc", config)


def _parameter_server(cluster: Cluster) -> tf.distribute.Strategy:
    _see_own_gpus(cluster)
    os.environ["GRPC_FAIL_FAST"] = "use_caller"  # a worker that is lost is told of, not waited for
    resolver = tf.distribute.cluster_resolver.SimpleClusterResolver(
        tf.train.ClusterSpec(dict(cluster.addresses)),
        task_type=cluster.role,
        task_id=cluster.index,
        rpc_layer="grpc",
    )
    strategy = tf.distribute.ParameterServerStrategy(resolver)
    # Else each worker would make all tables of the task from files of the run, which it need not
    # see: no step looks anything up.
    strategy.extended._resource_creator_scope = lambda: None
    return strategy


def _tpu() -> tf.distribute.Strategy:
    name = os.environ.get("TPU_NAME", "local")
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver.connect(name)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        raise UsageError(
            "The strategy 'tpu' must have a TPU, and TensorFlow 2.19.1 with the package "
            f"tensorflow-tpu. Received: TensorFlow {tf.__version__}, and of the TPU {name!r}: "
            f"{str(error).partition(chr(10))[0]}"
        ) from None
    return tf.distribute.TPUStrategy(resolver)


def mirrored(devices: list) -> tf.distribute.Strategy:
    """Returns a strategy with a replica on each of these logical devices."""
    if len(devices) < 2:
        raise UsageError(
            "The strategy 'mirrored' must have two devices at least. Received a machine with "
            f"{len(devices)} {devices[0].device_type}; 'one_device' would work."
        )
    # Collective operations between CPU devices of one process gain nothing, and a second strategy
    # in the process would meet the first one's.
    on_cpu = devices[0].device_type == "CPU"
    across = tf.distribute.ReductionToOneDevice() if on_cpu else None
    return tf.distribute.MirroredStrategy([device.name for device in devices], across)


def describe(strategy: tf.distribute.Strategy) -> str:
    """Returns the strategy and its replicas in words, as `one_device, 1 replica on CPU`."""
    if is_asynchronous(strategy):
        counts = {"worker": _processes("worker"), "server": _processes("ps")}
        told = (f"{count} {what}{'s' * (count > 1)}" for what, count in counts.items())
        return f"parameter_server, {' and '.join(told)}"
    replicas = strategy.num_replicas_in_sync
    device = tf.DeviceSpec.from_string(strategy.extended.worker_devices[0]).device_type
    return f"{_name(strategy)}, {replicas} {'replica' if replicas == 1 else 'replicas'} on {device}"


def inexactness(strategy: tf.distribute.Strategy) -> str:
    """Returns why the weights of a run are not those of another to the last bit, or nothing."""
    if is_asynchronous(strategy):
        return (
            "workers do not wait for one another: the order of the steps, and with it the weights, "
            "are not those of another run"
        )
    on_gpu = any("GPU" in device for device in strategy.extended.worker_devices)
    if on_gpu and os.environ.get("TF_DETERMINISTIC_OPS", "0").lower() in ("0", "false"):
        return (
            "a GPU adds up in any order: the weights of a run that is taken up again agree to "
            "rounding, not to the last bit; TF_DETERMINISTIC_OPS=1 in the environment keeps it to "
            "one order"
        )
    return ""


def compiles_replicas(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether the step of a replica can be compiled by XLA on its own.

    It cannot on several logical CPUs of one process: XLA then looks for all variables on the
    first. A TPU compiles more than that, by itself.
    """
    kinds = [
        tf.DeviceSpec.from_string(each).device_type for each in strategy.extended.worker_devices
    ]
    return kinds.count("CPU") <= 1 and "TPU" not in kinds


def local(strategy: tf.distribute.Strategy) -> tf.distribute.Strategy:
    """Returns a strategy for what this process does without the others."""
    alone = not has_several_workers(strategy) and not is_asynchronous(strategy)
    return strategy if alone else tf.distribute.get_strategy()


def calls(strategy: tf.distribute.Strategy) -> Calls:
    """Returns what calls the functions that make steps."""
    if not is_asynchronous(strategy):
        return Calls()
    return ScheduledCalls(strategy, _processes("worker"))


def wait_for_chief(strategy: tf.distribute.Strategy) -> None:
    """Returns once the chief has called it, too."""
    from_chief(strategy, 0.0)


def from_chief(strategy: tf.distribute.Strategy, value: float) -> float:
    """Returns the chief's number on every worker."""
    if not has_several_workers(strategy):
        return value

    @tf.function
    def agree(own):
        first = tf.distribute.get_replica_context().replica_id_in_sync_group == 0
        own = tf.where(first, own, tf.zeros_like(own))
        return tf.distribute.get_replica_context().all_reduce(tf.distribute.ReduceOp.SUM, own)

    agreed = strategy.run(agree, args=(tf.constant(value, tf.float64),))
    return float(strategy.experimental_local_results(agreed)[0])


@contextmanager
def naming_lost_workers(strategy: tf.distribute.Strategy):
    """Raises LostWorker in place of what TensorFlow raises when another worker ends."""
    try:
        yield
    except _LOST as error:
        if local(strategy) is strategy:
            raise
        reason = " ".join(_REASON.match(error.message)[1].split())
        raise LostWorker(f"was lost: {reason}") from error


def has_several_workers(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether other processes take part in every step, each by a loop of its own."""
    return isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy)


def is_asynchronous(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether steps are made by workers that do not wait for one another."""
    return isinstance(strategy, tf.distribute.ParameterServerStrategy)


def is_chief(strategy: tf.distribute.Strategy) -> bool:
    """Returns whether this process is the one that writes files."""
    return strategy.extended.should_checkpoint


def _name(strategy: tf.distribute.Strategy) -> str:
    kinds = {
        tf.distribute.OneDeviceStrategy: "one_device",
        tf.distribute.MirroredStrategy: "mirrored",
        tf.distribute.MultiWorkerMirroredStrategy: "multi_worker",
        tf.distribute.TPUStrategy: "tpu",
    }
    return kinds[type(strategy)]


def _processes(role: Role) -> int:
    """Returns how many processes of a role lend their devices to this one."""
    devices = [
        tf.DeviceSpec.from_string(each.name) for each in tf.config.list_logical_devices("CPU")
    ]
    return len({device.task for device in devices if device.job == role})
