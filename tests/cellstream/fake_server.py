"""A server whose models are sums, written with public gRPC: its answers can be foretold, and it misbehaves on demand.

`sum`: running sum of int64 [] (inputs -1000 … 1000); `vector`: of float32 [3]; `pair`: a float32 [2] and n int64 [] to
their running sums; `newer` is `sum` with two versions; `odd` has a dtype that numpy doesn't know.
"""

from __future__ import annotations

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np

from cellstream.v1 import stream_inference_pb2 as pb

SERVICE = "cellstream.v1.StreamInference"
REFUSED = 613  # the input of `sum` that the server refuses, though GetModel allows it
FAILED = -613  # the one that it can't compute


def _tensor(name: str, dtype: str, shape: tuple[int, ...] = (), **bounds: int) -> pb.Tensor:
    return pb.Tensor(name=name, dtype=dtype, shape=shape, **bounds)


_MODELS: dict[tuple[str, int], tuple[list[pb.Tensor], list[pb.Tensor]]] = {
    ("sum", 1): ([_tensor("x", "int64", minimum=-1000, maximum=1000)], [_tensor("y", "int64")]),
    ("vector", 1): ([_tensor("x", "float32", (3,))], [_tensor("y", "float32", (3,))]),
    ("pair", 1): (
        [_tensor("a", "float32", (2,)), _tensor("n", "int64")],
        [_tensor("total", "float32", (2,)), _tensor("count", "int64")],
    ),
    ("newer", 1): ([_tensor("x", "int64")], [_tensor("y", "int64")]),
    ("newer", 2): ([_tensor("x", "float32")], [_tensor("y", "float32")]),
    ("odd", 1): ([_tensor("x", "posit8")], [_tensor("y", "float32")]),
}


class Refusal(Exception):  # noqa: N818  as the server's
    """What a call is refused with."""

    def __init__(self, code: grpc.StatusCode, reason: str, message: str) -> None:
        super().__init__(message)
        self.code, self.reason = code, reason


@dataclass
class Behaviour:
    """What a test can turn."""

    slice_steps: int = 4  # a longer chunk is answered in several messages
    window_steps: int = 16
    max_steps_per_message: int = 8
    max_message_bytes: int = 4096
    highest: int = 2  # version of `newer`
    describes: bool = True  # models in Opened; an older server doesn't
    refuse_opens: int = 0  # this many, before they are let through
    refusal: Refusal | None = None  # what they are refused with
    tamper: Callable[[pb.StreamResponse], list[pb.StreamResponse | bytes]] | None = None  # before it is sent


class Sums:
    """One stream's state."""

    def __init__(self, version: int, model: str, inputs: list[pb.Tensor], outputs: list[pb.Tensor]) -> None:
        self.model, self.version, self.inputs, self.outputs = model, version, inputs, outputs
        known = [t for t in self.inputs if t.dtype != "posit8"]
        self._totals = [np.zeros(tuple(t.shape), t.dtype) for t in known]
        self.next_step = 1

    def step_bytes(self) -> list[int]:
        """Bytes of one step of each input."""
        return [total.nbytes for total in self._totals]

    def __call__(self, steps: int, inputs: list[bytes]) -> list[bytes]:
        """Running sums of `steps` steps."""
        outputs = []
        for index, data in enumerate(inputs):
            dtype, shape = self.inputs[index].dtype, tuple(self.inputs[index].shape)
            values = np.frombuffer(data, dtype).reshape(steps, *shape)
            if self.model == "sum" and REFUSED in values:
                raise Refusal(grpc.StatusCode.INVALID_ARGUMENT, "invalid_input", f"input 'x' holds {REFUSED}")
            if self.model == "sum" and FAILED in values:
                raise Refusal(grpc.StatusCode.INTERNAL, "compute_failed", "the model failed")
            sums = np.cumsum(values, axis=0, dtype=dtype) + self._totals[index]
            self._totals[index] = sums[-1]
            outputs.append(sums.astype(dtype).tobytes())
        self.next_step += steps
        return outputs

    def sliced(self, first: int, steps: int, inputs: list[bytes], size: int) -> Iterator[tuple[int, int, list[bytes]]]:
        """A chunk's answers, `size` steps at a time. Raises Refusal for a gap."""
        if first != self.next_step:
            message = f"first_step is {first}; the stream's next step is {self.next_step}"
            raise Refusal(grpc.StatusCode.FAILED_PRECONDITION, "step_gap", message)
        widths = self.step_bytes()
        for at in range(0, steps, size):
            count = min(size, steps - at)
            cut = [data[at * w : (at + count) * w] for data, w in zip(inputs, widths, strict=True)]
            yield first + at, count, self(count, cut)


