"""The client for asyncio, over a real port: the same behaviour as the one for threads."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import numpy as np
import pytest

import cellstream
from cellstream.aio import Client
from tests.cellstream.fake_server import REFUSED, FakeServer, Refusal

Play = Callable[[Client], Awaitable[None]]


@pytest.fixture
def play(server: FakeServer) -> Callable[[Play], None]:
    """Runs a coroutine with a client, and checks that no task of ours is left behind."""

    async def within(body: Play) -> None:
        async with cellstream.aio.connect(server.address) as client:
            await body(client)
        left = {task for task in asyncio.all_tasks() if task.get_name().startswith("cellstream-")}
        if left:
            await asyncio.wait(left, timeout=5)
        assert not [task for task in left if not task.done()]

    def run(body: Play) -> None:
        asyncio.run(within(body))

    return run


def test_steps_chunks_and_runs(play: Callable[[Play], None]) -> None:
    """A step, a chunk, and a run over an ordinary and over an asynchronous iterable."""

    async def numbers() -> AsyncIterator[Any]:
        for values in (1, [2, 3], list(range(30))):
            yield values

    async def body(client: Client) -> None:
        async with client.stream("sum") as stream:
            assert await stream.step(5) == 5
            assert (await stream.step([1, 2, 3])).tolist() == [6, 8, 11]
            assert [y.tolist() async for y in stream.run([1, [2, 3]])] == [12, [14, 17]]
            assert [y.tolist() async for y in stream.run(numbers())] == [
                18,
                [20, 23],
                (23 + np.cumsum(np.arange(30))).tolist(),
            ]
            assert await stream.step(0) == 23 + 435
            assert stream.answered_step == 4 + 3 + 33 + 1

    play(body)


def test_a_stream_can_be_awaited_and_closed(play: Callable[[Play], None]) -> None:
    """Without a block: await opens, close ends, and both ends may be repeated."""

    async def body(client: Client) -> None:
        stream = await client.stream("pair")
        outputs = await stream.step({"a": [1, 2], "n": 3})
        assert outputs["count"] == 3
        await stream.close()
        await stream.close()
        await stream.cancel()
        with pytest.raises(cellstream.StreamClosed):
            await stream.step({"a": [1, 2], "n": 3})

    play(body)


def test_a_live_source_is_answered_at_once(play: Callable[[Play], None]) -> None:
    """An output is there before the next input exists; leaving early ends the stream if steps are unseen."""

    async def body(client: Client) -> None:
        inputs: asyncio.Queue[int] = asyncio.Queue()

        async def live() -> AsyncIterator[int]:
            while True:
                yield await inputs.get()

        async with client.stream("sum") as stream:
            await inputs.put(1)
            async with contextlib.aclosing(stream.run(live())) as totals:
                async for total in totals:
                    if total == 20:
                        break
                    await inputs.put(1)
            assert await stream.step(1) == 21
            async with contextlib.aclosing(stream.run(itertools.repeat(1))) as totals:
                async for _ in totals:
                    break
            with pytest.raises(cellstream.StreamClosed):
                await stream.step(1)

    play(body)


def test_errors_of_inputs_come_in_their_place(play: Callable[[Play], None]) -> None:
    """What the iterable raises comes after everything before it, and the stream goes on."""

    async def broken() -> AsyncIterator[int]:
        yield 1
        yield 2
        raise OSError("the microphone is gone")

    async def body(client: Client) -> None:
        async with client.stream("sum") as stream:
            seen: list[int] = []
            with pytest.raises(OSError, match="microphone"):
                await _extend(seen, stream.run(broken()))
            with pytest.raises(cellstream.InvalidInput):
                await _extend(seen, stream.run([1, 0.5]))
            assert seen == [1, 3, 4]
            assert await stream.step(1) == 5
            with pytest.raises(cellstream.InvalidInput, match="holds 613") as caught:
                await stream.step(REFUSED)
            assert caught.value.reason == "invalid_input"

    play(body)


def test_a_cancelled_step_leaves_the_stream_whole(play: Callable[[Play], None], server: FakeServer) -> None:
    """A timeout or a cancelled task drops the late answer, never the stream."""

    async def body(client: Client) -> None:
        async with client.stream("sum") as stream:
            server.gate.clear()
            with pytest.raises(cellstream.StepTimeout):
                await stream.step(1, timeout=0.01)
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.01):
                    await stream.step(1)
            server.gate.set()
            assert await stream.step(1) == 3

    play(body)


def test_tasks_share_streams_and_clients(play: Callable[[Play], None], server: FakeServer) -> None:
    """Many streams at once, and many tasks on one stream."""

    async def body(client: Client) -> None:
        async def work(number: int) -> list[int]:
            async with client.stream("sum") as stream:
                return [int(await stream.step(number)) for _ in range(5)]

        async with client.stream("sum") as shared:
            results = await asyncio.gather(*(work(n) for n in range(20)))
            assert results == [[n * k for k in range(1, 6)] for n in range(20)]
            totals = await asyncio.gather(*(shared.step(1) for _ in range(50)))
            assert sorted(totals) == list(range(1, 51))
        assert (server.model_requests, server.descriptions) == (0, 1)

    play(body)


def test_going_away_and_dying(play: Callable[[Play], None], server: FakeServer) -> None:
    """GoAway is known while the stream is idle; a server that dies loses the stream, with its last step."""

    async def body(client: Client) -> None:
        async with client.stream("sum") as leaving, client.stream("sum") as losing:
            await leaving.step(1)
            await losing.step([1, 2])
            server.go_away(1500)
            await leaving._link.wait(lambda: leaving.going_away is not None, 10)
            assert leaving.going_away == 1.5
            assert await leaving.step(1) == 2
        stream = await client.stream("sum")
        await stream.step([1, 2])
        await asyncio.to_thread(server.die)
        with pytest.raises(cellstream.StreamLost, match="after step 2"):
            await _extend([], stream.run(itertools.repeat(1)))

    play(body)


def test_models_retries_and_refusals(play: Callable[[Play], None], server: FakeServer) -> None:
    """Models are described, unknown ones refused, and opening is tried again as the policy says."""

    async def body(client: Client) -> None:
        assert cellstream.ModelSummary("sum", 1, ready=True) in await client.models()
        assert (await client.model("sum")).certificate == {"passed": True}
        with pytest.raises(cellstream.UnknownModel):
            await client.stream("nope")
        server.behaviour.refusal = Refusal(grpc.StatusCode.UNAVAILABLE, "shutting_down", "going")
        server.behaviour.refuse_opens, opens = 2, server.opens
        async with client.stream("sum", retry=cellstream.Retry(first=0.01)) as stream:
            assert await stream.step(1) == 1
        assert server.opens == opens + 3
        server.behaviour.tamper = lambda r: [r, r]
        with pytest.raises(cellstream.ProtocolError):
            await (await client.stream("sum")).step(1)
        server.behaviour.tamper = lambda _: []
        with pytest.raises(cellstream.DeadlineExceeded):
            await client.stream("sum", retry=cellstream.Retry(total=0.2))
        server.behaviour.tamper = None
        server.behaviour.highest = 1
        async with client.stream("newer") as stream:
            assert await stream.step(1) == 1
        server.behaviour.highest = 2
        async with client.stream("newer") as stream:
            assert await stream.step(0.5) == 0.5

    play(body)


def test_whatever_happens_to_the_reader_nobody_is_left_waiting(play: Callable[[Play], None]) -> None:
    """A failure of our own, while an answer is read, ends the stream with an error that shows its cause."""

    def fail(_: bytes) -> None:
        raise ZeroDivisionError

    async def body(client: Client) -> None:
        async with client.stream("sum") as stream:
            stream._core.receive = fail  # type: ignore[method-assign, assignment]
            with pytest.raises(cellstream.CellstreamError, match="the client failed") as caught:
                await stream.step(1)
            assert isinstance(caught.value.__cause__, ZeroDivisionError)

    play(body)


def test_closing_the_client_ends_its_streams(server: FakeServer) -> None:
    """A stream doesn't outlive its client, and a closed client says so."""

    async def body() -> None:
        client = cellstream.aio.connect(server.address)
        stream, multiplex = await client.stream("sum"), await client.multiplex("sum")
        await multiplex.open(1)
        await client.close()
        await client.close()
        with pytest.raises(cellstream.StreamClosed):
            await stream.step(1)
        with pytest.raises(cellstream.StreamClosed):
            await multiplex.step({1: 1})
        for ask in (client.models, lambda: client.stream("sum"), lambda: client.multiplex("sum")):
            with pytest.raises(cellstream.StreamClosed, match="the client is closed"):
                await ask()

    asyncio.run(body())


def test_multiplexed_streams(play: Callable[[Play], None], server: FakeServer) -> None:
    """Many streams in one call, in both forms, with one that ends alone."""

    async def body(client: Client) -> None:
        async with client.multiplex("sum") as m:
            await m.open(*range(5))
            assert await m.step({k: k for k in range(5)}) == {k: k for k in range(5)}
            assert (await m.step_rows(range(5), np.ones((5, 6), np.int64))).tolist() == [
                [k + n for n in range(1, 7)] for k in range(5)
            ]
            with pytest.raises(cellstream.PartialFailure) as caught:
                await m.step({0: 1, 1: REFUSED})
            assert caught.value.outputs == {0: 7}
            await m.finish(0)
            assert m.keys == (2, 3, 4)
            server.gate.clear()
            with pytest.raises(cellstream.StepTimeout):
                await m.step({2: 1}, timeout=0.01)
            server.gate.set()
            assert await m.step({2: 1}) == {2: 10}

    play(body)


async def _extend(seen: list[Any], outputs: AsyncIterator[Any]) -> None:
    async for values in outputs:
        seen.append(values)  # noqa: PERF401  what came before an error is to be seen
