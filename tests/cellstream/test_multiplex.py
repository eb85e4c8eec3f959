"""Many streams in one call: the core against histories, and the call for threads over a real port."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

import cellstream
from cellstream._catalog import Catalog
from cellstream._multiplex import MultiplexCore
from cellstream._requests import Gathered
from cellstream._rows import join
from cellstream.v1 import stream_inference_pb2 as pb
from tests.cellstream.fake_server import REFUSED, FakeServer, Refusal
from tests.cellstream.models import int64, opened_as, signature

KEYS = st.integers(0, 5)


class MultiplexMachine(RuleBasedStateMachine):
    """Requests of any keys and lengths, answers in any slices and order of keys: y = 100 key + x."""

    def __init__(self) -> None:
        super().__init__()
        self.core = MultiplexCore(signature(max_bytes=160), 0, Catalog())
        self.wire: dict[int, list[int]] = {}  # by key: what the server has
        self.answered: dict[int, int] = {}
        self.pushed: dict[int, int] = {}
        self.requests: list[tuple[Gathered, dict[int, list[int]], dict[int, bool]]] = []
        self.failed: set[int] = set()

    @rule(key=KEYS)
    def open(self, key: int) -> None:
        """Open a key; one that is open, or that failed with steps under way, is refused."""
        if key in self.wire or key in self.failed:
            with pytest.raises(cellstream.InvalidInput, match=f"key {key} name"):
                self.core.open({key: ""})
            return
        self.core.open({key: ""})
        self.send()
        opened = pb.MultiplexOpened(key=key, opened=opened_as())
        self.core.receive(pb.MultiplexResponse(opened=[opened]).SerializeToString())
        assert self.core.settled([key])
        self.wire[key], self.answered[key], self.pushed[key] = [], 0, 0

    @precondition(lambda self: self.wire)
    @rule(data=st.data())
    def push(self, data: st.DataObject) -> None:
        """Steps for some of the open keys."""
        keys = data.draw(st.lists(st.sampled_from(sorted(self.wire)), min_size=1, unique=True))
        inputs: dict[int, Any] = {}
        expected = {}
        for key in keys:
            count = data.draw(st.integers(0, 5))  # 0: a bare step
            values = list(range(self.pushed[key], self.pushed[key] + max(1, count)))
            self.pushed[key] += len(values)
            inputs[key] = values if count else values[0]
            expected[key] = [100 * key + x for x in values]
        order, counts, single, request = join(signature(), inputs)
        self.requests.append((self.core.push(order, counts, request), expected, single))
        self.send()

    def send(self) -> None:
        """What the core sends reaches the server's lists; every message is within the limit."""
        while (message := self.core.next_message()) is not None:
            assert len(message) <= 160
            for rows in pb.MultiplexRequest.FromString(message).steps:
                counts = list(rows.steps) or [1] * len(rows.keys)
                values = np.frombuffer(rows.tensors[0], "<i8").tolist()
                for key, first, count in zip(rows.keys, rows.first_steps, counts, strict=True):
                    if key in self.wire:
                        assert first == len(self.wire[key]) + 1
                        self.wire[key] += values[:count]
                    values = values[count:]
                assert not values

    @precondition(lambda self: any(len(self.wire[k]) > self.answered[k] for k in self.wire))
    @rule(data=st.data())
    def answer(self, data: st.DataObject) -> None:
        """Some steps of some keys, in any order of keys."""
        behind = [key for key in self.wire if len(self.wire[key]) > self.answered[key]]
        keys = data.draw(st.lists(st.sampled_from(behind), min_size=1, unique=True))
        rows, values = pb.StepRows(), []
        for key in keys:
            count = data.draw(st.integers(1, len(self.wire[key]) - self.answered[key]))
            rows.keys.append(key)
            rows.first_steps.append(self.answered[key] + 1)
            rows.steps.append(count)
            values += [100 * key + x for x in self.wire[key][self.answered[key] : self.answered[key] + count]]
            self.answered[key] += count
        if set(rows.steps) == {1} and data.draw(st.booleans()):
            del rows.steps[:]
        rows.tensors.append(int64(values))
        self.core.receive(pb.MultiplexResponse(outputs=[rows]).SerializeToString())

    @precondition(lambda self: self.requests)
    @rule(data=st.data())
    def answer_run(self, data: st.DataObject) -> None:
        """One step of each of some keys in the order in which a request has them, as our server answers."""
        order = data.draw(st.sampled_from(self.requests))[0].keys
        low = data.draw(st.integers(0, len(order) - 1))
        keys = order[low : data.draw(st.integers(low + 1, len(order)))]
        keys = tuple(key for key in keys if key in self.wire and len(self.wire[key]) > self.answered[key])
        firsts = [self.answered[key] + 1 for key in keys]
        values = [100 * key + self.wire[key][first - 1] for key, first in zip(keys, firsts, strict=True)]
        rows = pb.StepRows(keys=keys, first_steps=firsts, tensors=[int64(values)])
        for key in keys:
            self.answered[key] += 1
        self.core.receive(pb.MultiplexResponse(outputs=[rows]).SerializeToString())

    @precondition(lambda self: len(self.wire) > 2)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        """A stream ends alone."""
        key = data.draw(st.sampled_from(sorted(self.wire)))
        ended = pb.MultiplexEnded(key=key, code=13, reason="compute_failed", message="boom")
        for _ in range(2):  # the second is what a step under way would get
            self.core.receive(pb.MultiplexResponse(ended=[ended]).SerializeToString())
        if self.answered[key] < len(self.wire[key]):
            self.failed.add(key)
        del self.wire[key], self.answered[key], self.pushed[key]

    @invariant()
    def agrees(self) -> None:
        """A request is ready when each of its keys is answered or ended, and then has exactly their outputs."""
        waiting = []
        for gathered, expected, single in self.requests:
            if not self.core.ready(gathered):
                waiting.append((gathered, expected, single))
                continue
            outputs = gathered.outputs(single=single)
            assert set(outputs) | set(gathered.errors) == set(expected)
            for key, values in outputs.items():
                assert np.atleast_1d(values).tolist() == expected[key]
                assert np.ndim(values) == (0 if single[key] else 1)
            assert all(isinstance(error, cellstream.ComputeFailed) for error in gathered.errors.values())
        self.requests = waiting
        if all(len(self.wire[key]) == self.answered[key] for key in self.wire):
            assert not waiting


