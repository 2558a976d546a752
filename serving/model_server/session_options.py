"""How TensorFlow's sessions are set up: by flags, by a platform's file, by a version's own file."""

import base64
import logging
import os

import tensorflow as tf
from google.protobuf.message import DecodeError

from serving.model_server import protos
from serving.model_server.errors import invalid
from serving.model_server.flags import Options

_LOG = logging.getLogger(__name__)
_PLATFORM = "tensorflow"
_OF_VERSION = os.path.join("assets.extra", "saved_model_config.pb")
_REWRITERS = {  # The optimizers of a graph that a version can configure, by field.
    "remote_op_remap_config": ("remote_op_config_rewrite", "remote_op_rewrite_config"),
    "batch_op_rewriter_config": ("batch_op_rewriter", "batch_op_rewrite_config"),
}
_ON = 1


def of_server(options: Options) -> tf.compat.v1.ConfigProto:
    """Returns the configuration of every session.

    Raises:
        ServingError: A file that a flag names does not hold what it should.
    """
    config = tf.compat.v1.ConfigProto(allow_soft_placement=True)
    if options.platform_config_file:
        return _of_platform(options.platform_config_file)
    if options.tensorflow_session_config_file:
        config = protos.read(options.tensorflow_session_config_file, tf.compat.v1.ConfigProto)
    both = options.tensorflow_session_parallelism
    if intra := both or options.tensorflow_intra_op_parallelism:
        config.intra_op_parallelism_threads = intra
    if inter := both or options.tensorflow_inter_op_parallelism:
        config.inter_op_parallelism_threads = inter
    if fraction := options.per_process_gpu_memory_fraction:
        config.gpu_options.per_process_gpu_memory_fraction = fraction
    if options.mixed_precision == "bfloat16":
        config.graph_options.rewrite_options.auto_mixed_precision_onednn_bfloat16 = _ON
    return config


def of_version(path: str, config: tf.compat.v1.ConfigProto) -> tf.compat.v1.ConfigProto:
    """Returns `config` with what the version in the folder `path` says of its own session.

    Raises:
        ServingError: The version's file does not hold what it should.
    """
    file = os.path.join(path, _OF_VERSION)
    if not os.path.exists(file):
        return config
    overrides = _read_overrides(file)
    if overrides is None:
        return config
    changed = tf.compat.v1.ConfigProto.FromString(config.SerializeToString())
    options = changed.graph_options.rewrite_options
    options.disable_meta_optimizer = overrides.disable_meta_optimizer
    for field, (optimizer, key) in _REWRITERS.items():
        if value := getattr(overrides, field):
            known = (each for each in options.custom_optimizers if each.name == optimizer)
            configured = next(known, None) or options.custom_optimizers.add(name=optimizer)
            configured.parameter_map[key].s = base64.b64encode(value)
    return changed


def _of_platform(file: str) -> tf.compat.v1.ConfigProto:
    read = protos.read(file, protos.PlatformConfigMap)
    platforms = {entry.key: entry.value for entry in read.platform_configs}
    if _PLATFORM not in platforms:
        raise invalid(f"{file} must have a platform_configs entry with the key {_PLATFORM!r}")
    adapter = protos.SavedModelBundleSourceAdapterConfig()
    source = platforms[_PLATFORM].source_adapter_config
    if not source.Unpack(adapter):
        raise invalid(f"{file} must hold a {adapter.DESCRIPTOR.full_name}, not {source.type_url}")
    if adapter.legacy_config.HasField("batching_parameters"):
        _LOG.warning(
            "%s: batching_parameters are not taken from here. Give --enable_batching and "
            "--batching_parameters_file.",
            file,
        )
    serialized = adapter.legacy_config.session_config.SerializeToString()
    return tf.compat.v1.ConfigProto.FromString(serialized)


def _read_overrides(file: str):
    with open(file, "rb") as opened:
        content = opened.read()
    try:
        found = protos.SavedModelConfig.FromString(content)
    except DecodeError:
        raise invalid(f"Could not parse {file}: it is no SavedModelConfig") from None
    return found.session_overrides if found.HasField("session_overrides") else None
