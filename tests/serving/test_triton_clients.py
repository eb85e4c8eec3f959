"""Triton's own clients over a real port, blocking, with callbacks, streaming and asyncio; answers beside PyTorch's."""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from tritonclient.grpc import InferRequestedOutput, aio, service_pb2

from serving.server import Server
from tests.serving.client import SECONDS
from tests.serving.triton_client import Error, Stream, ask, check, connect, given, raw_infer, request, streaming, tensor
from tests.waiting import wait_until


def live(server: Server) -> int:
    """Sequences that are live."""
    return sum(len(lane.sequences) for lane in server.lanes)


@pytest.fixture(autouse=True)
def nothing_left(triton: Server) -> Any:
    """No test leaves a sequence, and the books balance after each."""
    yield
    wait_until(lambda: live(triton) == 0)
    wait_until(lambda: all(lane.streams.rows.in_use == 0 for lane in triton.lanes))
    for lane in triton.lanes:
        lane.sequences.check()


@pytest.mark.parametrize("key", [7, 2**63 - 1, -3, "seven", "7"])
def test_one_step_a_request_carries_the_state(triton: Server, lstm: torch.nn.LSTM, key: int | str) -> None:
    """Twelve unary requests of one step each are PyTorch's twelve steps, whatever kind of id."""
    x = given(1, 12)
    with connect(triton) as client:
        found = [ask(client, x[t], key, sequence_start=t == 0, sequence_end=t == 11) for t in range(12)]
    check(np.stack(found), lstm, x)


def test_several_steps_a_request(triton: Server, lstm: torch.nn.LSTM) -> None:
    """[1,T,F] is T steps and answered as [1,T,H]; [1,F] is one and answered as [1,H]; they mix."""
    x = given(2, 40)
    with connect(triton) as client:
        first = ask(client, x[:33], 1, sequence_start=True)
        second = ask(client, x[33], 1)
        third = ask(client, x[34:], 1, sequence_end=True)
    assert [part.shape for part in (first, second, third)] == [(33, 6), (6,), (6, 6)]
    check(np.concatenate([first, second[None], third]), lstm, x)


def test_start_and_end_in_one_request(triton: Server, lstm: torch.nn.LSTM) -> None:
    """A whole sequence in a request leaves nothing."""
    x = given(3, 20)
    with connect(triton) as client:
        check(ask(client, x, 5, sequence_start=True, sequence_end=True), lstm, x)
    assert live(triton) == 0


def test_callbacks_and_their_requests(triton: Server, lstm: torch.nn.LSTM) -> None:
    """async_infer calls back with each answer."""
    x = given(4, 6)
    answers: queue.SimpleQueue[Any] = queue.SimpleQueue()
    with connect(triton) as client:
        found = []
        for t in range(6):
            client.async_infer(
                "lstm",
                [tensor(x[t])],
                lambda result, error: answers.put((result, error)),
                sequence_id="async",
                sequence_start=t == 0,
                sequence_end=t == 5,
                request_id=f"r{t}",
            )
            result, error = answers.get(timeout=SECONDS)
            assert error is None
            assert result.get_response().id == f"r{t}"
            found.append(result.as_numpy("y")[0])
    check(np.stack(found), lstm, x)


def test_a_stream_answers_in_order(triton: Server, lstm: torch.nn.LSTM) -> None:
    """Pipelined requests of five sequences over one stream come back in their order, ids echoed, numbers right."""
    x = {key: given(10 + key, 20) for key in range(1, 6)}
    order = np.random.default_rng(0).permutation(np.repeat(list(x), 20))
    taken = dict.fromkeys(x, 0)
    found: dict[int, list[Any]] = {key: [] for key in x}
    with streaming(triton) as stream:
        for count, key in enumerate(map(int, order)):
            t = taken[key]
            taken[key] += 1
            start, end = t == 0, t == 19
            stream.send(x[key][t], key, request_id=str(count), sequence_start=start, sequence_end=end)
        for count, key in enumerate(map(int, order)):
            result = stream.result()
            assert result.get_response().id == str(count)
            found[key].append(result.as_numpy("y")[0])
    for key, answers in found.items():
        check(np.stack(answers), lstm, x[key])


def test_stopping_without_cancel_answers_all_and_keeps_the_sequence(triton: Server, lstm: torch.nn.LSTM) -> None:
    """stop_stream() waits for what was sent; another connection goes on with the state."""
    x = given(20, 60)
    with connect(triton) as client:
        stream = Stream(client)
        for t in range(50):
            stream.send(x[t], "kept", sequence_start=t == 0)
        stream.stop()
        found = [stream.y() for _ in range(50)]
    with connect(triton) as client:
        check(np.stack([*found, *ask(client, x[50:], "kept", sequence_end=True)]), lstm, x)


