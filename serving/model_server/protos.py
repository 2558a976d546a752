"""Configuration files in protobuf's text form, and the messages that no package has.

What TF Serving's pip package leaves out, in any of its releases, is described here by its field
numbers, in a descriptor pool of its own.
"""

import logging
from typing import TypeVar

from google.protobuf import (
    any_pb2,
    descriptor,
    descriptor_pb2,
    descriptor_pool,
    message_factory,
    text_format,
)
from google.protobuf.message import Message
from tensorflow.core.protobuf import config_pb2

from serving.model_server.errors import invalid, not_found

_LOG = logging.getLogger(__name__)
_PACKAGE = "tensorflow.serving"
_Field = descriptor_pb2.FieldDescriptorProto
AnyMessage = TypeVar("AnyMessage", bound=Message)

# Name, then fields as `number name type`; a `*` is a repeated field. Number is a wrapper, as in
# google.protobuf.Int64Value, which tells zero from nothing. An Entry is one of a map.
_SCHEMA = {
    "Number": "1 value int64",
    "Text": "1 value string",
    "Truth": "1 value bool",
    "BatchingParameters": (
        "1 max_batch_size Number; 2 batch_timeout_micros Number; 3 max_enqueued_batches Number; "
        "4 num_batch_threads Number; 5 thread_pool_name Text; 6 allowed_batch_sizes int64*; "
        "7 pad_variable_length_inputs bool; 8 enable_large_batch_splitting Truth; "
        "9 max_execution_batch_size Number; 1001 padding Padding*"
    ),
    # Not in TF Serving.
    "Padding": (
        "1 input string; 2 value double; 3 text bytes; 4 lengths string; 5 outputs string*; "
        "6 allowed_lengths int64*"
    ),
    "SessionBundleConfig": "2 session_config tensorflow.ConfigProto; "
    "3 batching_parameters BatchingParameters",
    "SavedModelBundleSourceAdapterConfig": "1000 legacy_config SessionBundleConfig",
    "PlatformConfig": "1 source_adapter_config google.protobuf.Any",
    "PlatformConfigEntry": "1 key string; 2 value PlatformConfig",
    "PlatformConfigMap": "1 platform_configs PlatformConfigEntry*",
    "SessionOverrides": "1 remote_op_remap_config bytes; 2 batch_op_rewriter_config bytes; "
    "3 disable_meta_optimizer bool",
    "SavedModelConfig": "1 session_overrides SessionOverrides; 3 critical bool",
    "PrometheusConfig": "1 enable bool; 2 path string",
    "MonitoringConfig": "1 prometheus_config PrometheusConfig",
    "SSLConfig": "1 server_key string; 2 server_cert string; 3 custom_ca string; "
    "4 client_verify bool",
    "ProfileOptions": "9 duration_ms uint64",
    "ProfileRequest": (
        "1 duration_ms uint64; 4 opts ProfileOptions; 5 repository_root string; "
        "6 session_id string; 7 host_name string; 9 emit_xspace bool"
    ),
    "ProfileResponse": "7 empty_trace bool; 8 xspace bytes",
    "TerminateRequest": "1 session_id string",
    "TerminateResponse": "",
}


def read(path: str, kind: type[AnyMessage]) -> AnyMessage:
    """Returns the message of type `kind` that the file at `path` holds in text form.

    Raises:
        ServingError: There is no such file, or it holds something else.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return text_format.Parse(file.read(), kind(), descriptor_pool=_POOL)
    except OSError as error:
        raise not_found(f"{path}; {error.strerror}") from None
    except (text_format.ParseError, UnicodeDecodeError) as error:
        _LOG.error("Error parsing text-format %s: %s", kind.DESCRIPTOR.full_name, error)
        raise invalid(f"Invalid protobuf file: '{path}'") from None


def schema() -> descriptor_pb2.FileDescriptorProto:
    """Returns the schema as a compiler of `.proto` files would have it."""
    file = descriptor_pb2.FileDescriptorProto(
        name="transduce_model_server.proto", package=_PACKAGE, syntax="proto3"
    )
    file.dependency.extend([any_pb2.DESCRIPTOR.name, config_pb2.DESCRIPTOR.name])
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for field in filter(None, fields.split("; ")):
            _add_field(message, *field.split())
    return file


def _add_file(pool: descriptor_pool.DescriptorPool, file: descriptor.FileDescriptor) -> None:
    for needed in file.dependencies:
        _add_file(pool, needed)
    copied = descriptor_pb2.FileDescriptorProto()
    file.CopyToProto(copied)
    pool.Add(copied)


def _build_pool() -> descriptor_pool.DescriptorPool:
    pool = descriptor_pool.DescriptorPool()
    for needed in (any_pb2, config_pb2):
        _add_file(pool, needed.DESCRIPTOR)
    pool.Add(schema())
    return pool


def _class(name: str) -> type[Message]:
    return message_factory.GetMessageClass(_POOL.FindMessageTypeByName(f"{_PACKAGE}.{name}"))


def _add_field(message: descriptor_pb2.DescriptorProto, number: str, name: str, kind: str) -> None:
    field = message.field.add(name=name, number=int(number))
    field.label = _Field.LABEL_REPEATED if kind.endswith("*") else _Field.LABEL_OPTIONAL
    kind = kind.rstrip("*")
    if "." in kind:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{kind}"
    elif kind[0].islower():
        field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"


_POOL = _build_pool()
_CLASSES = {name: _class(name) for name in _SCHEMA}
BatchingParameters = _CLASSES["BatchingParameters"]
SavedModelBundleSourceAdapterConfig = _CLASSES["SavedModelBundleSourceAdapterConfig"]
PlatformConfigMap = _CLASSES["PlatformConfigMap"]
SavedModelConfig = _CLASSES["SavedModelConfig"]
MonitoringConfig = _CLASSES["MonitoringConfig"]
SSLConfig = _CLASSES["SSLConfig"]
ProfileRequest = _CLASSES["ProfileRequest"]
ProfileResponse = _CLASSES["ProfileResponse"]
TerminateRequest = _CLASSES["TerminateRequest"]
TerminateResponse = _CLASSES["TerminateResponse"]
