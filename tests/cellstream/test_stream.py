"""A stream for threads, over a real port."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import cellstream
from cellstream.v1 import stream_inference_pb2 as pb
from tests.cellstream.conftest import client_threads
from tests.cellstream.fake_server import FAILED, REFUSED, FakeServer, Refusal

NO_RETRY = cellstream.Retry(attempts=1)


def test_a_step_and_a_chunk_come_back_in_their_own_form(client: cellstream.Client) -> None:
    """One step in, one step out; a chunk in, a chunk out; the state goes on between them."""
    with client.stream("sum") as stream:
        one = stream.step(5)
        assert (one, one.shape, one.dtype) == (5, (), np.int64)
        chunk = stream.step([1, 2, 3])
        assert (chunk.tolist(), chunk.shape) == ([6, 8, 11], (3,))
        chunk += 1  # the caller's own
        assert stream.answered_step == 4
        assert (stream.model.name, stream.model.version, stream.stream_id) == ("sum", 1, "given")
    with client.stream("vector") as stream:
        step = stream.step([1.0, 2.0, 3.0])
        assert (step.shape, step.dtype) == ((3,), np.float32)
        assert stream.step(np.ones((1, 3))).shape == (1, 3)


def test_several_inputs_and_outputs_go_by_name(client: cellstream.Client) -> None:
    """A model with several tensors takes and gives dicts."""
    with client.stream("pair") as stream:
        outputs = stream.step({"n": [1, 2, 3], "a": np.ones((3, 2))})
        assert outputs["count"].tolist() == [1, 3, 6]
        assert outputs["total"].tolist() == [[1, 1], [2, 2], [3, 3]]
        one = stream.step({"n": 1, "a": [0, 0]})
        assert {name: value.shape for name, value in one.items()} == {"total": (2,), "count": ()}


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chunks=st.lists(st.lists(st.integers(-9, 9), min_size=1, max_size=40), min_size=1, max_size=6))
def test_any_cut_of_a_sequence_gives_its_running_sum(client: cellstream.Client, chunks: list[list[int]]) -> None:
    """Chunks of any length, sliced by the server and cut by the client, are the sequence's running sum in order."""
    whole = np.cumsum(list(itertools.chain(*chunks))).tolist()
    with client.stream("sum") as stream:
        parts = [stream.step(chunk).tolist() for chunk in chunks]
    with client.stream("sum") as stream:
        piped = [values.tolist() for values in stream.run(chunks)]
    assert parts == piped
    assert list(itertools.chain(*parts)) == whole


def test_invalid_input_costs_the_stream_nothing(client: cellstream.Client, server: FakeServer) -> None:
    """What doesn't fit the model is refused here: nothing is sent, and the stream goes on."""
    with client.stream("sum") as stream:
        for values in (1.5, [[1]], 2000, "a", []):
            with pytest.raises(cellstream.InvalidInput):
                stream.step(values)
        assert stream.step(1) == 1


def test_a_refusal_of_the_servers_is_typed(client: cellstream.Client) -> None:
    """A refused step raises by code and reason, with the server's text, and so does every later one."""
    with client.stream("sum") as stream:
        assert stream.step(1) == 1
        for _ in range(2):
            with pytest.raises(cellstream.InvalidInput, match="input 'x' holds 613") as caught:
                stream.step(REFUSED)
            assert (caught.value.code, caught.value.reason) == ("INVALID_ARGUMENT", "invalid_input")
        assert isinstance(stream.error, cellstream.InvalidInput)
    with client.stream("sum") as stream, pytest.raises(cellstream.ComputeFailed):
        stream.step(FAILED)


def test_run_yields_in_order_and_goes_on(client: cellstream.Client) -> None:
    """Steps and chunks mixed come back each in its form; afterwards the stream is as usable as before."""
    with client.stream("sum") as stream:
        results = [values.tolist() for values in stream.run([1, [2, 3], 4])]
        assert results == [1, [3, 6], 10]
        assert list(stream.run([])) == []
        assert stream.step(1) == 11
        pairs = [(x, int(y)) for x, y in zip([1, 2], stream.run([1, 2]), strict=False)]
        assert pairs == [(1, 12), (2, 14)]
        assert stream.step(0) == 14


def test_run_answers_a_live_source_at_once(client: cellstream.Client) -> None:
    """An output is there before the next input exists."""
    ready = threading.Semaphore(1)

    def live() -> Iterator[int]:
        while True:
            ready.acquire()
            yield 1

    with client.stream("sum") as stream:
        for expected, total in enumerate(stream.run(live()), 1):
            assert total == expected
            if expected == 20:
                break
            ready.release()
        ready.release()  # lets the feeding thread see that it is over