def test_a_sequence_moves_between_calls(triton: Server, lstm: torch.nn.LSTM) -> None:
    """Stream A, then stream B after A was cancelled, then unary, then A's connection again: one state."""
    x = given(21, 5)
    found = []
    with connect(triton) as one, connect(triton) as other:
        first = Stream(one)
        first.send(x[0], 9, sequence_start=True)
        found.append(first.y())
        first.stop(cancel=True)
        second = Stream(other)
        second.send(x[1], 9)
        found.append(second.y())
        found.append(ask(one, x[2], 9))
        second.send(x[3], 9)
        found.append(second.y())
        second.stop()
        found.append(ask(one, x[4], 9, sequence_end=True))
    check(np.stack(found), lstm, x)


def test_many_sequences_at_once(triton: Server, lstm: torch.nn.LSTM) -> None:
    """64 sequences, half of them unary and half in eight streams, over eight connections, each with its own numbers."""

    def unary(client: Any, key: int) -> dict[int, list[Any]]:
        x = given(key, 12)
        return {key: [ask(client, x[t], key, sequence_start=t == 0, sequence_end=t == 11) for t in range(12)]}

    def streamed(client: Any, keys: range) -> dict[int, list[Any]]:
        found: dict[int, list[Any]] = {key: [] for key in keys}
        stream = Stream(client)
        for t in range(12):
            for key in keys:
                stream.send(given(key, 12)[t], str(key), sequence_start=t == 0, sequence_end=t == 11)
            for key in keys:
                found[key].append(stream.y())
        stream.stop()
        return found

    with ExitStack() as stack, ThreadPoolExecutor(16) as pool:
        clients = [stack.enter_context(connect(triton)) for _ in range(8)]
        some = [pool.submit(streamed, client, range(100 + 4 * i, 104 + 4 * i)) for i, client in enumerate(clients)]
        others = [pool.submit(unary, clients[key % 8], key) for key in range(1, 33)]
        found = {key: answers for each in (*some, *others) for key, answers in each.result().items()}
    assert len(found) == 64
    for key, answers in found.items():
        check(np.stack(answers), lstm, given(key, 12))


def test_asyncio(triton: Server, lstm: torch.nn.LSTM) -> None:
    """The asyncio client: eight sequences at once by infer, and two in one stream_infer."""

    async def unary(client: Any, key: int) -> list[Any]:
        x, found = given(key, 8), []
        for t in range(8):
            flags = {"sequence_start": t == 0, "sequence_end": t == 7}
            found.append((await client.infer("lstm", [tensor(x[t])], sequence_id=key, **flags)).as_numpy("y")[0])
        return found

    async def requests() -> AsyncIterator[dict[str, Any]]:
        for t in range(8):
            for key in ("a", "b"):
                x = given(ord(key), 8)
                flags = {"sequence_start": t == 0, "sequence_end": t == 7}
                yield {"model_name": "lstm", "inputs": [tensor(x[t])], "sequence_id": key, **flags}

    async def all_of_it() -> tuple[list[list[Any]], list[Any]]:
        async with aio.InferenceServerClient(triton.address) as client:
            together = await asyncio.gather(*[unary(client, key) for key in range(1, 9)])
            streamed = []
            async for result, error in client.stream_infer(requests()):
                assert error is None
                streamed.append(result.as_numpy("y")[0])
            return together, streamed

    together, streamed = asyncio.run(all_of_it())
    for key, found in enumerate(together, 1):
        check(np.stack(found), lstm, given(key, 8))
    for place, name in enumerate("ab"):
        check(np.stack(streamed[place::2]), lstm, given(ord(name), 8))


def test_outputs_that_are_asked_for(triton: Server) -> None:
    """By name; one that isn't the model's is refused in Triton's words, and a state isn't an output."""
    with connect(triton) as client:
        wanted = [InferRequestedOutput("y")]
        assert ask(client, given(1)[0], 1, sequence_start=True, outputs=wanted).shape == (6,)
        for name in ("nothing", "h_out"):
            with pytest.raises(Error, match=f"unexpected inference output '{name}' for model 'lstm'") as refused:
                ask(client, given(1)[0], 1, outputs=[InferRequestedOutput(name)])
            assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
        client.infer("lstm", [], sequence_id=1, sequence_end=True)


