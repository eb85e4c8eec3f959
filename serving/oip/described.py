"""The protocol's definition as the wire has it: our files, their package renamed to the one that clients know.

Owns the renaming. In this process the package has a name of its own (see protos/serving/oip/v1/inference.proto); who
asks for a description of the service must be told the names by which it is called.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf import descriptor_pb2

from serving.oip.v1 import inference_pb2, model_config_pb2

PACKAGE = "inference"
_OURS = inference_pb2.DESCRIPTOR.package
_Message = descriptor_pb2.DescriptorProto


def described_files() -> list[descriptor_pb2.FileDescriptorProto]:
    """The files of the protocol, each after those that it imports."""
    files = []
    for module in (model_config_pb2, inference_pb2):
        file = descriptor_pb2.FileDescriptorProto()
        module.DESCRIPTOR.CopyToProto(file)
        file.package = PACKAGE
        for message in _messages(file.message_type):
            for field in message.field:
                if field.type_name:  # a plain field must not have an empty one
                    field.type_name = _renamed(field.type_name)
        for service in file.service:
            for method in service.method:
                method.input_type, method.output_type = _renamed(method.input_type), _renamed(method.output_type)
        files.append(file)
    return files


def _messages(messages: Iterable[_Message]) -> Iterator[_Message]:
    for message in messages:
        yield message
        yield from _messages(message.nested_type)


def _renamed(name: str) -> str:
    """The full name of a type of ours; other names stay."""
    ours = f".{_OURS}."
    return f".{PACKAGE}.{name.removeprefix(ours)}" if name.startswith(ours) else name