class FakeServer:
    """The server; `gate` closed (cleared), it takes steps and doesn't answer them."""

    def __init__(self, behaviour: Behaviour | None = None, port: int = 0) -> None:
        self.behaviour = behaviour or Behaviour()
        self.gate = threading.Event()
        self.gate.set()
        self.arrived = threading.Semaphore(0)  # once for every chunk
        self.metadata: list[dict[str, Any]] = []  # of every call
        self.opens = 0
        self.most_ahead = 0  # most steps that had arrived in a stream and weren't answered
        self.model_requests = 0
        self.descriptions = 0  # that were sent in Opened
        self.models = dict(_MODELS)
        self.calls: set[queue.SimpleQueue[Any]] = set()
        self._server = grpc.server(ThreadPoolExecutor(40))
        handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            "Stream": grpc.stream_stream_rpc_method_handler(
                self._stream,
                pb.StreamRequest.FromString,
                lambda m: m if isinstance(m, bytes) else m.SerializeToString(),
            ),
            "Multiplex": grpc.stream_stream_rpc_method_handler(
                self._multiplex, pb.MultiplexRequest.FromString, pb.MultiplexResponse.SerializeToString
            ),
            "ListModels": grpc.unary_unary_rpc_method_handler(
                self._list, pb.ListModelsRequest.FromString, pb.ListModelsResponse.SerializeToString
            ),
            "GetModel": grpc.unary_unary_rpc_method_handler(
                self._get, pb.GetModelRequest.FromString, pb.GetModelResponse.SerializeToString
            ),
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        self.port = self._server.add_insecure_port(f"127.0.0.1:{port}")
        self.secure_port = self._server.add_secure_port("127.0.0.1:0", grpc.local_server_credentials())
        self.address = f"127.0.0.1:{self.port}"
        self._server.start()

    def go_away(self, grace_ms: int = 5000) -> None:
        """Tell every live call that the server shuts down."""
        for events in tuple(self.calls):
            events.put(pb.GoAway(grace_ms=grace_ms))

    def die(self) -> None:
        """Stop without a word."""
        self.gate.set()
        self._server.stop(None).wait()

    def _list(self, _request: Any, _context: Any) -> pb.ListModelsResponse:
        return pb.ListModelsResponse(
            models=[pb.ModelSummary(name=name, version=version, ready=True) for name, version in sorted(self.models)]
        )

    def _version(self, name: str, version: int) -> int:
        version = version or (self.behaviour.highest if name == "newer" else 1)
        if (name, version) not in self.models:
            raise Refusal(grpc.StatusCode.NOT_FOUND, "unknown_model", f"no model {name!r} in version {version}")
        return version

    def _get(self, request: pb.GetModelRequest, context: grpc.ServicerContext) -> pb.GetModelResponse:
        self.model_requests += 1
        try:
            version = self._version(request.model, request.version)
        except Refusal as refusal:
            _abort(context, refusal)
        return self._describe(request.model, version)

    def _describe(self, name: str, version: int) -> pb.GetModelResponse:
        inputs, outputs = self.models[name, version]
        b = self.behaviour
        message = pb.GetModelResponse(
            name=name,
            version=version,
            ready=True,
            inputs=inputs,
            outputs=outputs,
            states=[pb.State(input="s", output="s_out", dtype="float32", shape=[2, 4])],
            precision="float32",
            device="cpu",
            weights_digest="0123",
            certificate_json='{"passed": true}' if name == "sum" else "",
            limits=pb.Limits(
                max_streams=10,
                max_steps_per_message=b.max_steps_per_message,
                max_waiting_steps=1000,
                max_message_bytes=b.max_message_bytes,
                window_steps=b.window_steps,
            ),
            notes={"made by": "nobody"},
        )
        if b.describes:
            message.digest = hashlib.sha256(message.SerializeToString(deterministic=True)).digest()
        return message

    def _events(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        """What arrives, and GoAway when told to; ends at half-close and when the call is over."""
        self.metadata.append(dict(context.invocation_metadata()))
        events: queue.SimpleQueue[Any] = queue.SimpleQueue()

        def read() -> None:
            try:
                for request in requests:
                    events.put(request)
            except Exception:  # noqa: BLE001  the call is over
                pass
            events.put(None)

        threading.Thread(target=read, name="fake-reader", daemon=True).start()
        self.calls.add(events)
        try:
            yield from iter(events.get, None)
        finally:
            self.calls.discard(events)

    def _stream(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        try:
            for response in self._answers(requests, context):
                yield from self.behaviour.tamper(response) if self.behaviour.tamper else [response]
        except Refusal as refusal:
            _abort(context, refusal)

    def _answers(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[pb.StreamResponse]:
        sums: Sums | None = None
        for event in self._events(requests, context):
            if isinstance(event, pb.GoAway):
                yield pb.StreamResponse(go_away=event)
            elif event.WhichOneof("message") == "open":
                sums, opened = self._open(event.open)
                yield pb.StreamResponse(opened=opened)
            else:
                assert sums is not None
                chunk = event.chunk
                assert len(event.SerializeToString()) <= self.behaviour.max_message_bytes
                self.most_ahead = max(self.most_ahead, chunk.first_step + chunk.steps - sums.next_step)
                self.arrived.release()
                self.gate.wait()
                inputs = list(chunk.inputs)
                for first, steps, outputs in sums.sliced(
                    chunk.first_step, chunk.steps, inputs, self.behaviour.slice_steps
                ):
                    yield pb.StreamResponse(outputs=pb.Outputs(first_step=first, steps=steps, outputs=outputs))

    def _open(self, opening: pb.Open) -> tuple[Sums, pb.Opened]:
        self.opens += 1
        b = self.behaviour
        if b.refuse_opens > 0 and b.refusal is not None:
            b.refuse_opens -= 1
            raise b.refusal
        version = self._version(opening.model, opening.version)
        opened = pb.Opened(
            model=opening.model,
            version=version,
            stream_id=opening.stream_id or "given",
            next_step=1,
            epoch=1,
            window_steps=b.window_steps,
            max_steps_per_message=b.max_steps_per_message,
        )
        description = self._describe(opening.model, version)
        opened.model_digest = description.digest
        if b.describes and opening.HasField("known_digest") and opening.known_digest != description.digest:
            opened.description.CopyFrom(description)
            self.descriptions += 1
        return Sums(version, opening.model, *self.models[opening.model, version]), opened

    def _multiplex(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[pb.MultiplexResponse]:
        members: dict[int, Sums] = {}
        for event in self._events(requests, context):
            if isinstance(event, pb.GoAway):
                yield pb.MultiplexResponse(go_away=event)
                continue
            for opening in event.opens:
                try:
                    members[opening.key], opened = self._open(opening.open)
                    yield pb.MultiplexResponse(opened=[pb.MultiplexOpened(key=opening.key, opened=opened)])
                except Refusal as refusal:
                    yield _ended(opening.key, refusal)
            assert len(event.SerializeToString()) <= self.behaviour.max_message_bytes or event.opens
            for rows in event.steps:
                self.arrived.release()
                self.gate.wait()
                yield from self._rows(members, rows)
            for key in event.closes:
                members.pop(key, None)
                yield pb.MultiplexResponse(ended=[pb.MultiplexEnded(key=key)])
        yield pb.MultiplexResponse(ended=[pb.MultiplexEnded(key=key) for key in members])

    def _rows(self, members: dict[int, Sums], rows: pb.StepRows) -> Iterator[pb.MultiplexResponse]:
        """Every key's slices; the first slice of each together in one message, in another order than they came."""
        starts = [0] * len(rows.tensors)
        together: list[tuple[int, int, int, list[bytes]]] = []
        later: list[tuple[int, int, int, list[bytes]]] = []
        for key, first, steps in zip(
            rows.keys, rows.first_steps, list(rows.steps) or [1] * len(rows.keys), strict=True
        ):
            sums = members[key]
            inputs = []
            for index, width in enumerate(sums.step_bytes()):
                inputs.append(rows.tensors[index][starts[index] : starts[index] + steps * width])
                starts[index] += steps * width
            try:
                answers = [(key, *a) for a in sums.sliced(first, steps, inputs, self.behaviour.slice_steps)]
            except Refusal as refusal:
                members.pop(key)
                yield _ended(key, refusal)
                continue
            together.insert(0, answers[0])
            later += answers[1:]
        for batch in [together, *([answer] for answer in later)]:
            if batch:
                columns = [b"".join(answer[3][i] for answer in batch) for i in range(len(batch[0][3]))]
                yield pb.MultiplexResponse(
                    outputs=[
                        pb.StepRows(
                            keys=[answer[0] for answer in batch],
                            first_steps=[answer[1] for answer in batch],
                            steps=[answer[2] for answer in batch] if any(answer[2] > 1 for answer in batch) else (),
                            tensors=columns,
                        )
                    ]
                )


def _ended(key: int, refusal: Refusal) -> pb.MultiplexResponse:
    code = refusal.code.value[0]
    return pb.MultiplexResponse(
        ended=[pb.MultiplexEnded(key=key, code=code, reason=refusal.reason, message=str(refusal))]
    )


def _abort(context: grpc.ServicerContext, refusal: Refusal) -> Any:
    context.set_trailing_metadata((("cellstream-reason", refusal.reason),))
    context.abort(refusal.code, str(refusal))
