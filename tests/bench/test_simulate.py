"""The simulation: tiny worlds reckoned by hand, books that balance in random ones, and the command line."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bench import simulate
from bench.simulation import costs
from bench.simulation.arrivals import Arrivals, RecordingError, in_order, read, write
from bench.simulation.costs import Costs, CostsError
from bench.simulation.loads import Capacity
from bench.simulation.machine import Machine, Played, play
from bench.simulation.scenarios import SCENARIOS
from bench.simulation.trials import Setup, TooMuchError, holds, largest, played, trial
from bench.simulation.variants import AS_BUILT, VARIANTS, PowersOfTwo, Variant
from bench.simulation.verdict import Criteria, judge
from serving.batcher import Batch, Batcher
from serving.config import Batching

# A run takes 100 µs, and 10 more for each further lane, and 20 more for each further step; a message 10 + 10 µs.
TABLE = Costs("a test's", (1, 2), (1, 2), ((100.0, 120.0), (110.0, 130.0)))
MACHINE = Machine(TABLE, transport_us=14.0, python_us=6.0, hand_over_us=40.0)
US = 1e-6


def world(*chunks: tuple[float, int, int], until: float = 1.0) -> Arrivals:
    """Arrivals given as (microseconds, stream, steps)."""
    seconds, stream, steps = zip(*chunks, strict=True)
    return in_order(np.array(seconds) * US, np.array(stream), np.array(steps), until)


def micros(played: Played) -> list[float]:
    """When each chunk was answered."""
    return [round(value * 1e6, 3) for value in played.answered.tolist()]


def batcher(**settings: int) -> Batcher[int]:
    """The server's own."""
    return Variant("", replace(Batching(), **settings)).batcher()


def test_a_lone_step_waits_for_nothing() -> None:
    """Received, run, answered: 10 + 100 + 10 µs, at once, each time."""
    found = play(world((5, 0, 1), (1000, 0, 1)), batcher(), MACHINE)
    assert micros(found) == [125, 1120]
    assert [round(value * 1e6, 3) for value in found.waits.tolist()] == [120, 120]


def test_two_streams_by_hand() -> None:
    """What arrives at once shares a run; what arrives during it forms the next one."""
    found = play(world((0, 0, 1), (0, 1, 1), (50, 2, 1)), batcher(), MACHINE)
    # 0-20 two received, 20-130 run of two, 130-150 two answers; the third was received from 150, ran 160-260.
    assert micros(found) == [140, 150, 270]
    assert found.run_lanes.tolist() == [2, 1]
    assert found.run_began.tolist() == pytest.approx([20 * US, 160 * US])


def test_what_arrives_while_others_are_received_is_taken_too() -> None:
    """As the wire does: it polls until nothing has come, and only then a batch runs."""
    found = play(world((0, 0, 1), (5, 1, 1), (19, 2, 1), (31, 3, 1)), batcher(), MACHINE)
    assert found.run_lanes.tolist() == [3, 1]


def test_a_poll_takes_so_many_messages_and_no_more() -> None:
    """A flood is received in several turns, with runs between."""
    chunks = [(0.0, stream, 1) for stream in range(5)]
    found = play(world(*chunks), batcher(), replace(MACHINE, most_per_poll=2))
    assert found.run_lanes.tolist() == [2, 2, 1]


def test_a_long_chunk_is_cut_and_a_single_step_goes_between() -> None:
    """A single step that arrives during a bulk slice waits for that slice and no other."""
    found = play(world((0, 0, 6), (30, 1, 1)), batcher(slice_steps=2), MACHINE)
    # 0-10 received; slice 10-130, answer to 140; the single step received to 150; then lines up behind nobody older:
    # the bulk stream got its place back at 130, before the single step came: slice 150-270, 280; single 280-380, 390.
    assert micros(found) == [520, 390]
    assert found.run_steps.tolist() == [2, 2, 1, 2]
    assert found.run_bulk.tolist() == [2, 2, 0, 2]


def test_singles_get_their_share_beside_bulk() -> None:
    """Three bulk streams that always have work and one that sends single steps: it sees at most two runs each time."""
    singles = [(1000.0 + 500 * k, 9, 1) for k in range(40)]
    bulk = [(0.0, stream, 400) for stream in range(3)]
    seen = _runs_seen(world(*bulk, *singles), batcher(slice_steps=4, max_run_steps=8))
    assert max(seen[9]) <= 4, "one run under way, those of the older, its own"