def test_run_stays_within_the_window(client: cellstream.Client, server: FakeServer) -> None:
    """However fast the inputs, no more than a window of steps is ahead of what was taken."""
    produced = 0

    def inputs() -> Iterator[list[int]]:
        nonlocal produced
        for _ in range(200):
            produced += 3
            yield [1, 1, 1]

    with client.stream("sum") as stream:
        for count, values in enumerate(stream.run(inputs()), 1):
            assert values.tolist() == [3 * count - 2, 3 * count - 1, 3 * count]
            assert produced <= 3 * count + server.behaviour.window_steps + 3
    assert produced == 600
    assert 0 < server.most_ahead <= server.behaviour.window_steps


def test_an_error_of_the_inputs_comes_in_its_place(client: cellstream.Client) -> None:
    """What the iterable raises, and what it gives that is invalid, is raised after everything before it."""

    def broken() -> Iterator[int]:
        yield 1
        yield 2
        raise OSError("the microphone is gone")

    with client.stream("sum") as stream:
        seen: list[Any] = []
        with pytest.raises(OSError, match="microphone"):
            seen.extend(stream.run(broken()))
        assert seen == [1, 3]
        with pytest.raises(cellstream.InvalidInput):
            seen.extend(stream.run([1, 0.5, 1]))
        assert seen == [1, 3, 4]
        assert stream.step(1) == 5


def test_leaving_a_run_early_ends_a_stream_with_unseen_steps(client: cellstream.Client, server: FakeServer) -> None:
    """With steps under way whose outputs nobody saw, break cancels the stream: it can't be used by mistake."""
    with client.stream("sum") as stream:
        for total in stream.run(itertools.repeat(1)):
            if total == 5:
                server.gate.clear()
                server.arrived.acquire()
                break
        server.gate.set()
        if stream.error is not None:  # else the break came when nothing was under way
            with pytest.raises(cellstream.StreamClosed):
                stream.step(1)


def test_a_dying_server_ends_step_and_run_with_the_last_answered_step(server: FakeServer) -> None:
    """StreamLost names the last answered step, and nothing starts the stream anew."""
    with cellstream.connect(server.address) as client:
        stepping, running = client.stream("sum"), client.stream("sum")
        assert stepping.step([1, 2]) is not None
        outputs = running.run(itertools.repeat(1))
        assert next(outputs) == 1
        opens = server.opens
        server.die()
        with pytest.raises(cellstream.StreamLost, match="after step 2") as caught:
            stepping.step(1)
        assert caught.value.answered_step == 2
        with pytest.raises(cellstream.StreamLost):
            list(outputs)
        assert isinstance(running.error, cellstream.StreamLost)
        with pytest.raises(cellstream.Unavailable):
            client.stream("sum", retry=NO_RETRY)
        assert server.opens == opens


def test_a_late_answer_is_dropped_and_the_stream_goes_on(client: cellstream.Client, server: FakeServer) -> None:
    """After StepTimeout the step counts, its answer isn't mistaken for the next one's."""
    with client.stream("sum") as stream:
        server.gate.clear()
        with pytest.raises(cellstream.StepTimeout, match=r"within 0\.05 s") as caught:
            stream.step([5, 5], timeout=0.05)
        assert isinstance(caught.value, TimeoutError)
        server.gate.set()
        assert stream.step(1, timeout=10) == 11
        assert stream.answered_step == 3


def test_the_deadline_of_the_whole_stream(client: cellstream.Client, server: FakeServer) -> None:
    """Past its timeout the stream is over, with DeadlineExceeded."""
    with client.stream("sum", timeout=0.3) as stream:
        server.gate.clear()
        with pytest.raises(cellstream.DeadlineExceeded) as caught:
            stream.step(1)
        assert not isinstance(caught.value, cellstream.StepTimeout)
        server.gate.set()


def test_going_away(client: cellstream.Client, server: FakeServer) -> None:
    """After GoAway a stream goes on stepping until the server ends it, and is then told as lost, with its last step."""
    with client.stream("sum") as stream, ThreadPoolExecutor(1) as pool:
        server.gate.clear()
        answer = pool.submit(stream.step, [1, 2])
        server.arrived.acquire()
        server.go_away(3000)
        server.gate.set()
        assert answer.result(10).tolist() == [1, 3]
        assert stream._link.wait(lambda: stream.going_away is not None, 10)
        assert stream.going_away == 3.0
        assert stream.step(1) == 4
        server.die()
        with pytest.raises(cellstream.StreamLost, match="after step 3 was answered"):
            stream.step(1)


def test_a_run_goes_on_after_go_away(client: cellstream.Client, server: FakeServer) -> None:
    """A run that is told of the server's shutdown in its middle still gives every output."""
    seen: list[int] = []
    with client.stream("sum") as stream:
        for total in stream.run(itertools.repeat(1, 20)):
            seen.append(int(total))
            if total == 3:
                server.go_away()
    assert seen == list(range(1, 21))


def test_threads_share_a_stream(client: cellstream.Client) -> None:
    """Each thread gets the answers to its own steps, and none is lost."""
    with client.stream("sum") as stream, ThreadPoolExecutor(4) as pool:
        totals = list(pool.map(lambda _: int(stream.step(1)), range(100)))
    assert sorted(totals) == list(range(1, 101))


