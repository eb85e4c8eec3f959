"""Reflection as a tool uses it: everything that is needed for a call is asked of the server, nothing known before."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from tritonclient.grpc import service_pb2

from serving.server import Server
from tests.serving.client import SECONDS
from tests.serving.triton_client import given

TRITON = "inference.GRPCInferenceService"


@pytest.fixture
def channel(triton: Server) -> Iterator[grpc.Channel]:
    """A connection to a server."""
    with grpc.insecure_channel(triton.address) as connection:
        yield connection


@pytest.fixture
def pool(channel: grpc.Channel) -> Any:
    """Descriptors that come from the server, when they are asked for."""
    database = ProtoReflectionDescriptorDatabase(channel)
    return descriptor_pool.DescriptorPool(database)


def call(channel: grpc.Channel, method: Any, **fields: Any) -> Any:
    """Call a method by its descriptor."""
    request, answer = (message_factory.GetMessageClass(each) for each in (method.input_type, method.output_type))
    path = f"/{method.containing_service.full_name}/{method.name}"
    start: Any = channel.unary_unary(path, request.SerializeToString, answer.FromString)
    return start(request(**fields), timeout=SECONDS)


def test_every_listed_service_is_described(channel: grpc.Channel, pool: Any) -> None:
    """Ours, Triton's, health and reflection itself, each under the name by which it is called."""
    database = ProtoReflectionDescriptorDatabase(channel)
    services = set(database.get_services())
    assert services == {
        "cellstream.v1.StreamInference",
        TRITON,
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    for name in services:
        assert pool.FindServiceByName(name).full_name == name


def test_a_described_method_can_be_called(channel: grpc.Channel, pool: Any) -> None:
    """Triton's service and ours, by nothing but what reflection says."""
    service = pool.FindServiceByName(TRITON)
    config = call(channel, service.methods_by_name["ModelConfig"], name="lstm").config
    assert config.sequence_batching.oldest.max_candidate_sequences == 200
    answer = call(
        channel,
        service.methods_by_name["ModelInfer"],
        model_name="lstm",
        parameters={
            "sequence_id": {"int64_param": 1},
            "sequence_start": {"bool_param": True},
            "sequence_end": {"bool_param": True},
        },
        inputs=[{"name": "x", "datatype": "FP32", "shape": [1, 5]}],
        raw_input_contents=[given(1).tobytes()],
    )
    assert [len(raw) for raw in answer.raw_output_contents] == [6 * 4]
    ours = pool.FindServiceByName("cellstream.v1.StreamInference")
    assert len(call(channel, ours.methods_by_name["ListModels"]).models) == 2


def test_it_says_what_triton_s_client_says(pool: Any) -> None:
    """Every message and field of ours is in tritonclient's definition: name, number, type, and whether it repeats."""
    theirs = service_pb2.DESCRIPTOR.pool

    def compare(message: Any) -> None:
        other = theirs.FindMessageTypeByName(message.full_name)
        for field in message.fields:
            same = other.fields_by_number[field.number]
            assert (field.name, field.type) == (same.name, same.type)
            assert field.is_repeated == same.is_repeated
            if field.message_type is not None:
                assert field.message_type.full_name == same.message_type.full_name
        for nested in message.nested_types:
            compare(nested)

    for method in pool.FindServiceByName(TRITON).methods:
        same = theirs.FindServiceByName(TRITON).methods_by_name[method.name]
        for side, other in ((method.input_type, same.input_type), (method.output_type, same.output_type)):
            assert side.full_name == other.full_name
            compare(side)
    for message in pool.FindServiceByName(TRITON).file.message_types_by_name.values():
        compare(message)


def test_our_own_names_are_not_told(channel: grpc.Channel) -> None:
    """The package that the protocol has in our process isn't on the wire."""
    stub = reflection_pb2_grpc.ServerReflectionStub(channel)
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol="serving.oip.v1.ModelInferRequest")
    (answer,) = stub.ServerReflectionInfo(iter([asked]), timeout=SECONDS)
    assert answer.error_response.error_code == grpc.StatusCode.NOT_FOUND.value[0]
    asked = reflection_pb2.ServerReflectionRequest(file_containing_symbol="inference.ModelInferRequest")
    (answer,) = stub.ServerReflectionInfo(iter([asked]), timeout=SECONDS)
    files = [
        descriptor_pb2.FileDescriptorProto.FromString(file)
        for file in answer.file_descriptor_response.file_descriptor_proto
    ]
    assert {file.package for file in files} == {"inference"}