def test_bulk_gets_its_share_beside_singles() -> None:
    """Singles enough to fill every run don't keep a bulk chunk waiting: it gets every second turn."""
    found: list[int] = []
    flood = [(20.0 * k, 1 + k % 50, 1) for k in range(2000)]
    arrivals = world((0, 0, 60), *flood)

    def note(_begins: float, batch: Batch[int]) -> None:
        found.append(batch.slices[0].stream)

    play(arrivals, batcher(max_batch=4, slice_steps=2), MACHINE, watch=note)
    turns = [place for place, stream in enumerate(found) if stream == 0]
    assert len(turns) == 30
    # 50 streams stand in line at most, 4 in a run: it waits for 13 runs, and for its own.
    assert max(np.diff(turns)) <= 14


@pytest.mark.parametrize(("in_flight", "second"), [(1, 300.0), (2, 260.0)])
def test_engine_beside_by_hand(in_flight: int, second: float) -> None:
    """Handing over costs 20 µs each way; the loop receives meanwhile; a second batch in flight starts without them."""
    found = play(world((0, 0, 1), (50, 1, 1)), batcher(), MACHINE, in_flight=in_flight)
    # 0-10 received; handed over, 30-130 run, back at 150. One in flight: the second, received by 60, goes out at 150,
    # runs 170-270, is back at 290, answered at 300. Two: it goes out at 60, runs 130-230, is back at 250, answered 260.
    assert micros(found) == [160, second]


@st.composite
def worlds(draw: Callable[..., object]) -> Arrivals:
    """A few streams, chunks of any length at any moment, many of them at the same."""
    chunks = draw(
        st.lists(
            st.tuples(st.integers(0, 40).map(lambda n: n * 50.0), st.integers(0, 6), st.integers(1, 20)),
            min_size=1,
            max_size=40,
        )
    )
    return world(*chunks)  # type: ignore[misc]


@given(
    arrivals=worlds(),
    variant=st.sampled_from([VARIANTS[name] for name in (AS_BUILT, "beside-1", "beside-2", "no-classes", "powers")]),
    max_batch=st.integers(1, 5),
    slice_steps=st.integers(1, 6),
    max_run_steps=st.integers(1, 12),
)
@settings(max_examples=150, deadline=None)
def test_every_step_is_computed_once_and_in_order(
    arrivals: Arrivals, variant: Variant, max_batch: int, slice_steps: int, max_run_steps: int
) -> None:
    """Conservation, order within a stream, limits of a run, a clock that only moves forward: by any variant."""
    variant = replace(variant, batching=Batching(max_batch, slice_steps, max_run_steps))
    ours = variant.batcher()
    computed: dict[int, list[int]] = defaultdict(list)
    began: list[float] = []

    def note(begins: float, batch: Batch[int]) -> None:
        began.append(begins)
        assert 1 <= len(batch.slices) <= max_batch
        assert len(batch.slices) * batch.steps <= max_run_steps or len(batch.slices) == 1
        assert len({piece.stream for piece in batch.slices}) == len(batch.slices)
        for piece in batch.slices:
            assert piece.chunk.arrived <= begins, "computed before it arrived"
            computed[piece.stream] += range(piece.first_step, piece.first_step + piece.steps)

    found = play(arrivals, ours, MACHINE, in_flight=variant.in_flight, watch=note)
    for stream in set(arrivals.stream.tolist()):
        assert computed[stream] == list(range(1, 1 + int(arrivals.steps[arrivals.stream == stream].sum())))
    ours.check()
    assert ours.waiting_steps == 0
    assert int(found.run_steps.sum()) == int(arrivals.steps.sum())
    assert began == sorted(began) == found.run_began.tolist()
    assert (found.run_began[1:] >= found.run_ended[:-1] - 1e-12).all(), "two runs at once"
    alone = np.array([MACHINE.half_message * 2 + TABLE.seconds(1, 1)])
    assert (found.waits >= alone - 1e-12).all(), "answered sooner than possible"


def test_powers_of_two_are_powers_of_two() -> None:
    """Of 7 streams in line 4 run, then 2, then 1."""
    lanes = play(world(*[(0.0, stream, 1) for stream in range(7)]), VARIANTS["powers"].batcher(), MACHINE).run_lanes
    assert lanes.tolist() == [4, 2, 1]
    assert issubclass(PowersOfTwo, Batcher)


def test_without_classes_short_rows_run_with_long_ones() -> None:
    """The very thing that classes are for: one batch where the server's own makes two."""
    arrivals = world((0, 0, 1), (0, 1, 30))
    assert play(arrivals, VARIANTS["no-classes"].batcher(), MACHINE).run_lanes.tolist() == [2]
    assert play(arrivals, VARIANTS["slice-32"].batcher(), MACHINE).run_lanes.tolist() == [1, 1]


