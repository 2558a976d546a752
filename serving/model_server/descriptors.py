"""The protocol for clients in other languages, in the form that all their tools read.

    python -m serving.model_server.descriptors model_server.protoset

writes a FileDescriptorSet of the server's services and of its configuration files' messages, those
that TF Serving's Python package leaves out among them. `grpcurl -protoset` and Node's
`@grpc/proto-loader` take it as it is; of it `protoc --descriptor_set_in=model_server.protoset`
makes code for any language.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import any_pb2, descriptor, descriptor_pb2
from tensorflow.core.protobuf import config_pb2
from tensorflow_serving.apis import model_service_pb2, predict_pb2, prediction_service_pb2
from tensorflow_serving.config import model_server_config_pb2

from serving.model_server import protos


def protoset() -> descriptor_pb2.FileDescriptorSet:
    """Returns the files, each behind those that it needs."""
    files: dict[str, descriptor_pb2.FileDescriptorProto] = {}
    apis = prediction_service_pb2, model_service_pb2, model_server_config_pb2
    for module in (*apis, config_pb2, any_pb2):
        for file in _with_needed(module.DESCRIPTOR):
            if file.name not in files:
                files[file.name] = descriptor_pb2.FileDescriptorProto()
                file.CopyToProto(files[file.name])
    own = [_streaming(), protos.schema()]
    return descriptor_pb2.FileDescriptorSet(file=[*files.values(), *own])


def _with_needed(file: descriptor.FileDescriptor) -> Iterator[descriptor.FileDescriptor]:
    for needed in file.dependencies:
        yield from _with_needed(needed)
    yield file


def _streaming() -> descriptor_pb2.FileDescriptorProto:
    """Returns streaming.proto, as a compiler would have it."""
    file = descriptor_pb2.FileDescriptorProto(
        name="streaming.proto", package="transduce.serving", syntax="proto3"
    )
    file.dependency.append(predict_pb2.DESCRIPTOR.name)
    file.service.add(name="StreamingService").method.add(
        name="PredictStream",
        input_type=f".{predict_pb2.PredictRequest.DESCRIPTOR.full_name}",
        output_type=f".{predict_pb2.PredictResponse.DESCRIPTOR.full_name}",
        client_streaming=True,
        server_streaming=True,
    )
    return file


if __name__ == "__main__":
    Path(sys.argv[1]).write_bytes(protoset().SerializeToString())
