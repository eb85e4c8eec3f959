"""What one would write without this project: grpc.aio, one session.run per message, the state in the handler."""

from __future__ import annotations

import argparse
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnxruntime as ort

from bench.load.shapes import STREAM
from bench.peers.aio_server import add_loop, run
from cellstream.v1 import stream_inference_pb2 as pb
from model.contract import Contract


def _handler(session: ort.InferenceSession) -> Any:
    contract = Contract.from_metadata(session.get_modelmeta().custom_metadata_map)
    (source,), (target,) = contract.inputs, contract.outputs
    names = [target.name, *(state.output for state in contract.states)]

    async def stream(
        requests: AsyncIterator[pb.StreamRequest], _context: grpc.aio.ServicerContext[Any, Any]
    ) -> AsyncIterator[pb.StreamResponse]:
        states = {state.input: state.initial_value().reshape(1, *state.shape) for state in contract.states}
        async for request in requests:
            if request.HasField("open"):
                yield pb.StreamResponse(opened=pb.Opened(model=request.open.model, next_step=1))
                continue
            chunk = request.chunk
            x = np.frombuffer(chunk.inputs[0], source.dtype).reshape(1, chunk.steps, *source.shape)
            y, *after = session.run(names, {source.name: x, **states})
            states = dict(zip(states, after, strict=True))
            outputs = pb.Outputs(first_step=chunk.first_step, steps=chunk.steps, outputs=[y.tobytes()])
            yield pb.StreamResponse(outputs=outputs)

    return grpc.stream_stream_rpc_method_handler(
        stream, pb.StreamRequest.FromString, pb.StreamResponse.SerializeToString
    )


def main() -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.peers.naive", description=__doc__)
    add_loop(parser)
    parser.add_argument("--artifact", type=Path, required=True, metavar="DIR", help="where model.onnx lies")
    options = parser.parse_args()
    session_options = ort.SessionOptions()
    session_options.intra_op_num_threads = 1  # more is slower for models as small as the benchmark's
    path = options.artifact / "model.onnx"
    session = ort.InferenceSession(path, session_options, providers=["CPUExecutionProvider"])
    return run(options, {STREAM: _handler(session)})


if __name__ == "__main__":
    sys.exit(main())