def test_slices_are_short_beside_small_pieces() -> None:
    """What the server does: the single step runs first, and the 30 steps then take turns of 6."""
    found = play(world((0, 0, 1), (0, 1, 30)), VARIANTS[AS_BUILT].batcher(), MACHINE)
    assert found.run_steps.tolist() == [1, 6, 6, 6, 6, 6]


def test_a_closed_loop_sends_the_next_after_the_answer() -> None:
    """Never two chunks of one stream at once, numbers without a gap, and nothing arrives after the end."""
    arrivals = SCENARIOS["closed"].arrivals(20, 200.0, 0.5, seed=1)
    numbers = defaultdict(list)

    def note(_begins: float, batch: Batch[int]) -> None:
        for piece in batch.slices:
            numbers[piece.stream].append(piece.first_step)

    found = play(arrivals, batcher(), MACHINE, seed=1, watch=note)
    assert len(found.seconds) > 1000
    assert found.seconds.max() < 0.5
    for stream, steps in numbers.items():
        mine = found.stream == stream
        assert steps == list(range(1, len(steps) + 1))
        assert (found.seconds[mine][1:] >= found.answered[mine][:-1]).all()


@pytest.mark.parametrize("name", [name for name, scenario in SCENARIOS.items() if not scenario.closed])
def test_scenarios_make_the_load_that_was_asked_for(name: str) -> None:
    """The rate chosen for 60 % of capacity brings about so much work, in order of time, from all streams."""
    scenario, capacity = SCENARIOS[name], Capacity(MACHINE, VARIANTS[AS_BUILT])
    rate = capacity.rate(scenario, 500, 0.6, seed=0)
    arrivals = scenario.arrivals(500, rate, 20.0, seed=0)
    # Bulk and heavy tails vary: some hundred chunks make half of the work.
    assert capacity.load(arrivals.steps) / 20 == pytest.approx(0.6, rel=0.15)
    assert arrivals.streams > 490
    again = scenario.arrivals(500, rate, 20.0, seed=0)
    assert (again.seconds == arrivals.seconds).all()
    assert (again.steps == arrivals.steps).all()


def test_capacity_is_what_no_run_can_beat() -> None:
    """Full batches, full slices: a load of 1 is the busiest that single steps can keep a machine."""
    capacity = Capacity(MACHINE, Variant("", Batching(max_batch=4)))
    # Four lanes cost 130 µs by the table's last slope, and each message 20.
    assert capacity.load(np.array([1])) == pytest.approx((130 / 4 + 20) * US)
    beside = Capacity(MACHINE, Variant("", Batching(max_batch=4), in_flight=1))
    assert beside.load(np.array([1])) == pytest.approx(130 / 4 * US)


def test_a_table_is_read_between_its_points(tmp_path: Path) -> None:
    """Linear between and beyond, the same after writing and reading; what isn't a table is refused by name."""
    table = Costs("x", (1, 4), (1, 3), ((10, 30), (40, 120)))
    assert table.seconds(1, 1) == pytest.approx(10e-6)
    assert table.seconds(2, 2) == pytest.approx((20 + (80 - 20) / 3) * 1e-6)
    assert table.seconds(4, 5) == pytest.approx(200e-6)
    costs.write(table, tmp_path / "costs.json")
    assert costs.read(tmp_path / "costs.json") == table
    (tmp_path / "bad.json").write_text('{"about": "", "lanes": [2, 4], "steps": [1, 2], "micros": []}')
    with pytest.raises(CostsError, match=r"bad\.json: lanes are \[2, 4\]; they must ascend from 1"):
        costs.read(tmp_path / "bad.json")
    with pytest.raises(CostsError, match="can't be read"):
        costs.read(tmp_path / "none.json")
    assert costs.rising([[5, 4], [3, 6]]) == ((5, 5), (5, 6))