TestMultiplexMachine = MultiplexMachine.TestCase
TestMultiplexMachine.settings = settings(max_examples=50, stateful_step_count=25, deadline=None)


@pytest.mark.parametrize(
    "response",
    [
        pb.MultiplexResponse(outputs=[pb.StepRows(keys=[2], first_steps=[1], tensors=[int64([1])])]),
        pb.MultiplexResponse(outputs=[pb.StepRows(keys=[1], first_steps=[2], tensors=[int64([1])])]),
        pb.MultiplexResponse(outputs=[pb.StepRows(keys=[1], first_steps=[2**64 - 1], tensors=[int64([1])])]),
        pb.MultiplexResponse(outputs=[pb.StepRows(keys=[1, 1], first_steps=[1, 1], tensors=[int64([1, 1])])]),
        pb.MultiplexResponse(outputs=[pb.StepRows(keys=[1], first_steps=[1], steps=[0], tensors=[b""])]),
        pb.MultiplexResponse(outputs=[pb.StepRows(keys=[1], first_steps=[1], steps=[3], tensors=[int64([1, 2, 3])])]),
        pb.MultiplexResponse(outputs=[pb.StepRows(keys=[1], first_steps=[1], tensors=[b"short"])]),
        pb.MultiplexResponse(outputs=[pb.StepRows(keys=[1, 1], first_steps=[1], tensors=[int64([1])])]),
        pb.MultiplexResponse(opened=[pb.MultiplexOpened(key=1, opened=opened_as())]),
        pb.MultiplexResponse(opened=[pb.MultiplexOpened(key=3, opened=opened_as())]),
    ],
)
def test_a_faulty_server_raises_a_typed_error(response: pb.MultiplexResponse) -> None:
    """Answers nobody asked for, out of order or of the wrong size raise ProtocolError."""
    core = opened(1)
    core.push([1], [2], signature().encode([1, 2]))
    with pytest.raises(cellstream.ProtocolError):
        core.receive(response.SerializeToString())


