"""What Triton's users ask for and miss, by Triton's own client: states that stay, and say why they went."""

from __future__ import annotations

import copy
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch

from serving.config import Limits, Sequencing, ServerConfig
from serving.engine import EngineError
from serving.errand import on_loop
from serving.server import Server
from tests.serving.client import StreamCall
from tests.serving.test_process import started
from tests.serving.test_workers import MOST_CONNECTIONS, two_workers
from tests.serving.triton_client import Error, Stream, ask, check, connect, given, raw_infer, request, streaming, tensor
from tests.waiting import wait_until

SECONDS = 60.0
CLIENT = """
import sys, time
from tests.serving.triton_client import Stream, connect, given
with connect(sys.argv[1]) as client:
    stream = Stream(client)
    stream.send(given(1)[0], "orphan", sequence_start=True)
    stream.y()
    print("open", flush=True)
    time.sleep(600)
"""


class Jumping:
    """A clock that can be put forward."""

    def __init__(self) -> None:
        self._ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self._ahead

    def jump(self, seconds: float) -> None:
        """Let so much time pass at once."""
        self._ahead += seconds


class Own:
    """A server whose time and loop the test holds."""

    def __init__(self, models: Path, *, max_streams: int = 4, **config: Any) -> None:
        self.clock = Jumping()
        limits = Limits(max_streams=max_streams)
        asked = ServerConfig(models, "127.0.0.1:0", grace=0.2, limits=limits, allow_unproved=True, **config)
        self.server = Server(asked, clock=self.clock)
        self.server.start()
        self.lane = self.server.front.find("lstm", 0)

    @property
    def live(self) -> int:
        """Sequences of the model "lstm"."""
        return len(self.lane.sequences)

    def hold(self) -> threading.Event:
        """Keep the loop from its work until the event is set."""
        held, go_on = threading.Event(), threading.Event()

        def wait() -> None:
            held.set()
            go_on.wait(SECONDS)

        self.server.loop.post(wait)
        assert held.wait(SECONDS)
        return go_on


@pytest.fixture
def own(models: Path) -> Iterator[Own]:
    """A server of the test's own: four sequences at most, and none of them expires."""
    made = Own(models)
    yield made
    made.server.drain()


@pytest.fixture
def expiring(models: Path) -> Iterator[Own]:
    """One where the sequences of "lstm" may idle for 100 s, and others for ever."""
    made = Own(models, sequencing=Sequencing(idle_of={"lstm": 100.0}))
    yield made
    made.server.drain()


def test_states_are_paired_by_the_contract(triton: Server) -> None:
    """A model whose states' names sort one way as inputs and the other as outputs: each gets its own value back."""
    x = np.arange(1, 13, dtype=np.float32).reshape(4, 3)
    a = np.cumsum(x, axis=0)
    b = -np.cumsum(a, axis=0)
    with connect(triton) as client:
        for t in range(4):
            flags = {"sequence_start": t == 0, "sequence_end": t == 3}
            found = client.infer("crossed", [tensor(x[t])], sequence_id=1, **flags).as_numpy("y")[0]
            assert found.tolist() == (a[t] + 3 * b[t]).tolist()


def test_nothing_crosses_after_a_cancel(models: Path, lstm: torch.nn.LSTM) -> None:
    """Sequences cut off in the middle of pipelined steps; the same ids and places taken at once by others."""
    own = Own(models, max_streams=16)
    with connect(own.server) as other:
        for turn in range(5):
            with connect(own.server) as client:
                stream = Stream(client)
                for t in range(40):
                    for key in range(1, 5):
                        stream.send(given(99)[0], key, sequence_start=t == 0)
                stream.y()
                stream.stop(cancel=True)
            x = given(turn, 6)
            for key in range(1, 5):
                check(ask(other, x, key, sequence_start=True), lstm, x)
    assert own.lane.sequences.restarted >= 4 * 4
    own.server.drain()
    own.lane.sequences.check()