def test_overload_is_called_that() -> None:
    """Twice the capacity: what waits grows, and the verdict says so; at half of it all holds."""
    machine = replace(MACHINE, transport_us=0.0, python_us=0.0)
    setup = Setup(machine, seconds=1.0)
    rate = Capacity(machine, VARIANTS[AS_BUILT]).rate(SCENARIOS["poisson"], 500, 1.0, 0)
    over = trial(SCENARIOS["poisson"], VARIANTS[AS_BUILT], setup, streams=500, rate=2 * rate)
    assert over.breaks[0].startswith("what waits grows: ")
    assert over.staying == pytest.approx(0.5, abs=0.05)
    assert over.load == pytest.approx(2, rel=0.05)
    under = trial(SCENARIOS["poisson"], VARIANTS[AS_BUILT], setup, streams=500, rate=rate / 2)
    assert under.breaks == ()
    assert under.staying < 0.01
    assert under.singles is not None
    assert under.singles.p50 <= under.singles.p99 <= under.singles.p999 <= under.singles.worst


def test_receiving_comes_first_and_takes_from_computing() -> None:
    """Twice the capacity leaves less than half computed: what arrives is received before a batch runs."""
    setup = Setup(MACHINE, seconds=1.0)
    rate = Capacity(MACHINE, VARIANTS[AS_BUILT]).rate(SCENARIOS["poisson"], 500, 2.0, 0)
    over = trial(SCENARIOS["poisson"], VARIANTS[AS_BUILT], setup, streams=500, rate=rate)
    received = 500 * rate * 10 * US  # share of the time
    capacity = 500 * rate / 2
    compute = 1 / capacity - 20 * US
    assert over.steps_per_second == pytest.approx((1 - received) / (compute + 10 * US), rel=0.03)


def test_every_criterion_breaks() -> None:
    """A period passed, a stream that sees too many runs, too much waiting, bulk that starves: each has its words."""
    criteria = Criteria(most_runs=2, most_waiting=5)
    found = play(world(*[(0.0, stream, 1) for stream in range(8)], until=0.0), batcher(max_batch=2), MACHINE)
    report = judge(found, criteria, scenario="", variant="", load=0.5, period_ms=0.2)
    assert report.most_runs == 4
    assert report.most_waiting == 8
    assert any("above the period of 0.2 ms" in text for text in report.breaks)
    assert any("saw 4 runs begin; 2 are allowed" in text for text in report.breaks)
    assert any("8 steps waited" in text for text in report.breaks)


class ShortestFirst(Batcher[int]):
    """What the server's own isn't: unfair to long chunks."""

    def _oldest_line(self) -> Any:
        return next((line for line in self._lines if line), None)


def test_starving_bulk_is_told() -> None:
    """Under a policy that serves short chunks first bulk starves, and the verdict says so; under ours it doesn't."""
    singles = [(100.0 * k, 1 + k % 9, 1) for k in range(10_000)]
    arrivals = world(*singles, *[(550_000.0 + 40_000 * k, 20 + k, 20) for k in range(10)])
    ours = play(arrivals, batcher(max_run_steps=64), MACHINE)
    theirs = play(arrivals, ShortestFirst(max_batch=128, slice_steps=32, max_run_steps=64), MACHINE)
    fair, unfair = (judge(one, Criteria(), scenario="", variant="", load=0.5) for one in (ours, theirs))
    assert fair.breaks == ()
    assert len(unfair.breaks) == 1
    assert unfair.breaks[0].startswith("bulk starves: ")
    assert holds(fair, Criteria())
    assert not holds(unfair, Criteria())


def test_a_step_behind_its_own_stream_has_not_been_passed_over() -> None:
    """Runs count from when a step is its stream's next: its own earlier chunk is nobody's unfairness."""
    found = play(world((0, 0, 40), (1, 0, 1), until=0.0), batcher(slice_steps=2), MACHINE)
    assert len(found.run_began) == 21
    assert judge(found, Criteria(), scenario="", variant="", load=0.1).most_runs == 1


def test_the_largest_that_holds_is_found() -> None:
    """Bisection ends between one that holds and one that doesn't, near each other."""
    setup = Setup(MACHINE, Criteria(target_ms=2.0), seconds=1.0)
    found = largest(SCENARIOS["together"], VARIANTS[AS_BUILT], setup, rate=20.0)
    assert found.held is not None
    assert found.broke is not None
    assert holds(found.held, setup.criteria)
    assert not holds(found.broke, setup.criteria)
    assert found.held.streams < found.broke.streams <= found.held.streams * 1.05 + 1


def test_a_million_streams() -> None:
    """Memory and time stay in bounds: a million streams, each heard once or not at all."""
    arrivals = SCENARIOS["poisson"].arrivals(1_000_000, 0.02, 5.0, seed=0)
    report = played(arrivals, "poisson", VARIANTS[AS_BUILT], Setup(MACHINE))
    assert report.streams > 90_000
    assert report.breaks == ()
    with pytest.raises(TooMuchError, match="lower --seconds, --rate or --streams"):
        trial(SCENARIOS["poisson"], VARIANTS[AS_BUILT], Setup(MACHINE, seconds=1e5), streams=1_000_000, rate=1.0)