def opened(*keys: int) -> MultiplexCore:
    """A core with these keys open."""
    core = MultiplexCore(signature(), 0, Catalog())
    core.open(dict.fromkeys(keys, ""))
    confirm(core, *keys)
    return core


def confirm(core: MultiplexCore, *keys: int) -> None:
    """The server opens these."""
    messages = [pb.MultiplexOpened(key=key, opened=opened_as()) for key in keys]
    core.receive(pb.MultiplexResponse(opened=messages).SerializeToString())


def answer(
    core: MultiplexCore, keys: list[int], firsts: list[int], values: list[int], steps: Sequence[int] = ()
) -> None:
    """The server answers these steps."""
    rows = pb.StepRows(keys=keys, first_steps=firsts, steps=steps, tensors=[int64(values)])
    core.receive(pb.MultiplexResponse(outputs=[rows]).SerializeToString())


def end(core: MultiplexCore, key: int, code: int) -> None:
    """The server ends this stream."""
    core.receive(pb.MultiplexResponse(ended=[pb.MultiplexEnded(key=key, code=code)]).SerializeToString())


def test_a_key_may_stand_twice_in_an_answer() -> None:
    """Two slices of one stream's steps in one message are taken one after the other."""
    core = opened(1)
    gathered = core.push([1], [3], signature().encode([1, 2, 3]))
    answer(core, [1, 1], [1, 3], [5, 6, 7], steps=[2, 1])
    assert core.ready(gathered)
    assert gathered.outputs(single=False)[1].tolist() == [5, 6, 7]


def test_a_step_that_was_not_sent_is_not_answered_in_a_neighbours_place() -> None:
    """The step after a stream's last one raises ProtocolError while other streams' steps are under way."""
    core = opened(1, 2)
    core.push([1, 2], [1, 1], signature().encode([0, 0]))
    answer(core, [1], [1], [10])
    with pytest.raises(cellstream.ProtocolError, match="1 steps of key 1 from step 2, unasked"):
        answer(core, [1], [2], [11])


def test_one_answer_to_two_requests_in_neighbouring_places() -> None:
    """Steps whose places follow one another, though in different requests, reach their own."""
    core = opened(1, 2, 3, 4)
    first = core.push([1, 4], [1, 1], signature().encode([0, 0]))
    second = core.push([2, 3], [1, 1], signature().encode([0, 0]))
    answer(core, [1, 3], [1, 1], [10, 30])
    answer(core, [2, 4], [1, 1], [20, 40])
    assert first.outputs(single=True) == {1: 10, 4: 40}
    assert second.outputs(single=True) == {2: 20, 3: 30}


def test_a_stream_in_a_freed_slot_is_no_part_of_older_requests() -> None:
    """A stream that fails takes nothing from a request that a finished one before it had answered."""
    core = opened(1, 2)
    older = core.push([1, 2], [1, 1], signature().encode([0, 0]))
    answer(core, [1], [1], [10])
    end(core, 1, 0)
    core.open({3: ""})
    confirm(core, 3)
    newer = core.push([3], [1], signature().encode([0]))
    end(core, 3, 13)
    assert core.ready(newer)
    assert not core.ready(older)
    assert not older.errors
    answer(core, [2], [1], [20])
    assert older.outputs(single=True) == {1: 10, 2: 20}


def test_keys_asked_again_are_refused_once_the_server_has_ended_one() -> None:
    """The streams that the last request named are looked up anew when one has ended."""
    core = opened(1, 2)
    core.push([1, 2], [1, 1], signature().encode([0, 0]))
    answer(core, [1, 2], [1, 1], [10, 20])
    end(core, 1, 13)
    with pytest.raises(cellstream.CellstreamError):
        core.push([1, 2], [1, 1], signature().encode([0, 0]))


def test_an_unchanged_lineup_is_looked_up_anew_when_a_stream_has_ended(client: cellstream.Client) -> None:
    """The same keys mean other streams once one of them was finished and opened again, and none when it wasn't."""
    with client.multiplex("sum") as m:
        m.open(1, 2)
        assert m.step_rows([1, 2], [5, 6]).tolist() == [5, 6]
        m.finish(1)
        with pytest.raises(cellstream.StreamClosed, match="key 1"):
            m.step_rows([1, 2], [1, 1])
        m.open(3, 1)
        assert m.step_rows([1, 2], [1, 1]).tolist() == [1, 7]
        assert m.step_rows(np.array([2, 3]), [1, 1]).tolist() == [8, 1]


