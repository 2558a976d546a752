"""TF Serving's messages as far as a client uses them, without TensorFlow.

The modules of the package tensorflow-serving-api import TensorFlow, which takes seconds. What
goes over the wire is field numbers and types; here they are, in a descriptor pool of their own,
so that they live beside the official ones. Enums are int32, which looks the same on the wire.
"""

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

_PACKAGE = "tensorflow.serving"
_FILE = "transduce_client.proto"
_Field = descriptor_pb2.FieldDescriptorProto

# Name, then fields as `number name type`; a `*` is a repeated field, a `%` a map from strings.
_SCHEMA = {
    "Int64Value": "1 value int64",
    "Any": "1 type_url string; 2 value bytes",
    "ModelSpec": "1 name string; 2 version Int64Value; 3 signature_name string",
    "Dim": "1 size int64",
    "TensorShapeProto": "2 dim Dim*; 3 unknown_rank bool",
    "TensorProto": (
        "1 dtype int32; 2 tensor_shape TensorShapeProto; 4 tensor_content bytes; "
        "5 float_val float*; 6 double_val double*; 7 int_val int32*; 8 string_val bytes*; "
        "9 scomplex_val float*; 10 int64_val int64*; 11 bool_val bool*; "
        "12 dcomplex_val double*; 13 half_val int32*; 16 uint32_val uint32*; "
        "17 uint64_val uint64*"
    ),
    "PredictRequest": "1 model_spec ModelSpec; 2 inputs TensorProto%; 3 output_filter string*",
    "PredictResponse": "1 outputs TensorProto%; 2 model_spec ModelSpec",
    "GetModelMetadataRequest": "1 model_spec ModelSpec; 2 metadata_field string*",
    "GetModelMetadataResponse": "1 model_spec ModelSpec; 2 metadata Any%",
    "TensorInfo": "1 name string; 2 dtype int32; 3 tensor_shape TensorShapeProto",
    "SignatureDef": (
        "1 inputs TensorInfo%; 2 outputs TensorInfo%; 3 method_name string; 4 defaults TensorProto%"
    ),
    "SignatureDefMap": "1 signature_def SignatureDef%",
    "GetModelStatusRequest": "1 model_spec ModelSpec",
    "StatusProto": "1 error_code int32; 2 error_message string",
    "ModelVersionStatus": "1 version int64; 2 state int32; 3 status StatusProto",
    "GetModelStatusResponse": "1 model_version_status ModelVersionStatus*",
}


def _build() -> dict[str, type]:
    """Returns a message class for every row of the schema."""
    file = descriptor_pb2.FileDescriptorProto(name=_FILE, package=_PACKAGE, syntax="proto3")
    for name, fields in _SCHEMA.items():
        message = file.message_type.add(name=name)
        for field in fields.split("; "):
            _add_field(message, *field.split())
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return {
        name: message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{_PACKAGE}.{name}"))
        for name in _SCHEMA
    }


def _add_field(message: descriptor_pb2.DescriptorProto, number: str, name: str, kind: str):
    many = kind[-1] in "*%"
    field = message.field.add(name=name, number=int(number))
    field.label = _Field.LABEL_REPEATED if many else _Field.LABEL_OPTIONAL
    if kind.endswith("%"):
        kind = _add_map_entry(message, name, kind[:-1])
    _set_type(field, kind.rstrip("*"))


def _add_map_entry(message: descriptor_pb2.DescriptorProto, name: str, kind: str) -> str:
    entry = message.nested_type.add(name=f"{name.title().replace('_', '')}Entry")
    entry.options.map_entry = True
    _add_field(entry, "1", "key", "string")
    _add_field(entry, "2", "value", kind)
    return f"{message.name}.{entry.name}"


def _set_type(field: descriptor_pb2.FieldDescriptorProto, kind: str) -> None:
    if kind[0].islower():
        field.type = _Field.Type.Value(f"TYPE_{kind.upper()}")
    else:
        field.type = _Field.TYPE_MESSAGE
        field.type_name = f".{_PACKAGE}.{kind}"


_CLASSES = _build()
ModelSpec = _CLASSES["ModelSpec"]
TensorProto = _CLASSES["TensorProto"]
PredictRequest = _CLASSES["PredictRequest"]
PredictResponse = _CLASSES["PredictResponse"]
GetModelMetadataRequest = _CLASSES["GetModelMetadataRequest"]
GetModelMetadataResponse = _CLASSES["GetModelMetadataResponse"]
SignatureDefMap = _CLASSES["SignatureDefMap"]
GetModelStatusRequest = _CLASSES["GetModelStatusRequest"]
GetModelStatusResponse = _CLASSES["GetModelStatusResponse"]