def test_a_recording_says_what_is_wrong_with_it(tmp_path: Path) -> None:
    """Each fault names the file and the line; streams may have any names."""
    path = tmp_path / "day.csv"
    assert write(path, [(3.5, "a", 2), (3.25, "b", 1)]) == 2
    found = read(path)
    assert found.seconds.tolist() == [0, 0.25]
    assert found.stream.tolist() == [1, 0]
    assert found.steps.tolist() == [1, 2]
    assert found.faster(2).seconds.tolist() == [0, 0.125]
    for text, words in (
        ("a,b,c\n", "line 1: the header must be seconds,stream,steps"),
        ("seconds,stream,steps\n", "holds no arrival"),
        ("seconds,stream,steps\n0,1,1\n1,2\n", "line 3: '1,2' isn't seconds,stream,steps"),
        ("seconds,stream,steps\n0,1,0\n", "line 2: seconds must be"),
        ("seconds,stream,steps\nnan,1,1\n", "line 2: seconds must be"),
    ):
        path.write_text(text)
        with pytest.raises(RecordingError, match=words):
            read(path)


def run(*words: str) -> int:
    """The command."""
    return simulate.main(list(words))


def test_the_command_prints_tables_and_verdicts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A trial, a sweep, a plot and a recording; JSON has what the tables have."""
    file = tmp_path / "found.json"
    few = ("--streams", "50", "--seconds", "0.3", "--json", str(file))
    assert run("poisson", "bulk", "--variant", "as-built", "--variant", "beside-2", *few) == 0
    out = capsys.readouterr().out
    assert "poisson, beside-2: holds" in out
    data = json.loads(file.read_text())
    assert [one["scenario"] for one in data["found"]] == ["poisson", "poisson", "bulk", "bulk"]
    assert data["found"][0]["singles"]["p99"] > 0
    assert run("poisson", "--load", "1.5", "--seconds", "1", "--slice-steps", "4") == 0
    assert "breaks here: what waits grows" in capsys.readouterr().out
    assert run("--sweep", "together", "--variant", "as-built", "--seconds", "0.2", "--json", str(file)) == 0
    assert json.loads(file.read_text())["found"][0]["held"]["singles"]["p99"] < 10
    assert "p99 < 10 ms" in capsys.readouterr().out
    picture = tmp_path / "p99.svg"
    assert run("--plot", str(picture), "poisson", "--variant", "as-built", "--variant", "slice-8", *few) == 0
    lines = ET.fromstring(picture.read_text()).findall(".//{http://www.w3.org/2000/svg}polyline")
    assert len(lines) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["nothing"], "no scenario 'nothing'; there are poisson"),
        (["--streams", "0"], "--streams is 0; it must be from 1"),
        (["--load", "-1"], "--load is -1; it must be from"),
        (["--rate", "nan"], "--rate is nan; it must be from"),
        (["--recorded", "x.csv", "--sweep"], "--recorded is played by itself"),
    ],
)
def test_wrong_options_are_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Exit status 2, with the option, its value and what it may be."""
    with pytest.raises(SystemExit) as left:
        run(*words)
    assert left.value.code == 2
    assert said in capsys.readouterr().err


def test_files_that_are_not_there_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No traceback for a wrong path or a wrong limit."""
    for words in (
        ["--recorded", str(tmp_path / "none.csv")],
        ["--costs", str(tmp_path / "none.json")],
        ["poisson", "--max-batch", "0"],
        ["poisson", "--streams", "5", "--seconds", "0.1", "--json", str(tmp_path / "none" / "found.json")],
        ["--calibrate", str(tmp_path / "none")],
    ):
        assert run(*words) == 2
        assert capsys.readouterr().err.startswith("error: ")


def _runs_seen(arrivals: Arrivals, ours: Batcher[int]) -> dict[int, list[int]]:
    """By stream: how many runs began from each chunk's arrival until its last slice ran, that included."""
    began: list[float] = []
    seen: dict[int, list[int]] = defaultdict(list)

    def note(begins: float, batch: Batch[int]) -> None:
        began.append(begins)
        for piece in batch.slices:
            if piece.offset + piece.steps == piece.chunk.steps:
                seen[piece.stream].append(sum(1 for moment in began if moment >= piece.chunk.arrived))

    play(arrivals, ours, MACHINE, watch=note)
    return seen