def test_errors_on_a_stream_do_not_end_it(triton: Server, lstm: torch.nn.LSTM) -> None:
    """A refused request is answered in its place; the sequence's state hasn't moved, and the others' neither."""
    x = given(30, 3)
    with streaming(triton) as stream:
        stream.send(x[0], 1, sequence_start=True, request_id="good")
        stream.send(np.full(5, np.nan, np.float32), 1, request_id="bad")
        stream.send(given(1)[0], 2, request_id="never started")
        stream.send(x[1], 1)
        stream.send(given(1)[0], 3, model="nobody")
        stream.send(x[2], 1, sequence_end=True)
        found = [stream.y()]
        with pytest.raises(Error, match=r"input 'x' holds nan .* every value must be finite"):
            stream.result()
        with pytest.raises(Error, match="must specify the START flag on the first request of the sequence"):
            stream.result()
        found.append(stream.y())
        with pytest.raises(Error, match="Request for unknown model: 'nobody' is not found"):
            stream.result()
        found.append(stream.y())
    check(np.stack(found), lstm, x)


def test_by_header_an_error_is_the_status(triton: Server) -> None:
    """With triton_grpc_error a refused request ends the stream with its status, after the answers before it."""
    with streaming(triton, headers={"triton_grpc_error": "true"}) as stream:
        stream.send(given(1)[0], 1, sequence_start=True, sequence_end=True)
        stream.send(given(1)[0], 99)
        stream.send(given(1)[0], 98, sequence_start=True, sequence_end=True)
        assert stream.y().shape == (6,)
        with pytest.raises(Error, match="sequence 99 to model 'lstm' must specify the START flag") as refused:
            stream.result()
        assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"


def test_final_responses(triton: Server) -> None:
    """Asked for, every answer says that it is its request's last; otherwise none does. No answer is empty."""
    with streaming(triton) as stream:
        for asked in (True, False):
            stream.send(given(1)[0], 1, enable_empty_final_response=asked, sequence_start=True, sequence_end=True)
            response = stream.result().get_response()
            assert len(response.raw_output_contents) == 1
            assert ("triton_final_response" in response.parameters) is asked
            assert response.parameters["triton_final_response"].bool_param is asked


def test_priority_and_timeout_are_taken(triton: Server) -> None:
    """Nothing waits in a backlog here, so both are accepted and change nothing; a client's own parameters too."""
    with connect(triton) as client:
        options = {"priority": 3, "timeout": 5_000_000, "parameters": {"mine": "x", "more": 1.5}}
        assert ask(client, given(1)[0], 1, sequence_start=True, sequence_end=True, **options).shape == (6,)


@pytest.mark.parametrize("algorithm", ["gzip", "deflate"])
def test_compressed_requests(triton: Server, lstm: torch.nn.LSTM, algorithm: str) -> None:
    """The compression that gRPC has itself, unary and on a stream."""
    x = given(41, 90)
    with connect(triton) as client:
        found = ask(client, x[:45], 1, sequence_start=True, compression_algorithm=algorithm)
        stream = Stream(client, compression_algorithm=algorithm)
        stream.send(x[45:], 1, sequence_end=True)
        check(np.concatenate([found, stream.y()]), lstm, x)
        stream.stop()


def test_both_definitions_of_the_protocol_in_one_process(triton: Server, lstm: torch.nn.LSTM) -> None:
    """Messages of tritonclient with typed contents, over plain gRPC, beside ours: the same answer as raw bytes."""
    from serving.oip.v1 import inference_pb2  # noqa: PLC0415

    assert inference_pb2.ModelInferRequest.DESCRIPTOR.full_name != service_pb2.ModelInferRequest.DESCRIPTOR.full_name
    x = given(40, 4)
    typed = service_pb2.ModelInferRequest(model_name="lstm", id="typed")
    typed.parameters["sequence_id"].int64_param = 4
    typed.parameters["sequence_start"].bool_param = True
    typed.parameters["sequence_end"].bool_param = True
    x_typed = typed.inputs.add(name="x", datatype="FP32", shape=[1, 4, 5])
    x_typed.contents.fp32_contents.extend(x.ravel())
    ours = inference_pb2.ModelInferRequest.FromString(typed.SerializeToString())
    with grpc.insecure_channel(triton.address) as channel:
        for message in (typed, ours):
            answer = raw_infer(channel)(message, timeout=SECONDS)
            assert (answer.id, list(answer.outputs[0].shape)) == ("typed", [1, 4, 6])
            check(np.frombuffer(answer.raw_output_contents[0], "<f4").reshape(4, 6), lstm, x)


def _edited(**edits: Any) -> Any:
    """A request that starts and ends sequence 1, with something changed."""
    made = request(1, start=True, end=True)
    made.raw_input_contents[0] = edits.pop("data", made.raw_input_contents[0])
    (x,) = made.inputs
    x.shape[:] = edits.pop("shape", x.shape)
    x.name, x.datatype = edits.pop("name", x.name), edits.pop("datatype", x.datatype)
    assert not edits
    return made


