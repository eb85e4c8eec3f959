"""Every server of the benchmark, started as the suite starts it and put under load."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from bench import client_load, machinery, studies
from bench.cases import Case, Peer, bare, chunks, client, full, many, quick, single
from bench.ceilings import Raw
from bench.machinery import MeasurementError, Stand, sample, stands
from bench.peers.answers import MultiplexAnswers, StreamAnswers
from bench.samples import Sample
from bench.server_process import RunningServer
from cellstream.v1 import stream_inference_pb2 as pb
from tests.bench.figures import sample as made_up


@pytest.fixture(scope="module")
def artifact(artifacts: Path) -> Path:
    """A small model."""
    return artifacts / "wide" / "1"


@pytest.fixture(scope="module")
def made(artifact: Path) -> Iterator[dict[Peer, Stand]]:
    """All servers."""
    with stands(artifact, list(Peer)) as running:
        yield running


@pytest.mark.parametrize("peer", list(Peer))
def test_each_server_answers(made: dict[Peer, Stand], artifact: Path, peer: Peer) -> None:
    """Those that compute are checked; ours tells its runs too."""
    found = sample(chunks(3, 4).of(peer), 7, made[peer], artifact, warm_up=0.1, seconds=0.2)
    assert found.steps_per_second > 0
    assert found.server_cpu > 0
    assert found.round == 7
    assert (found.batch is not None) == (peer is Peer.OURS)
    if found.batch is not None:
        assert found.run_steps is not None
        assert found.engine is not None
        assert 1 <= found.batch <= 4
        assert found.run_steps == pytest.approx(3 * found.batch)
        assert 0 < found.engine < found.server_cpu


@pytest.mark.parametrize("peer", [Peer.ECHO, Peer.AIO_ECHO])
def test_echoes_take_many_streams_in_a_message(made: dict[Peer, Stand], artifact: Path, peer: Peer) -> None:
    """As one message."""
    found = sample(many(20).of(peer), 0, made[peer], artifact, warm_up=0.1, seconds=0.2)
    assert found.steps_per_second > 0


@pytest.mark.parametrize("how", [client, bare])
def test_the_client_and_what_is_below_it(
    monkeypatch: pytest.MonkeyPatch, made: dict[Peer, Stand], artifact: Path, how: Callable[[int], Case]
) -> None:
    """Both really step the server's streams."""
    monkeypatch.setattr(machinery, "INPUTS", "5")
    found = sample(how(20), 0, made[Peer.OURS], artifact, warm_up=0.1, seconds=0.2)
    assert found.batch == pytest.approx(20)
    assert found.load_cpu > 0


def test_bare_calls_that_run_out_say_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], made: dict[Peer, Stand]
) -> None:
    """There are so many ready-made messages, and no more."""
    address = made[Peer.OURS].running.address
    monkeypatch.setattr(client_load, "_BARE_MESSAGES", 3)
    options = ["--bare", "--address", address, "--model", "wide", "--input-size", "5", "--streams", "4"]
    monkeypatch.setattr("sys.argv", ["client_load", *options])
    assert client_load.main() == 1
    assert "no more than 3 messages" in capsys.readouterr().err


def test_a_generator_that_gives_up_ends_the_bench_with_its_words(made: dict[Peer, Stand], artifact: Path) -> None:
    """And not with half a result."""
    nobody = Stand(RunningServer("127.0.0.1:1", made[Peer.OURS].running.process))
    with pytest.raises(MeasurementError, match="can't connect"):
        sample(single(1), 0, nobody, artifact, warm_up=0.1, seconds=0.1)


def test_idle_streams_are_open(made: dict[Peer, Stand], artifact: Path) -> None:
    """The server counts them, until they are closed."""
    with studies.streams(made[Peer.OURS], artifact, 30, Peer.OURS) as run:
        assert run.opened == 30
        assert _live(made[Peer.OURS]) == 30
    assert _live(made[Peer.OURS]) == 0


def _live(stand: Stand) -> int:
    import urllib.request  # noqa: PLC0415

    with urllib.request.urlopen(f"http://{stand.metrics}/metrics", timeout=10) as answer:
        text = answer.read().decode()
    counts = [line.split()[-1] for line in text.splitlines() if line.startswith("cellstream_live_streams{")]
    return round(sum(map(float, counts)))


@pytest.mark.parametrize("truth", [10, 40, 300, 513])
def test_the_search_for_the_most_streams(
    monkeypatch: pytest.MonkeyPatch, made: dict[Peer, Stand], artifact: Path, truth: int
) -> None:
    """A server that holds `truth` streams is found to hold that many, within an eighth; each asked at its own rate."""

    def measured(case: Case, *_args: object, **_more: object) -> Sample:
        assert case.rate == pytest.approx(100 * case.streams)
        return made_up(case, p99=9_000.0 if case.streams <= truth else 11_000.0)

    monkeypatch.setattr(studies, "sample", measured)
    found = studies.sustained(Peer.OURS, made[Peer.OURS], artifact, 1.0, lambda _what: None)
    assert truth - max(truth / 8, 4) <= found.streams <= truth
    assert found.p99 == 9_000.0


def test_raw_runs_are_measured(artifact: Path) -> None:
    """More lanes take longer, but less than in proportion."""
    raw = Raw(artifact)
    one, many_lanes = raw.measure(1, 1, 0.02), raw.measure(64, 4, 0.02)
    assert 0 < one.us_per_run < many_lanes.us_per_run
    assert many_lanes.us_per_step < one.us_per_step
    assert raw.row_bytes == 2 * 64 * 4


def test_ready_made_answers_have_the_size_of_real_ones() -> None:
    """Steps and rows as many as were asked."""
    answers = StreamAnswers(64, 16)
    message = pb.StreamRequest(chunk=pb.Chunk(first_step=70_000, steps=16, inputs=[bytes(16 * 256)]))
    answer = pb.StreamResponse.FromString(answers[message.ByteSize()])
    assert (answer.outputs.steps, len(answer.outputs.outputs[0])) == (16, 16 * 64)
    for streams in (1, 16, 64, 256, 1024):
        rows = pb.StepRows(keys=range(streams), first_steps=[2**31] * streams, tensors=[bytes(streams * 256)])
        size = pb.MultiplexRequest(steps=[rows]).ByteSize()
        (columns,) = pb.MultiplexResponse.FromString(MultiplexAnswers(64, 16)[size]).outputs
        assert len(columns.keys) == streams
        assert len(columns.tensors[0]) == streams * 64


def test_a_round_holds_every_pair_that_is_compared() -> None:
    """No case twice; every one of ours beside its echo."""
    for cases in (full(), quick()):
        assert len(set(cases)) == len(cases)
        ours = [case for case in cases if case.peer is Peer.OURS and case.by_generator]
        assert all(case.of(Peer.ECHO) in cases for case in ours)
        assert all(replace(client(case.streams), client=False) in ours for case in cases if case.client)


def test_counters_of_a_server_without_metrics(made: dict[Peer, Stand]) -> None:
    """None; and nothing is made up from them."""
    assert machinery.counters(made[Peer.ECHO]) == {}
