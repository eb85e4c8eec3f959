"""The connection: models, metadata, policies, and what importing it brings along."""

from __future__ import annotations

import gc
import pickle
import subprocess
import sys
import weakref
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

import cellstream
from cellstream import errors
from tests.cellstream.fake_server import FakeServer


def test_models_are_described(client: cellstream.Client) -> None:
    """The list of models, and one model with its tensors, states, limits and certificate."""
    assert cellstream.ModelSummary("sum", 1, ready=True) in client.models()
    model = client.model("sum")
    assert model.inputs == (cellstream.Tensor("x", "int64", (), -1000, 1000),)
    assert model.outputs == (cellstream.Tensor("y", "int64", ()),)
    assert model.states == (cellstream.State("s", "s_out", "float32", (2, 4)),)
    assert model.limits.max_steps_per_message == 8
    assert model.certificate == {"passed": True}
    assert (model.device, model.precision, model.weights_digest) == ("cpu", "float32", "0123")
    assert model.notes == {"made by": "nobody"}
    assert client.model("vector").certificate is None
    assert client.model("newer", 1).version == 1


def test_a_model_is_shown_in_one_line(client: cellstream.Client) -> None:
    """Printing a model is short: tensors and where it runs, and not the certificate."""
    with client.stream("sum") as stream:
        assert str(stream.model) == (
            "<Model sum/1: x int64[] -1000 … 1000 -> y int64[], 1 state, float32 on cpu, proved, weights 0123>"
        )
    assert "unproved" in repr(client.model("pair"))


def test_an_unknown_model(client: cellstream.Client) -> None:
    """A name or version that isn't served raises UnknownModel, with the server's text, wherever it is used."""
    for ask in (lambda: client.model("nope"), lambda: client.stream("nope"), lambda: client.multiplex("sum", 7)):
        with pytest.raises(cellstream.UnknownModel, match=r"no model '(nope|sum)' in version") as caught:
            ask()
        assert (caught.value.code, caught.value.reason) == ("NOT_FOUND", "unknown_model")
    with pytest.raises(cellstream.UnsupportedModel):
        client.stream("odd")


def test_metadata_goes_with_every_call(server: FakeServer) -> None:
    """The client's metadata and the stream's own reach the server."""
    with cellstream.connect(server.address, metadata=[("authorization", "Bearer me")]) as client:
        client.stream("sum", metadata=[("x-tenant", "7")]).close()
    assert server.metadata[0]["authorization"] == "Bearer me"
    assert server.metadata[0]["x-tenant"] == "7"


def test_no_server(server: FakeServer) -> None:
    """Without a server everything raises Unavailable; with wait_for_ready it is waited for, to the policy's limit."""
    server.die()
    quick = cellstream.Retry(attempts=2, first=0.01, total=0.5)
    with cellstream.connect(server.address, retry=quick) as client:
        with pytest.raises(cellstream.Unavailable):
            client.models()
        with pytest.raises(cellstream.Unavailable):
            client.stream("sum")
    with cellstream.connect(server.address, channel=cellstream.Channel(wait_for_ready=True), retry=quick) as client:
        with pytest.raises(cellstream.DeadlineExceeded):
            client.stream("sum")
        with pytest.raises(cellstream.DeadlineExceeded):
            client.models(timeout=0.1)


def test_a_server_that_comes_up_is_found(server: FakeServer) -> None:
    """One client outlives its server: while there is none it waits, and then goes on with the next one."""
    with cellstream.connect(server.address, channel=cellstream.Channel(wait_for_ready=True)) as client:
        with client.stream("sum") as stream:
            assert stream.step(1) == 1
        server.die()
        with ThreadPoolExecutor(1) as pool:
            waiting = pool.submit(client.stream, "sum", timeout=20)
            again = FakeServer(port=server.port)
            assert waiting.result(20).step(2) == 2
    again.die()


def test_tls_needs_a_server_that_speaks_it(server: FakeServer) -> None:
    """Credentials are used: a plaintext server can't be reached with them."""
    quick = cellstream.Retry(attempts=1, total=5)
    with (
        cellstream.connect(server.address, credentials=grpc.ssl_channel_credentials(), retry=quick) as client,
        pytest.raises(cellstream.Unavailable),
    ):
        client.stream("sum")


def test_a_secure_channel(server: FakeServer) -> None:
    """Over a channel with credentials that fit, all is as without."""
    address = f"127.0.0.1:{server.secure_port}"
    with (
        cellstream.connect(address, credentials=grpc.local_channel_credentials()) as client,
        client.stream("sum") as stream,
    ):
        assert stream.step(1) == 1