def test_steps_of_many_streams(client: cellstream.Client) -> None:
    """Each key has its own state; single steps and chunks of different lengths mix in one request."""
    with client.multiplex("sum") as m:
        m.open(7, 3, 5)
        assert m.step({7: 1, 3: 10, 5: 100}) == {7: 1, 3: 10, 5: 100}
        mixed = m.step({5: [1, 2, 3, 4, 5, 6], 7: 1})
        assert {key: value.tolist() for key, value in mixed.items()} == {5: [101, 103, 106, 110, 115, 121], 7: 2}
        assert (m.model.name, set(m.keys), m.going_away, m.error) == ("sum", {3, 5, 7}, None, None)
    with client.multiplex("pair") as m:
        m.open(0, 1)
        outputs = m.step({0: {"a": [1, 2], "n": 3}, 1: {"a": [[1, 1], [1, 1]], "n": [1, 1]}})
        assert outputs[0]["total"].tolist() == [1, 2]
        assert outputs[1]["count"].tolist() == [1, 2]


def test_rows_in_columns(client: cellstream.Client) -> None:
    """The columnar form gives [K, ...] for single steps and [K, T, ...] for chunks."""
    with client.multiplex("vector") as m:
        m.open(*range(4))
        x = np.arange(12, dtype=np.float32).reshape(4, 3)
        assert np.array_equal(m.step_rows(range(4), x), x)
        y = m.step_rows([3, 0], np.ones((2, 6, 3), np.float32))
        assert y.shape == (2, 6, 3)
        assert np.array_equal(y[0], x[3] + np.arange(1, 7)[:, None])
        assert np.array_equal(y[1], x[0] + np.arange(1, 7)[:, None])
        with pytest.raises(cellstream.InvalidInput, match="2 keys need 2 rows"):
            m.step_rows([0, 1], x)


def test_a_large_request_is_cut_between_keys(client: cellstream.Client, server: FakeServer) -> None:
    """Messages stay within the server's limit on bytes."""
    server.behaviour.max_message_bytes = 300
    with client.multiplex("sum") as m:
        m.open(*range(40))
        assert m.step({key: key for key in range(40)}) == {key: key for key in range(40)}
        with pytest.raises(
            cellstream.LimitReached, match="9 steps of one stream in a multiplexed step; the limit is 8"
        ):
            m.step({0: [1] * 9})
        server.behaviour.max_message_bytes = 120
    with client.multiplex("sum") as m:
        m.open(0)
        with pytest.raises(cellstream.LimitReached, match="steps have 64 bytes; a message has 120 at most"):
            m.step({0: [1] * 8})
        assert m.step({0: 1}) == {0: 1}


def test_a_stream_ends_alone(client: cellstream.Client) -> None:
    """PartialFailure has the others' outputs; they go on, and the ended key says why it can't."""
    with client.multiplex("sum") as m:
        m.open(1, 2, 3)
        with pytest.raises(cellstream.PartialFailure, match="1 of 3 streams ended, the first with key 2") as caught:
            m.step({1: 1, 2: REFUSED, 3: 3})
        assert caught.value.outputs == {1: 1, 3: 3}
        assert isinstance(caught.value.errors[2], cellstream.InvalidInput)
        assert caught.value.errors[2].reason == "invalid_input"
        with pytest.raises(cellstream.InvalidInput, match="holds 613"):
            m.step({1: 1, 2: 1})
        assert m.step({1: 1, 3: 1}) == {1: 2, 3: 4}
        with pytest.raises(cellstream.InvalidInput, match="take another key"):
            m.open(2)