def _without_id() -> Any:
    made = _edited()
    del made.parameters["sequence_id"]
    return made


def _parameter(name: str, **value: Any) -> Any:
    made = _edited()
    made.parameters[name].Clear()
    made.parameters[name].MergeFrom(service_pb2.InferParameter(**value))
    return made


def _twice() -> Any:
    made = _edited()
    made.inputs.append(made.inputs[0])
    made.raw_input_contents.append(made.raw_input_contents[0])
    return made


def _both() -> Any:
    made = _edited()
    made.inputs[0].contents.fp32_contents.extend([0.0] * 5)
    return made


def _shared() -> Any:
    made = _edited()
    made.inputs[0].parameters["shared_memory_region"].string_param = "mine"
    return made


def _versioned(version: str) -> Any:
    made = _edited()
    made.model_version = version
    return made


@pytest.mark.parametrize(
    ("wrong", "code", "text"),
    [
        (_without_id(), "INVALID_ARGUMENT", "must specify a non-zero or non-empty correlation ID"),
        (_parameter("sequence_id", int64_param=0), "INVALID_ARGUMENT", "non-zero or non-empty correlation ID"),
        (_parameter("sequence_id", string_param=""), "INVALID_ARGUMENT", "non-zero or non-empty correlation ID"),
        (_parameter("sequence_id", uint64_param=1), "INVALID_ARGUMENT", "expected int64_param or string_param."),
        (_parameter("sequence_start", int64_param=1), "INVALID_ARGUMENT", "invalid value type for 'sequence_start'"),
        (_parameter("triton_else", bool_param=True), "INVALID_ARGUMENT", "parameter 'triton_else' isn't known"),
        (_parameter("cellstream_stepp", int64_param=1), "INVALID_ARGUMENT", "'cellstream_stepp' isn't known"),
        (_edited(name="z"), "INVALID_ARGUMENT", "unexpected inference input 'z' for model 'lstm'"),
        (_edited(datatype="FP64"), "INVALID_ARGUMENT", "data-type is 'FP64', but model 'lstm' expects 'FP32'"),
        (_edited(shape=[2, 5]), "INVALID_ARGUMENT", "must specify batch-size 1 due to requirements of sequence"),
        (_edited(shape=[1, 6]), "INVALID_ARGUMENT", "Expected [1,-1,5] or [1,5], got [1,6]"),
        (_edited(shape=[1, 0, 5], data=b""), "INVALID_ARGUMENT", "got [1,0,5]"),
        (_edited(shape=[6]), "INVALID_ARGUMENT", "got [6]"),
        (_edited(data=b"short"), "INVALID_ARGUMENT", "5 bytes"),
        (_edited(shape=[1, 101, 5], data=bytes(2020)), "RESOURCE_EXHAUSTED", "101 steps"),
        (_edited(shape=[1, 100_000, 5], data=bytes(110_000)), "RESOURCE_EXHAUSTED", "100000"),
        (_edited(data=np.full(5, np.inf, "<f4").tobytes()), "INVALID_ARGUMENT", "finite"),
        (_twice(), "INVALID_ARGUMENT", "input 'x' stands twice"),
        (_both(), "INVALID_ARGUMENT", "contents field must not be specified when using raw_input_contents"),
        (_shared(), "UNIMPLEMENTED", "shared memory"),
        (_versioned("2"), "NOT_FOUND", "Request for unknown model: 'lstm' version 2 is not found"),
        (_versioned("one"), "INVALID_ARGUMENT", "failed to get model version from specified version string 'one'"),
    ],
)
def test_what_is_wrong_is_said(triton: Server, wrong: Any, code: str, text: str) -> None:
    """Every mistake has its code and a text that names it, unary and on a stream, and leaves no sequence."""
    with grpc.insecure_channel(triton.address) as channel:
        with pytest.raises(grpc.RpcError) as refused:
            raw_infer(channel)(wrong, timeout=SECONDS)
        assert refused.value.code().name == code
        assert text in str(refused.value.details())
        stream: Any = channel.stream_stream(
            "/inference.GRPCInferenceService/ModelStreamInfer",
            request_serializer=service_pb2.ModelInferRequest.SerializeToString,
            response_deserializer=service_pb2.ModelStreamInferResponse.FromString,
        )
        (answer,) = stream(iter([wrong]), timeout=SECONDS)
        assert text in answer.error_message
        assert not answer.infer_response.raw_output_contents
