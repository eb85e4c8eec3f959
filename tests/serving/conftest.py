"""What the tests of Triton's clients talk to: a plain torch.nn.LSTM, exported as users do it, and an awkward graph."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from serving.config import Batching, Limits, ServerConfig
from serving.server import Server
from tests import wrapped

# Sorted by name, the inputs are a, b and the outputs y_out, z_out: paired so, each state would get the other's value.
CROSSED = """
<ir_version: 8, opset_import: ["" : 17]>
crossed (float[n,3] x, float[n,3] a, float[n,3] b) => (float[n,3] y, float[n,3] z_out, float[n,3] y_out)
<float three = {3}>
{
  z_out = Add(a, x)
  y_out = Sub(b, z_out)
  tripled = Mul(y_out, three)
  y = Add(z_out, tripled)
}
"""


@pytest.fixture(scope="session")
def lstm() -> torch.nn.LSTM:
    """What the model "lstm" was exported from."""
    torch.manual_seed(3)
    torch.set_num_threads(1)  # for models as small as these a second thread only waits
    return torch.nn.LSTM(5, 6, 2, batch_first=True)


@pytest.fixture(scope="session")
def models(lstm: torch.nn.LSTM, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with "lstm" and "crossed", the former without its proof, which takes seconds."""
    from export import __main__ as command  # noqa: PLC0415  most tests need none of this
    from export.pipeline import write_graphs  # noqa: PLC0415
    from model.checkpoint import load  # noqa: PLC0415

    folder = tmp_path_factory.mktemp("triton")
    torch.save(lstm.state_dict(), folder / "lstm.pt")
    crossed = wrapped.save(CROSSED, folder / "crossed.onnx")
    out = folder / "models"
    (out / "lstm" / "1").mkdir(parents=True)
    write_graphs(load(folder / "lstm.pt"), out / "lstm" / "1", "lstm")
    pairs = ["--state", "a=z_out", "--state", "b=y_out"]
    assert not command.main(["wrap", str(crossed), "--name", "crossed", "--out", str(out), *pairs])
    return out


@pytest.fixture(scope="module")
def triton(models: Path) -> Iterator[Server]:
    """One server for the tests of a module that leave it as it was."""
    limits = Limits(max_streams=200, max_steps_per_message=100, window_steps=200, max_message_bytes=100_000)
    running = Server(
        ServerConfig(models, "127.0.0.1:0", grace=0.5, limits=limits, batching=Batching(32, 16), allow_unproved=True)
    )
    running.start()
    yield running
    assert running.drain()