def test_keys_are_checked_before_anything_is_sent(client: cellstream.Client) -> None:
    """Unknown, doubled, missing and impossible keys are refused, and the call goes on."""
    with client.multiplex("sum") as m:
        m.open(1)
        with pytest.raises(cellstream.StreamClosed, match="key 2"):
            m.step({1: 1, 2: 1})
        with pytest.raises(cellstream.InvalidInput, match="twice"):
            m.step_rows([1, 1], [1, 1])
        with pytest.raises(cellstream.InvalidInput, match="no keys"):
            m.step({})
        with pytest.raises(cellstream.InvalidInput, match="key 1: input 'x' has dtype float64"):
            m.step({1: 0.5})
        with pytest.raises(cellstream.InvalidInput, match="is open"):
            m.open(1)
        with pytest.raises(cellstream.InvalidInput, match="key -1"):
            m.open(-1)
        for wrong in ("a", 2.0, None, [1, 2]):
            with pytest.raises(cellstream.InvalidInput, match="a key is an integer"):
                m.open(wrong)  # type: ignore[arg-type]
        with pytest.raises(cellstream.InvalidInput, match="key 'a'; a key is an integer"):
            m.step({"a": 1})  # type: ignore[dict-item]
        assert m.step({1: 1}) == {1: 1}


def test_a_finished_key_is_free_again(client: cellstream.Client) -> None:
    """Finishing waits for the server; a new stream under the old key starts from fresh state."""
    with client.multiplex("sum") as m:
        m.open(1, 2)
        m.step({1: 5, 2: 5})
        m.finish(1)
        assert m.keys == (2,)
        m.open_named({1: "again"})
        assert m.step({1: 1, 2: 1}) == {1: 1, 2: 6}


def test_a_refused_key_is_told_alone(client: cellstream.Client, server: FakeServer) -> None:
    """When the server has no room for a key, open raises its refusal, and the others are open."""
    server.behaviour.refusal = Refusal(grpc.StatusCode.RESOURCE_EXHAUSTED, "stream_limit", "10 streams are open")
    server.behaviour.refuse_opens = 1
    with client.multiplex("sum") as m:
        with pytest.raises(cellstream.Overloaded, match="10 streams"):
            m.open(1, 2)
        assert m.keys == (2,)
        m.open(1)
        assert m.step({1: 1, 2: 2}) == {1: 1, 2: 2}


def test_threads_share_a_call(client: cellstream.Client, server: FakeServer) -> None:
    """Requests of several threads are under way at once, and each gets its own answers; a late one is dropped."""
    with client.multiplex("sum") as m, ThreadPoolExecutor(4) as pool:
        m.open(*range(8))

        def work(key: int) -> list[int]:
            return [int(m.step({key: 1, key + 4: 2})[key]) for _ in range(10)]

        assert list(pool.map(work, range(4))) == [list(range(1, 11))] * 4
        server.gate.clear()
        with pytest.raises(cellstream.StepTimeout):
            m.step({0: 1}, timeout=0.01)
        server.gate.set()
        assert m.step({0: 1}) == {0: 12}


def test_going_away(client: cellstream.Client, server: FakeServer) -> None:
    """After GoAway the open streams go on, no other is opened, and the call ends with the last of them."""
    with client.multiplex("sum") as m, ThreadPoolExecutor(1) as pool:
        m.open(1)
        server.gate.clear()
        answer = pool.submit(m.step, {1: 1})
        server.arrived.acquire()
        server.go_away(2000)
        server.gate.set()
        assert answer.result(10) == {1: 1}
        assert m._link.wait(lambda: m.going_away is not None, 10)
        assert m.going_away == 2.0
        assert m.step({1: 1}) == {1: 2}
        with pytest.raises(cellstream.ServerGoingAway, match=r"within 2 s and opens no new stream"):
            m.open(2)
        m.finish(1)
        assert m._link.wait(lambda: m._core.ended, 10)
        with pytest.raises(cellstream.ServerGoingAway):
            m.open(2)


def test_a_dying_server_ends_every_stream(server: FakeServer) -> None:
    """The whole call is lost, and says so to everyone."""
    with cellstream.connect(server.address) as client:
        m = client.multiplex("sum")
        m.open(1, 2)
        assert m.step({1: [1, 1], 2: 1})[2] == 1
        server.die()
        for _ in range(2):
            with pytest.raises(cellstream.StreamLost, match="after step 2"):
                m.step({1: 1, 2: 2})