def test_many_streams_on_one_client(client: cellstream.Client, server: FakeServer) -> None:
    """Streams on one client don't meet, and the model's description is sent once."""

    def work(number: int) -> list[int]:
        with client.stream("sum") as stream:
            return [int(stream.step(number)) for _ in range(5)]

    with client.stream("sum"), ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(12)))
    assert results == [[n * k for k in range(1, 6)] for n in range(12)]
    assert (server.model_requests, server.descriptions) == (0, 1)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda r: [r, r],
        lambda r: [b"\xff\xff\xff"] if r.HasField("outputs") else [r],
        lambda r: (
            [pb.StreamResponse(outputs=pb.Outputs(first_step=9, steps=1, outputs=[bytes(8)]))]
            if r.HasField("outputs")
            else [r]
        ),
    ],
    ids=["twice", "garbage", "unasked"],
)
def test_a_faulty_server_raises_a_typed_error(client: cellstream.Client, server: FakeServer, tamper: Any) -> None:
    """Answers that break the protocol end the stream with ProtocolError; nothing hangs, nothing is delivered."""
    server.behaviour.tamper = tamper
    with pytest.raises(cellstream.ProtocolError):
        client.stream("sum").step([1, 2])


def test_whatever_happens_to_the_reader_nobody_is_left_waiting(
    client: cellstream.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A failure of our own, while an answer is read, ends the stream with an error that shows its cause."""
    stream = client.stream("sum")
    monkeypatch.setattr(stream._core, "receive", lambda _: 1 // 0)
    for _ in range(2):
        with pytest.raises(cellstream.CellstreamError, match="the client failed: ZeroDivisionError") as caught:
            stream.step(1)
        assert isinstance(caught.value.__cause__, ZeroDivisionError)


def test_closing(client: cellstream.Client) -> None:
    """Close and cancel may be repeated; afterwards every step raises StreamClosed."""
    stream = client.stream("sum")
    stream.step(1)
    stream.close()
    stream.close()
    assert stream.error is None
    cancelled = client.stream("sum")
    cancelled.cancel()
    cancelled.close()
    for closed in (stream, cancelled):
        with pytest.raises(cellstream.StreamClosed):
            closed.step(1)
        with pytest.raises(cellstream.StreamClosed):
            list(closed.run([1]))


def test_an_error_in_the_block_cancels_the_stream(client: cellstream.Client, server: FakeServer) -> None:
    """Leaving by an exception doesn't wait for the server."""
    server.gate.clear()
    before = client_threads()
    stream = client.stream("sum")

    def interrupted() -> None:
        with stream:
            stream.step(1, timeout=0.01)

    with pytest.raises(cellstream.StepTimeout):
        interrupted()
    assert isinstance(stream.error, cellstream.StreamClosed)
    assert not {thread for thread in client_threads() - before if thread.name == "cellstream-reader"}
    server.gate.set()


def test_opening_is_tried_again_as_the_policy_says(client: cellstream.Client, server: FakeServer) -> None:
    """UNAVAILABLE is tried again, a full server only if asked for, and nothing else ever."""
    quick = cellstream.Retry(attempts=3, first=0.01)
    behaviour = server.behaviour
    behaviour.refusal = Refusal(grpc.StatusCode.UNAVAILABLE, "shutting_down", "going")
    behaviour.refuse_opens = 2
    with client.stream("sum", retry=quick) as stream:
        assert stream.step(1) == 1
    assert server.opens == 3
    behaviour.refuse_opens = 9
    with pytest.raises(cellstream.ServerGoingAway):
        client.stream("sum", retry=quick)
    assert server.opens == 6
    behaviour.refusal = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "stream_limit", "10 streams are open")
    with pytest.raises(cellstream.Overloaded, match="10 streams"):
        client.stream("sum", retry=quick)
    assert server.opens == 7
    behaviour.refuse_opens = 1
    with client.stream("sum", retry=cellstream.Retry(attempts=2, first=0.01, when_overloaded=True)) as stream:
        assert stream.step(1) == 1


def test_a_server_that_does_not_answer_an_open(client: cellstream.Client, server: FakeServer) -> None:
    """Opening is bounded by the policy's total time."""
    server.behaviour.tamper = lambda _: []
    with pytest.raises(cellstream.DeadlineExceeded, match="didn't open"):
        client.stream("sum", retry=cellstream.Retry(total=0.3))


def test_a_newer_version_is_noticed(client: cellstream.Client, server: FakeServer) -> None:
    """Version 0 is the highest at opening, whatever was cached; a version that is asked for stays."""
    server.behaviour.highest = 1
    with client.stream("newer") as stream:
        assert (stream.model.version, stream.step(1)) == (1, 1)
    server.behaviour.highest = 2
    for _ in range(2):
        with client.stream("newer") as stream:
            assert (stream.model.version, stream.step(0.5)) == (2, 0.5)
    with client.stream("newer", 1) as stream:
        assert (stream.model.version, stream.step(1)) == (1, 1)