def test_closing_the_client_ends_its_streams(server: FakeServer) -> None:
    """A stream doesn't outlive its client."""
    client = cellstream.connect(server.address)
    stream, multiplex = client.stream("sum"), client.multiplex("sum")
    multiplex.open(1)
    client.close()
    client.close()
    for ask in (client.models, lambda: client.stream("sum"), lambda: client.multiplex("sum")):
        with pytest.raises(cellstream.StreamClosed, match="the client is closed"):
            ask()
    with pytest.raises(cellstream.StreamClosed):
        stream.step(1)
    with pytest.raises(cellstream.StreamClosed):
        multiplex.step({1: 1})


@pytest.mark.parametrize(
    "use", ["stream.step(1)", "next(stream.run(itertools.repeat(1)))", "g = stream.run([1]); next(g)"]
)
def test_a_program_may_leave_without_closing(server: FakeServer, use: str) -> None:
    """Neither an open stream nor a run that is under way holds up the interpreter's exit."""
    code = f"import itertools, cellstream; stream = cellstream.connect({server.address!r}).stream('sum'); {use}"
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False, timeout=20
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_stream_keeps_its_client(server: FakeServer) -> None:
    """Whoever holds a stream can use it; a client that nobody holds is disconnected."""
    stream = cellstream.connect(server.address).stream("sum")
    gc.collect()
    assert stream.step(1) == 1
    client = weakref.ref(stream._forget.__self__)  # type: ignore[attr-defined]
    stream.close()
    del stream
    gc.collect()
    assert client() is None


def test_the_client_stands_alone() -> None:
    """Importing cellstream brings in neither torch, onnx, onnxruntime nor any other folder of this repository."""
    others = ["torch", "onnx", "onnxruntime", "safetensors", "serving", "model", "export", "rich", "structlog"]
    code = (
        "import sys, cellstream, cellstream.examples.complete; "
        f"sys.exit(repr([name for name in {others} if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert done.stderr.strip() == "[]"


@given(
    failed=st.integers(1, 10_000),
    elapsed=st.floats(0, 100),
    dice=st.floats(0, 1, exclude_max=True),
    first=st.floats(0, 10),
    longest=st.floats(0, 60),
)
def test_backing_off_stays_within_its_bounds(
    failed: int, elapsed: float, dice: float, first: float, longest: float
) -> None:
    """A wait is never longer than the longest, and never ends after the total time or the last attempt."""
    retry = cellstream.Retry(attempts=5000, total=30, first=first, longest=longest)
    wait = retry.delay(failed, errors.Unavailable("x"), elapsed, lambda: dice)
    if wait is None:
        assert failed >= 5000 or elapsed + min(longest, first * 2.0 ** min(failed - 1, 60)) >= 30
    else:
        assert 0 <= wait <= min(longest, first * 2.0 ** min(failed - 1, 60))
        assert elapsed + wait < 30


def test_policies_refuse_nonsense() -> None:
    """A policy that can't be followed is refused when it is made."""
    with pytest.raises(ValueError, match="attempts is 0"):
        cellstream.Retry(attempts=0)
    with pytest.raises(ValueError, match="total"):
        cellstream.Retry(total=0)


def test_channel_settings_become_grpc_arguments() -> None:
    """Every setting reaches gRPC, and `extra` has the last word."""
    channel = cellstream.Channel(
        initial_backoff_ms=50, max_backoff_ms=900, keepalive_ms=7000, extra=(("grpc.max_receive_message_length", 5),)
    )
    arguments = dict(channel.arguments())
    assert arguments["grpc.initial_reconnect_backoff_ms"] == 50
    assert arguments["grpc.max_reconnect_backoff_ms"] == 900
    assert arguments["grpc.keepalive_time_ms"] == 7000
    assert arguments["grpc.max_receive_message_length"] == 5
    assert "grpc.keepalive_time_ms" not in dict(cellstream.Channel(keepalive_ms=None).arguments())


def test_errors_survive_pickling() -> None:
    """An error crosses process borders with its code, reason and steps."""
    lost = errors.stream_error_of("UNAVAILABLE", "", "gone", answered_step=3, sent_step=5)
    partial = errors.PartialFailure("one", {1: 2}, {3: errors.InvalidInput("bad")})
    for error in (lost, partial, errors.InvalidInput("bad", reason="r"), errors.DeadlineExceeded("late")):
        again = pickle.loads(pickle.dumps(error))
        assert (type(again), str(again), again.code, again.reason) == (
            type(error),
            str(error),
            error.code,
            error.reason,
        )
    assert pickle.loads(pickle.dumps(lost)).answered_step == 3
    assert pickle.loads(pickle.dumps(partial)).outputs == {1: 2}