def test_a_deadline_that_passes_leaves_the_state_usable(own: Own, lstm: torch.nn.LSTM) -> None:
    """A request cut off by its client's timeout either counted or didn't; its neighbours are as they were."""
    x = given(5, 8)
    with connect(own.server) as client:
        first = ask(client, x[:4], 1, sequence_start=True)
        ask(client, given(6)[0], 2, sequence_start=True)
        go_on = own.hold()
        with pytest.raises(Error) as late:
            ask(client, given(7)[0], 2, client_timeout=0.2)
        assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        go_on.set()
        check(np.concatenate([first, ask(client, x[4:], 1, sequence_end=True)]), lstm, x)
        ask(client, given(8)[0], 2, sequence_end=True)
    wait_until(lambda: own.lane.streams.rows.in_use == 0)


def test_a_retried_request_counts_once(own: Own, lstm: torch.nn.LSTM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbered steps: the first try is being computed when its deadline passes; the second gets its answer."""
    x, run = given(9, 6), own.lane.engine.run
    go_on = threading.Event()

    def slow(*arguments: Any) -> Any:
        go_on.wait(SECONDS)
        return run(*arguments)

    def step(t: int, **options: Any) -> Any:
        flags = {"sequence_start": t == 0, "sequence_end": t == 5}
        parameters = {"cellstream_step": t + 1}
        return client.infer("lstm", [tensor(x[t])], sequence_id="retry", parameters=parameters, **flags, **options)

    with connect(own.server) as client:
        found = [step(t) for t in range(3)]
        assert own.lane.sequences.answered == 3
        monkeypatch.setattr(own.lane.engine, "run", slow)
        with pytest.raises(Error) as late:
            step(3, client_timeout=0.3)
        assert late.value.status() == "StatusCode.DEADLINE_EXCEEDED"
        go_on.set()
        found += [step(3), step(4), step(5)]
        again = [step(5), step(5)]  # after its END too
        with pytest.raises(Error, match=r"sequence retry to model 'lstm' must specify the START flag.*END flag"):
            step(4)
    told = [result.get_response().parameters for result in (*found, *again)]
    assert [one["cellstream_step"].int64_param for one in told] == [1, 2, 3, 4, 5, 6, 6, 6]
    assert [one["cellstream_repeated"].bool_param for one in told] == [False] * 3 + [True] + [False] * 2 + [True] * 2
    check(np.stack([result.as_numpy("y")[0] for result in found]), lstm, x)
    assert again[0].as_numpy("y").tobytes() == found[-1].as_numpy("y").tobytes()


def test_a_step_out_of_turn_is_refused(own: Own) -> None:
    """A gap, and a step whose answer isn't kept any more, say which step is next."""
    with connect(own.server) as client:
        ask(client, given(1, 3), 1, sequence_start=True, parameters={"cellstream_step": 1})
        for step in (2, 5):
            with pytest.raises(Error, match=r"next step is 4") as refused:
                ask(client, given(1)[0], 1, parameters={"cellstream_step": step})
            assert refused.value.status() == "StatusCode.FAILED_PRECONDITION"


def test_idle_sequences_stay(own: Own, lstm: torch.nn.LSTM) -> None:
    """By default nothing expires: three days later the sequence goes on."""
    x = given(10, 2)
    with connect(own.server) as client:
        found = [ask(client, x[0], 1, sequence_start=True)]
        own.clock.jump(3 * 24 * 3600)
        found.append(ask(client, x[1], 1, sequence_end=True))
    check(np.stack(found), lstm, x)


def test_idle_sequences_expire_where_the_operator_says(expiring: Own) -> None:
    """Per model, with an error of its own; a request may say otherwise for its sequence; other models stay."""
    three = np.ones(3, np.float32)
    with connect(expiring.server) as client:
        ask(client, given(1)[0], 1, sequence_start=True)
        ask(client, given(1)[0], 2, sequence_start=True, parameters={"cellstream_idle_seconds": 0})
        ask(client, given(1)[0], 3, sequence_start=True, parameters={"cellstream_idle_seconds": 500.5})
        client.infer("crossed", [tensor(three)], sequence_id=1, sequence_start=True)
        assert client.get_model_config("lstm").config.sequence_batching.max_sequence_idle_microseconds == 100_000_000
        expiring.clock.jump(99)
        ask(client, given(1)[0], 1)
        expiring.clock.jump(99)
        ask(client, given(1)[0], 1)
        expiring.clock.jump(101)
        wait_until(lambda: expiring.lane.sequences.expired == 1)
        with pytest.raises(Error, match="it has expired: 100 s without a request"):
            ask(client, given(1)[0], 1)
        expiring.clock.jump(300)
        wait_until(lambda: expiring.lane.sequences.expired == 2)
        with pytest.raises(Error, match=r"it has expired: 500\.5 s without a request"):
            ask(client, given(1)[0], 3)
        ask(client, given(1)[0], 2)
        client.infer("crossed", [tensor(three)], sequence_id=1)
    assert expiring.lane.sequences.expired == 2


def test_a_client_that_was_killed_frees_its_sequences(own: Own) -> None:
    """Kill -9 with a stream open: its sequence waits for somebody to come back for --sequence-grace, then goes."""
    command = [sys.executable, "-c", CLIENT, own.server.address]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        assert own.live == 1
        process.kill()
    wait_until(lambda: all(each.vanished is not None for each in own.lane.sequences))
    own.clock.jump(Sequencing().grace - 20)
    with connect(own.server) as client:
        ask(client, given(1)[0], "other", sequence_start=True)
        assert own.live == 2  # somebody could still come back for it
        own.clock.jump(30)
        wait_until(lambda: own.live == 1)  # the other's last call wasn't cut off
        with pytest.raises(Error, match="its client was cut off and didn't come back within 60 s"):
            ask(client, given(1)[0], "orphan")


def test_a_client_that_comes_back_in_time_keeps_its_sequence(own: Own, lstm: torch.nn.LSTM) -> None:
    """A stream that was cancelled, and a request through another call within the grace."""
    x = given(11, 2)
    with connect(own.server) as client:
        stream = Stream(client)
        stream.send(x[0], 1, sequence_start=True)
        found = [stream.y()]
        stream.stop(cancel=True)
        wait_until(lambda: all(each.vanished is not None for each in own.lane.sequences))
        own.clock.jump(50)
        found.append(ask(client, x[1], 1))
        own.clock.jump(3600)
        client.infer("lstm", [], sequence_id=1, sequence_end=True)
    check(np.stack(found), lstm, x)


def test_each_end_has_an_error_of_its_own(own: Own) -> None:
    """Never started, ended, expired and evicted differ, in the text and in a machine-readable reason."""
    with connect(own.server) as client:
        ask(client, given(1)[0], "ended", sequence_start=True, sequence_end=True)
        ask(client, given(1)[0], "expired", sequence_start=True, parameters={"cellstream_idle_seconds": 5})
        ask(client, given(1)[0], "evicted", sequence_start=True)
        own.clock.jump(6)
        wait_until(lambda: own.lane.sequences.expired == 1)
        on_loop(own.server.loop.post, lambda: own.lane.sequences.evict(["evicted"]))
        expected = {
            "unknown": ("it was never started here", "sequence_not_started"),
            "ended": ("it has ended with the END flag", "sequence_ended"),
            "expired": ("it has expired: 5 s without a request", "sequence_expired"),
            "evicted": ("it was evicted by the operator", "sequence_evicted"),
        }
        for key, (text, reason) in expected.items():
            with pytest.raises(Error, match=text) as refused:
                ask(client, given(1)[0], key)
            assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
            with grpc.insecure_channel(own.server.address) as channel, pytest.raises(grpc.RpcError) as plain:
                raw_infer(channel)(request(key), timeout=SECONDS)
            trailing: Any = plain.value.trailing_metadata()
            assert ("cellstream-reason", reason) in trailing


def test_a_restart_is_counted(own: Own, lstm: torch.nn.LSTM) -> None:
    """START on a live id begins anew, answers what was sent before it, and doesn't go unseen."""
    x = given(12, 3)
    with streaming(own.server) as stream:
        for turn in range(3):
            for t in range(3):
                stream.send(x[t], 1, sequence_start=t == 0, sequence_end=(turn, t) == (2, 2))
        found = [stream.y() for _ in range(9)]
    for turn in range(3):
        check(np.stack(found[3 * turn : 3 * turn + 3]), lstm, x)
    assert (own.lane.sequences.started, own.lane.sequences.restarted) == (3, 2)


def test_a_model_that_fails_says_what_is_lost(own: Own, lstm: torch.nn.LSTM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its server isn't ready, its sequences are told that they are lost; when it computes again, new ones go on."""

    def broken(*_arguments: Any, **_options: Any) -> Any:
        raise EngineError("no reason that a client should read")

    def ready() -> bool:
        return bool(client.is_model_ready("lstm") and client.is_server_ready())

    x = given(16, 4)
    with connect(own.server) as client:
        ask(client, x[0], 1, sequence_start=True)
        with monkeypatch.context() as patch:
            for name in ("run", "probe"):
                patch.setattr(own.lane.engine, name, broken)
            with pytest.raises(Error) as failed:
                ask(client, x[1], 1)
            assert failed.value.status() in ("StatusCode.INTERNAL", "StatusCode.UNAVAILABLE")
            assert "no reason that" not in str(failed.value.message())
            assert not ready()
            assert client.is_model_ready("crossed")
            with pytest.raises(Error) as refused:
                ask(client, x[0], 2, sequence_start=True)
            assert refused.value.status() == "StatusCode.UNAVAILABLE"
        own.clock.jump(5)
        wait_until(ready)
        with pytest.raises(Error, match="it was lost"):
            ask(client, x[1], 1)
        check(ask(client, x, 1, sequence_start=True, sequence_end=True), lstm, x)


def test_a_full_server_says_so_at_once(own: Own) -> None:
    """The fifth of four sequences is refused and not kept waiting; one END later it gets its place."""
    with connect(own.server) as client:
        for key in range(1, 5):
            ask(client, given(1)[0], key, sequence_start=True)
        with pytest.raises(Error, match="4 streams are open; the limit is 4") as refused:
            ask(client, given(1)[0], 5, sequence_start=True)
        assert refused.value.status() == "StatusCode.RESOURCE_EXHAUSTED"
        ask(client, given(1)[0], 1, sequence_start=True)  # a restart has its place already
        client.infer("lstm", [], sequence_id=1, sequence_end=True)
        ask(client, given(1)[0], 5, sequence_start=True)


def test_states_are_read_and_set(own: Own, triton: Server, lstm: torch.nn.LSTM) -> None:
    """A sequence's state read by one request starts a sequence on another server, which goes on as the first would."""
    x = given(13, 10)
    with connect(own.server) as client, connect(triton) as other:
        wanted = client.infer(
            "lstm", [tensor(x[:4])], sequence_id=1, sequence_start=True, parameters={"cellstream_read_state": True}
        )
        states = [wanted.as_numpy(name)[0] for name in ("h_out", "c_out")]
        assert [state.shape for state in states] == [(2, 6), (2, 6)]
        for start in (1, 2):  # with steps in the request that sets it, and without
            inputs = [tensor(state, name) for state, name in zip(states, ("h", "c"), strict=True)]
            parameters = {"cellstream_set_state": True}
            if start == 1:
                inputs.append(tensor(x[4:]))
            flags = {"sequence_start": True, "parameters": parameters}
            result = other.infer("lstm", inputs, sequence_id=start, **flags)
            y = result.as_numpy("y")[0] if start == 1 else ask(other, x[4:], start)
            check(np.concatenate([wanted.as_numpy("y")[0], y]), lstm, x)
            last = other.infer(
                "lstm", [], sequence_id=start, sequence_end=True, parameters={"cellstream_read_state": True}
            )
            with torch.no_grad():
                _, (h, c) = copy.deepcopy(lstm).double()(torch.from_numpy(x).double()[None])
            for name, exact in (("h_out", h), ("c_out", c)):
                np.testing.assert_allclose(last.as_numpy(name)[0], exact[:, 0].numpy(), rtol=0, atol=1e-6)


def test_states_are_forked(own: Own, lstm: torch.nn.LSTM) -> None:
    """Two ways on from one state, neither of which knows of the other."""
    x, y = given(14, 6), given(15, 3)
    with connect(own.server) as client:
        before = ask(client, x[:3], "trunk", sequence_start=True)
        branch = ask(client, y, "branch", sequence_start=True, parameters={"cellstream_fork_of": "trunk"})
        check(np.concatenate([before, ask(client, x[3:], "trunk")]), lstm, x)
        check(branch, lstm, np.concatenate([x[:3], y]), after=3)
        with pytest.raises(Error, match="'cellstream_fork_of' says where a sequence starts"):
            ask(client, y, "branch", parameters={"cellstream_fork_of": "trunk"})
        with pytest.raises(Error, match=r"sequence nobody .*it was never started here"):
            ask(client, y, "twig", sequence_start=True, parameters={"cellstream_fork_of": "nobody"})


def test_a_state_that_does_not_fit_is_refused(own: Own) -> None:
    """A missing one, a wrong shape, one that isn't finite: nothing is started."""
    good = np.zeros((2, 6), np.float32)
    wrong: list[tuple[list[Any], str]] = [
        ([tensor(good, "h")], "state 'c' is missing"),
        ([tensor(good, "h"), tensor(good[:1], "c")], r"unexpected shape for state 'c'.*Expected \[1,2,6\]"),
        ([tensor(good, "h"), tensor(good + np.float32(np.nan), "c")], "finite"),
    ]
    with connect(own.server) as client:
        for inputs, text in wrong:
            with pytest.raises(Error, match=text):
                client.infer(
                    "lstm", inputs, sequence_id=1, sequence_start=True, parameters={"cellstream_set_state": True}
                )
    assert own.live == 0
    assert own.lane.streams.rows.in_use == 0


def test_a_sequence_lives_in_one_worker(models: Path) -> None:
    """Its own connection always finds it; others do or don't, by the worker that the kernel gave them to."""
    read = {"cellstream_read_state": True}

    def told(other: Any) -> str:
        try:
            other.infer("lstm", [], sequence_id=1, parameters=read)
        except Error as error:
            return str(error.message())
        return "the state"

    with two_workers(models, "--allow-unproved") as workers, connect(workers.address) as client:
        ask(client, given(1)[0], 1, sequence_start=True)
        found = set()
        for _ in range(MOST_CONNECTIONS):
            with connect(workers.address) as other:
                found.add(told(other))
            client.infer("lstm", [], sequence_id=1, parameters=read)
            if len(found) == 2:
                break
    found.remove("the state")
    assert "it was never started here" in found.pop()


def test_sigterm_tells_every_stream(models: Path) -> None:
    """A stream without a live sequence is ended, one with lives until its END, one that stays is cut off."""
    options = ("--allow-unproved", "--drain-delay", "1", "--grace", "1")
    with started("--model-repository", str(models), *options) as (process, address):
        with streaming(address) as bare, streaming(address) as ending, streaming(address) as staying:
            for stream, key in ((ending, 1), (staying, 2)):
                stream.send(given(1)[0], key, sequence_start=True)
                stream.y()
            bare.send(given(1)[0], 3, sequence_start=True, sequence_end=True)
            bare.y()
            process.send_signal(signal.SIGTERM)
            wait_until(lambda: not bare.client.is_server_ready())
            assert bare.client.is_server_live()
            assert not bare.client.is_model_ready("lstm")
            with pytest.raises(Error, match="the server is shutting down") as told:
                bare.result()
            assert told.value.status() == "StatusCode.UNAVAILABLE"
            staying.send(given(1)[0], 4, sequence_start=True)
            with pytest.raises(Error, match="shutting down"):
                staying.result()
            ending.send(given(1)[0], 1, sequence_end=True)
            assert ending.y().shape == (6,)
            with pytest.raises(Error, match="the server is shutting down"):
                ending.result()
            with pytest.raises(Error, match="the server has shut down") as told:
                staying.result()
            assert told.value.status() == "StatusCode.UNAVAILABLE"
        assert process.wait(SECONDS) == 0


def test_abandoned_sequences_fill_no_server_for_ever(own: Own) -> None:
    """Unary users that died hold every place: after an hour the oldest makes room, told in metrics and to its user."""
    x = given(3, 2)
    with (
        connect(own.server) as client,
        grpc.insecure_channel(own.server.address) as channel,
        StreamCall(channel) as stream,
    ):
        for key in range(1, 5):
            ask(client, x[0], key, sequence_start=True)
            own.clock.jump(1.0)
        with pytest.raises(Error, match="one that is idle for 3600 s makes room"):
            ask(client, x[0], 9, sequence_start=True)
        own.clock.jump(3598.0)
        ask(client, x[0], 9, sequence_start=True)
        own.clock.jump(1.0)
        stream.open("lstm")  # a stream takes the place of a sequence too
        assert len(stream.run(x)) == 2
        for key in (1, 2):
            with pytest.raises(Error, match="s without a request while every place was taken") as refused:
                ask(client, x[1], key)
            assert refused.value.status() == "StatusCode.INVALID_ARGUMENT"
        ask(client, x[1], 3, sequence_end=True)
        assert own.server.front.find("lstm", 0).sequences.displaced == 2
