"""Which models there are to be: from flags, from a configuration file, or from a request."""

import os
from collections.abc import Iterable, Mapping

from tensorflow_serving.config.model_server_config_pb2 import (
    ModelConfig,
    ModelServerConfig,
    ModelType,
)

from serving.model_server import protos, source
from serving.model_server.errors import Code, ServingError, invalid, not_found
from serving.model_server.flags import Options

LAYOUT = "NAME/VERSION/saved_model.pb, VERSION a whole number, as in half_plus_two/1/saved_model.pb"
NO_TRANSITION = (
    "Cannot transition to requested config. It is only legal to transition from one "
    "ModelConfigList to another."
)
_PLATFORM = "tensorflow"
_COLLECTORS = ("", "tfrecord")


def from_flags(options: Options) -> ModelServerConfig:
    """Returns the configuration to begin with; without models for a --model_root.

    Raises:
        ServingError: There is nothing to serve; the message says what was expected where.
    """
    if options.model_config_file:
        return protos.read(options.model_config_file, ModelServerConfig)
    if options.model_root:
        _check_root(options.model_root)
        return ModelServerConfig()
    _check_base_path(options.model_base_path)
    return of_models([source.Model(options.model_name, options.model_base_path)])


def check(new: ModelServerConfig, old: ModelServerConfig) -> None:
    """Raises a ServingError unless `new` is sound and may follow `old`."""
    kinds = {config.WhichOneof("config") for config in (new, old)} - {None}
    if "custom_model_config" in kinds or (not new.WhichOneof("config") and kinds):
        raise ServingError(Code.FAILED_PRECONDITION, NO_TRANSITION)
    names = set()
    for model in new.model_config_list.config:
        if model.name in names:
            raise invalid(f"Illegal to list model {model.name} multiple times in config list")
        names.add(model.name)
    platforms = {model.name: _platform(model) for model in old.model_config_list.config}
    for model in new.model_config_list.config:
        _check_model(model, platforms)


def of_models(models: Iterable[source.Model]) -> ModelServerConfig:
    """Returns the configuration that names models of which the latest version is served."""
    config = ModelServerConfig()
    for model in models:
        config.model_config_list.config.add(
            name=model.name, base_path=_absolute(model.base_path), model_platform=_PLATFORM
        )
    return config


def models(config: ModelServerConfig) -> list[source.Model]:
    """Returns the models of a configuration."""
    return [
        source.Model(model.name, model.base_path, _policy(model))
        for model in config.model_config_list.config
    ]


def labels(config: ModelServerConfig) -> dict[str, dict[str, int]]:
    """Returns the version of every label of every model."""
    return {model.name: dict(model.version_labels) for model in config.model_config_list.config}


def _check_model(model: ModelConfig, old_platforms: Mapping[str, str]) -> None:
    if not os.path.isabs(model.base_path) and "://" not in model.base_path:
        raise invalid(
            f"Expected model {model.name} to have an absolute path or URI; "
            f"got base_path()={model.base_path}"
        )
    platform = _platform(model)
    if old_platforms.get(model.name, platform) != platform:
        raise invalid(
            f"Illegal to change a model's platform. For model {model.name} platform was "
            f"{old_platforms[model.name]} and new platform requested is {platform}"
        )
    if platform != _PLATFORM:
        raise invalid(f"Model {model.name} requests unsupported platform {platform}")
    if model.HasField("logging_config"):
        _check_logging(model)


def _check_logging(model: ModelConfig) -> None:
    collector = model.logging_config.log_collector_config
    if not collector.filename_prefix:
        raise invalid(
            f"The logging_config of model {model.name} must have a log_collector_config with a "
            "filename_prefix, such as /logs/requests"
        )
    if collector.type not in _COLLECTORS:
        raise invalid(
            f"The log_collector_config of model {model.name} must have the type "
            f"{_COLLECTORS[-1]!r}, or none. Received: {collector.type!r}"
        )


def _platform(model: ModelConfig) -> str:
    if model.model_type:
        if model.model_platform:
            raise invalid(
                "Illegal setting both ModelServerConfig::model_type (deprecated) and "
                "ModelServerConfig::model_platform."
            )
        if model.model_type != ModelType.TENSORFLOW:
            raise invalid(f"ModelServerConfig::model_type choice {model.model_type} not supported.")
        return _PLATFORM
    if not model.model_platform:
        raise invalid(
            "Illegal setting neither ModelServerConfig::model_type (deprecated) nor "
            f"ModelServerConfig::model_platform, model name is {model.name}"
        )
    return model.model_platform


def _policy(model: ModelConfig) -> source.Policy:
    policy = model.model_version_policy
    match policy.WhichOneof("policy_choice"):
        case "all":
            return source.every
        case "specific":
            return source.specific(policy.specific.versions)
        case _:
            return source.latest(policy.latest.num_versions)


def _absolute(path: str) -> str:
    return path if "://" in path else os.path.abspath(path)


def _check_root(root: str) -> None:
    if source.models_in(root):
        return
    if source.versions_in(root):
        raise not_found(
            f"No model under --model_root={root}: it holds versions, so it is the folder of one "
            f"model. Give --model_base_path={root}, or --model_root={os.path.dirname(root)}."
        )
    raise not_found(f"No model under --model_root={root}. Expected there: {LAYOUT}.")


def _check_base_path(base_path: str) -> None:
    if not source.versions_in(base_path):
        raise not_found(
            f"No versions of the model under --model_base_path={base_path}. "
            "Expected there: VERSION/saved_model.pb, VERSION a whole number."
        )
