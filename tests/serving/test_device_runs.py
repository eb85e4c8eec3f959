"""The path that a GPU takes, on the CPU: padded buckets, copies to and from the device, graphs, and faults in all."""

from __future__ import annotations

import gc
import mmap
import threading
import tracemalloc
import weakref
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

import cellstream
from serving import server as server_module
from serving.buckets import CaptureError
from serving.config import Batching, Limits, ServerConfig
from serving.device import Device, Memory, open_session
from serving.device_runs import DeviceRuns, Parcel, bucket_sizes
from serving.engine import Engine, EngineError
from serving.errors import ConfigError
from serving.one_thread import OneThread
from serving.pinned import PageLockError, whole_pages
from serving.server import Server
from tests.serving.cuda_runtime import Runtime
from tests.serving.graph_session import RUNS_AT_CAPTURE, GraphSession, GraphSessions, bake

F, ROWS, LANES = 5, 40, 9
BAKED = ["bakes the rows it reads", "bakes the rows it writes", "bakes its inputs"]  # in the order they are sent in
MakeEngine = Callable[..., Engine]


@pytest.fixture(scope="module")
def make(artifacts: Path) -> MakeEngine:
    """Engines with room for 9 lanes, so that the largest bucket is no power of two."""

    def make_engine(model: str = "vectors", **options: Any) -> Engine:
        path = artifacts / model / "1" / "resident.onnx"
        return Engine(path, rows=ROWS, max_batch=LANES, slice_steps=16, max_run_steps=128, threads=1, **options)

    return make_engine


@pytest.fixture
def sessions(monkeypatch: pytest.MonkeyPatch) -> GraphSessions:
    """Sessions that play a GPU's graphs."""
    return GraphSessions(monkeypatch)


def runs_of(engine: Engine) -> DeviceRuns:
    """What an engine on a device runs by."""
    assert isinstance(engine._runs, DeviceRuns)
    return engine._runs


def vectors(steps: int, seed: int) -> tuple[bytes]:
    """One lane's inputs."""
    return (np.random.default_rng(seed).standard_normal((steps, F), dtype=np.float32).tobytes(),)


def slab(engine: Engine) -> list[bytes]:
    """All that streams' rows hold."""
    return [state.tobytes() for row in range(ROWS) for state in engine.read_state(row)]


def test_buckets_are_powers_of_two_up_to_the_largest_batch() -> None:
    """And the largest batch itself."""
    assert bucket_sizes(1) == [1]
    assert bucket_sizes(8) == [1, 2, 4, 8]
    assert bucket_sizes(9) == [1, 2, 4, 8, 9]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    single=st.booleans(),
    lanes=st.integers(1, LANES),
    rows=st.permutations(range(1, ROWS)),
    seed=st.integers(0, 2**32 - 1),
    graphs=st.booleans(),
)
def test_the_device_path_gives_the_bytes_of_the_host_path(
    make: MakeEngine, single: bool, lanes: int, rows: list[int], seed: int, graphs: bool
) -> None:
    """Any batch, padded or ragged, leaves the same answers and the same slab, twice in a row."""
    host, device = make(), make(buckets=True, graphs=graphs)
    lengths = [1 if single else 1 + (seed + lane) % 14 for lane in range(lanes)]
    inputs = [vectors(steps, seed + lane) for lane, steps in enumerate(lengths)]
    read = [0] * lanes
    for write in (rows[:lanes], rows[lanes : 2 * lanes]):
        assert host.run(inputs, lengths, read, write) == device.run(inputs, lengths, read, write)
        read = write
    assert slab(host) == slab(device)


def test_a_lane_is_the_same_bytes_in_every_company_within_a_bucket(make: MakeEngine) -> None:
    """Place and neighbours of a lane change nothing, padding neither: 5, 6, 7 and 8 lanes are one bucket."""
    engine, mine, answers = make("tokens", buckets=True, graphs=True), np.array([7]).tobytes(), set()
    for lanes in (5, 6, 7, 8):
        for place in range(lanes):
            inputs = [(mine if lane == place else np.array([(lane + place) % 11]).tobytes(),) for lane in range(lanes)]
            outputs = engine.run(inputs, [1] * lanes, [0] * lanes, list(range(1, lanes + 1)))
            answers.add((outputs[place][0], engine.read_state(1 + place)[0].tobytes()))
    assert len(answers) == 1


def test_padding_writes_rows_that_no_stream_has(make: MakeEngine) -> None:
    """A padded run writes the rows it was given and scratch rows, one for each padding lane."""
    engine = make(buckets=True)
    before = slab(engine)
    engine.run([vectors(1, lane) for lane in range(5)], [1] * 5, [0] * 5, [11, 12, 13, 14, 15])
    changed = {row for row, (was, is_now) in enumerate(zip(before, slab(engine), strict=True)) if was != is_now}
    assert changed == {11, 12, 13, 14, 15}
    runs = runs_of(engine)
    written = [row for row in runs.scratch.flat if runs.read(int(row))[0].any()]
    assert written == list(runs.scratch[0, 5:8])
    assert min(written) >= ROWS


def test_padding_is_one_step_from_row_0_whatever_ran_before(make: MakeEngine) -> None:
    """Nothing of a chunk's longer lengths is left, and nobody's row is read for nobody."""
    engine = make(buckets=True)
    engine.run([vectors(3, lane) for lane in range(8)], [3] * 8, [0] * 8, list(range(1, 9)))
    engine.run([vectors(1, lane) for lane in range(8)], [1] * 8, list(range(1, 9)), list(range(11, 19)))
    engine.run([vectors(3, lane) for lane in range(8)], [3] * 8, list(range(11, 19)), list(range(1, 9)))
    engine.run([vectors(1, lane) for lane in range(5)], [1] * 5, [1, 2, 3, 4, 5], [11, 12, 13, 14, 15])
    assert engine._read_rows[:8].tolist() == [1, 2, 3, 4, 5, 0, 0, 0]
    assert engine._lengths[:8].tolist() == [1] * 8


def test_a_failed_runs_inputs_pad_nobody(make: MakeEngine) -> None:
    """A token that can't be looked up fails its run, and doesn't come back as another run's padding."""
    engine = make("tokens", buckets=True)
    good, bad = (np.array([3]).tobytes(),), (np.array([999]).tobytes(),)
    with pytest.raises(EngineError):
        engine.run([good, good, good, bad], [1] * 4, [0] * 4, [1, 2, 3, 4])
    engine.run([good] * 3, [1] * 3, [0] * 3, [1, 2, 3])


def test_every_bucket_is_captured_before_anybody_is_served_and_then_replayed(
    make: MakeEngine, sessions: GraphSessions
) -> None:
    """Single steps go through graphs, chunks don't, and nothing is captured late."""
    engine = make(graphs=True)
    (session,) = sessions.opened[1:]  # the first is how the CPU's contract is read
    assert engine.graphed
    assert sorted(session.captured) == [1, 2, 4, 8, 9]
    assert session.captured[0] == 9, "the largest first"
    session.replayed.clear()
    plain = session.plain
    for lanes in range(1, LANES + 1):
        engine.run([vectors(1, lane) for lane in range(lanes)], [1] * lanes, [0] * lanes, list(range(1, lanes + 1)))
    engine.probe(20, lanes=4)
    assert session.replayed == [1, 2, 4, 4, 8, 8, 8, 8, 9, 4]
    assert session.plain == plain
    engine.run([vectors(2, 1)], [2], [0], [1])
    assert (len(session.replayed), session.plain) == (10, plain + 1)
    assert sorted(session.captured) == [1, 2, 4, 8, 9]


def test_runs_at_capture_are_harmless_because_rows_are_immutable(make: MakeEngine, sessions: GraphSessions) -> None:
    """Three runs from one row to another are one run; from a row to itself they would be three."""
    engine, other = make(graphs=True), make()
    assert slab(engine) == slab(other), "capturing changed a row that streams have"
    runs, session = runs_of(engine), sessions.opened[1]

    def run(read: int, write: int) -> bytes:
        engine._read_rows[0], engine._write_rows[0] = read, write
        engine._inputs[0][:F] = np.frombuffer(vectors(1, 1)[0], np.float32)
        runs.prepared(1, 1)()
        return engine.read_state(write)[0].tobytes()

    once = run(0, 1)
    session.captured.remove(1)
    assert run(0, 2) == once, f"{RUNS_AT_CAPTURE} runs from row 0"
    engine.write_state(3, engine.read_state(1))
    session.captured.remove(1)
    in_place = run(3, 3)
    assert in_place != run(1, 4), "in place, each of the runs goes on from the last"


def test_a_model_that_can_not_be_captured_runs_without_graphs(make: MakeEngine, sessions: GraphSessions) -> None:
    """ONNX Runtime refuses a session for graphs with control flow in it: one warning, and the same answers."""
    sessions.refuse = "this session cannot use the graph capture feature: control flow nodes"
    with capture_logs() as logs:
        engine = make(graphs=True)
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert "control flow nodes" in logs[0]["reason"]
    assert not engine.graphed
    inputs = [vectors(1, lane) for lane in range(3)]
    assert engine.run(inputs, [1] * 3, [0] * 3, [1, 2, 3]) == make().run(inputs, [1] * 3, [0] * 3, [1, 2, 3])


@pytest.mark.parametrize("fault", ["raises at the largest", "raises at the smallest", *BAKED])
def test_a_capture_that_goes_wrong_is_not_used(
    make: MakeEngine, sessions: GraphSessions, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    """An error at capture, or a replay that gives other bytes, and the model runs without graphs, on a new session."""

    def prepare(session: GraphSession) -> None:
        if fault in BAKED:
            bake(session, monkeypatch, tensor=BAKED.index(fault))
        else:
            session.fail = lambda graph: graph == (9 if "largest" in fault else 1)

    sessions.prepare = prepare
    with capture_logs() as logs:
        engine = make(graphs=True)
    expected = "a batch of 9 gives other bytes" if fault in BAKED else "can't be captured: CUDA error 900"
    assert [expected in entry["reason"] for entry in logs] == [True]
    assert not engine.graphed
    assert len(sessions.opened) == 3
    engine.run([vectors(1, 1)], [1], [0], [1])
    assert sessions.opened[2].plain == 1
    assert slab(engine)[:1] == slab(make())[:1]


def test_a_failed_captures_slab_is_gone_before_there_is_another(
    make: MakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU may have no room for two."""
    made: list[weakref.ref[DeviceRuns]] = []

    def capture(runs: DeviceRuns, _buffers: Any) -> None:
        made.append(weakref.ref(runs))
        runs.prepared(3, 1)()
        raise CaptureError("told to")

    monkeypatch.setattr("serving.engine.capture", capture)
    gc.disable()
    try:
        engine = make(graphs=True)
    finally:
        gc.enable()
    assert not engine.graphed
    assert [run() for run in made] == [None]


def test_a_replay_that_fails_changes_nothing(make: MakeEngine, sessions: GraphSessions) -> None:
    """The run raises EngineError, every row that could be read is as it was, and the next run works."""
    engine, inputs = make(graphs=True), [vectors(1, lane) for lane in range(3)]
    session = sessions.opened[1]
    engine.run(inputs, [1] * 3, [0] * 3, [1, 2, 3])
    before = slab(engine)
    session.fail = lambda graph: graph == 4
    with pytest.raises(EngineError, match="CUDA error 900"):
        engine.run(inputs, [1] * 3, [1, 2, 3], [4, 5, 6])
    with pytest.raises(EngineError, match="CUDA error 900"):
        engine.probe(7, lanes=3)
    session.fail = lambda _graph: False
    assert slab(engine) == before
    again = engine.run(inputs, [1] * 3, [1, 2, 3], [4, 5, 6])
    assert again == engine.run(inputs, [1] * 3, [1, 2, 3], [7, 8, 9])


@pytest.fixture
def runtime(monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """What plays CUDA's part for engines on the CPU."""
    found = Runtime()
    monkeypatch.setattr("serving.device_runs.cuda_runtime", lambda _device: found)
    return found


def test_tensors_travel_in_one_copy_and_come_back_as_they_were(artifacts: Path) -> None:
    """Of any dtype and odd sizes, each at an aligned address of the device's buffer."""
    memory = Memory(open_session(artifacts / "vectors/1/resident.onnx", Device(), threads=1), Device())
    random = np.random.default_rng(0)
    tensors = [random.integers(0, 99, size).astype(dtype) for size, dtype in ((3, "i8"), (301, "u1"), (7, "f4"))]
    original = [values.tobytes() for values in tensors]
    there = memory.allocate([4096], np.uint8)
    parts = [(str(place), values, [values.size]) for place, values in enumerate(tensors)]
    up = Parcel(memory, there.data_ptr(), parts, whole_pages(4096))
    down = Parcel(memory, there.data_ptr(), parts, whole_pages(4096))
    up.send()
    for _, dtype, shape, address in up.tensors:
        assert (address - there.data_ptr()) % 256 == 0
        assert memory.view(address, shape, dtype).numpy().tobytes() in original
    for values in tensors:
        values[:] = 0
    down.fetch()
    assert [values.tobytes() for values in tensors] == original


def test_all_that_is_copied_goes_through_page_locked_memory(make: MakeEngine, runtime: Runtime) -> None:
    """Two buffers, locked when the runs are made; with graphs or without, every parcel lies in them."""
    engine = make(buckets=True)
    runs = runs_of(engine)
    ends = {begin: begin + size for begin, size in runtime.locked.items()}
    assert len(ends) == 2
    assert not any(begin % mmap.PAGESIZE for begin in ends), "what else lies on their pages is locked, too"
    parcels: list[Parcel] = []
    for lanes, steps in ((1, 1), (5, 1), (3, 2)):
        cells = runs.prepared(lanes, steps).__closure__ or ()
        parcels += [cell.cell_contents for cell in cells if isinstance(cell.cell_contents, Parcel)]
    assert len(parcels) == 4, "a padded batch is its bucket's run"
    for parcel in parcels:
        begin = parcel._here.ctypes.data
        assert begin + parcel._here.nbytes <= ends[begin]
        assert parcel._landing.data_ptr() == begin


def test_an_engine_that_is_gone_has_let_go_of_device_and_pages(make: MakeEngine, runtime: Runtime) -> None:
    """At once, by itself: the server's collector looks at nothing that start-up made, and a model can be unloaded."""
    engine = make(buckets=True)
    engine.run([vectors(1, lane) for lane in range(5)], [1] * 5, [0] * 5, [1, 2, 3, 4, 5])
    engine.run([vectors(2, 1)], [2], [0], [1])
    runs = weakref.ref(runs_of(engine))
    assert runtime.locked
    assert not runs_of(engine)._unlocking.atexit, "a thread may still be copying when a process ends"
    gc.disable()
    try:
        del engine
        assert runs() is None
    finally:
        gc.enable()
    assert runtime.locked == {}


@pytest.mark.parametrize("fault", ["can't be loaded", "with error 2"])
def test_buffers_that_can_not_be_locked_are_used_as_they_are(
    make: MakeEngine, monkeypatch: pytest.MonkeyPatch, runtime: Runtime, fault: str
) -> None:
    """One warning that says why and what it costs, and the same bytes."""
    runtime.room = 1

    def unloadable(_device: Device) -> Any:
        raise PageLockError("CUDA's runtime library can't be loaded: libcudart.so.13")

    if fault == "can't be loaded":
        monkeypatch.setattr("serving.device_runs.cuda_runtime", unloadable)
    with capture_logs() as logs:
        engine = make(buckets=True)
    assert [entry["log_level"] for entry in logs] == ["warning"]
    assert "aren't page-locked: inputs and outputs take longer" in logs[0]["event"]
    assert fault in logs[0]["reason"]
    assert runtime.locked == {}
    asked = [vectors(1, lane) for lane in range(3)], [1] * 3, [0] * 3, [1, 2, 3]
    assert engine.run(*asked) == make().run(*asked)


@pytest.mark.parametrize("way", ["send", "fetch"])
@pytest.mark.parametrize("steps", [1, 2])
def test_a_copy_that_fails_changes_nothing(
    make: MakeEngine, monkeypatch: pytest.MonkeyPatch, way: str, steps: int
) -> None:
    """Up or down, it is a failed run: EngineError, every row that could be read as it was, and the next one works."""
    engine, inputs = make(buckets=True), [vectors(steps, lane) for lane in range(3)]
    asked = inputs, [steps] * 3, [1, 2, 3]
    engine.run(inputs, [steps] * 3, [0] * 3, [1, 2, 3])
    before = slab(engine)

    def broken(_parcel: Parcel) -> None:
        raise RuntimeError("CUDA failure 719: cudaMemcpy")

    with monkeypatch.context() as patch:
        patch.setattr(Parcel, way, broken)
        with pytest.raises(EngineError, match="CUDA failure 719"):
            engine.run(*asked, [4, 5, 6])
    assert slab(engine)[:4] == before[:4]
    assert engine.run(*asked, [4, 5, 6]) == engine.run(*asked, [7, 8, 9])


def test_a_run_allocates_nothing(artifacts: Path) -> None:
    """Not for copies either, however much they carry: 512 KiB up and 8 MiB down here."""
    path = artifacts / "wide/1/resident.onnx"
    engine = Engine(path, rows=80, max_batch=64, slice_steps=512, max_run_steps=1 << 15, threads=1, buckets=True)
    engine._lengths[:] = 512
    engine._write_rows[:64] = np.arange(1, 65)
    run = runs_of(engine).prepared(64, 512)
    run()
    tracemalloc.start()
    try:
        for _ in range(3):
            run()
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert most < 64 << 10


def test_one_thread_owns_the_device(make: MakeEngine) -> None:
    """Runs and writes from another thread are our own bug; reading a row that is referred to is not."""
    engine = make(buckets=True)
    engine.run([vectors(1, 1)], [1], [0], [1])
    expected, failed, read = engine.read_state(1)[0].tobytes(), [], []

    def elsewhere() -> None:
        for work in (
            lambda: engine.run([vectors(1, 1)], [1], [0], [2]),
            lambda: engine.write_state(2, engine.read_state(1)),
            lambda: engine.probe(2),
        ):
            try:
                work()
            except AssertionError as error:
                failed.append(str(error))
        read.append(engine.read_state(1)[0].tobytes())

    thread = threading.Thread(target=elsewhere)
    thread.start()
    thread.join()
    assert ["doesn't own" in text for text in failed] == [True] * 3
    assert read == [expected]


def test_a_row_read_while_steps_go_on_is_the_row(make: MakeEngine) -> None:
    """A checkpoint's thread reads a pinned row over and over while the owner writes others: never another byte."""
    engine = make(buckets=True, graphs=True)
    engine.run([vectors(1, 1)], [1], [0], [1])
    expected, stop, wrong = engine.read_state(1)[0].tobytes(), threading.Event(), []

    def read() -> None:
        while not stop.is_set():
            if engine.read_state(1)[0].tobytes() != expected:
                wrong.append(1)

    thread = threading.Thread(target=read)
    thread.start()
    for turn in range(200):
        engine.run([vectors(1, turn)] * 8, [1] * 8, [1] * 8, list(range(2 + 8 * (turn % 2), 10 + 8 * (turn % 2))))
    stop.set()
    thread.join()
    assert not wrong


def test_a_row_is_read_while_a_run_is_under_way(make: MakeEngine, sessions: GraphSessions) -> None:
    """Neither waits for the other: the read begins and ends within the run, and sees the row that the run reads."""
    engine, reader, found = make(graphs=True), OneThread("reader"), []
    engine.run([vectors(1, 1)], [1], [0], [1])
    expected = engine.read_state(1)[0].tobytes()
    sessions.opened[1].on_replay = lambda _graph: found.append(reader.call(lambda: engine.read_state(1)))
    engine.run([vectors(1, 2)], [1], [1], [2])
    assert [state.tobytes() for (state,) in found] == [expected]


def test_a_row_is_read_on_the_engines_gpu_whichever_thread_asks(make: MakeEngine, runtime: Runtime) -> None:
    """CUDA takes a new thread for one of the first GPU's, and would make a context there; the owner's is right."""
    engine = make(buckets=True)
    runtime.devices.clear()
    (expected,) = engine.read_state(0)
    assert runtime.devices == []
    (found,) = OneThread("reader").call(lambda: engine.read_state(0))
    assert found.tobytes() == expected.tobytes()
    assert runtime.devices == [0]


def test_a_state_that_was_written_is_read_again(make: MakeEngine) -> None:
    """One row changes, its neighbours don't, and its copy computes what the original does."""
    engine = make(buckets=True)
    engine.run([vectors(3, 1)], [3], [0], [5])
    before = slab(engine)
    engine.write_state(7, engine.read_state(5))
    assert slab(engine) == [*before[:7], before[5], *before[8:]]
    original, copy = engine.run([vectors(1, 2)] * 2, [1, 1], [5, 7], [1, 2])
    assert original == copy


def test_what_a_device_has_no_memory_for_is_refused(make: MakeEngine, artifacts: Path) -> None:
    """The error names the device and the shape."""
    with pytest.raises(ConfigError, match=r"no memory on cpu for \[\d+, 28\] of float32"):
        Engine(
            artifacts / "vectors/1/resident.onnx",
            rows=1 << 44,
            max_batch=1,
            slice_steps=1,
            max_run_steps=1,
            threads=1,
            buckets=True,
        )


def test_a_device_that_takes_no_slab_is_refused(make: MakeEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one whose context is broken: a line for the operator, not a traceback."""

    def broken(_self: DeviceRuns, _row: int, _values: Any) -> None:
        raise RuntimeError("CUDA failure 700")

    monkeypatch.setattr(DeviceRuns, "write", broken)
    with pytest.raises(ConfigError, match=r"resident\.onnx: its slab can't be set up on cpu: CUDA failure 700"):
        make(buckets=True)


def test_a_precision_for_cpus_is_refused_on_a_gpu(
    make: MakeEngine, artifacts: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its roundings are proved for the CPU's kernels, and a GPU's are others; nothing else is loaded then."""
    contract = replace(make().contract, precision="int8")
    monkeypatch.setattr("serving.engine.check", lambda _device: None)
    monkeypatch.setattr("serving.placement.check", lambda _path, _device, threads: contract)
    with pytest.raises(
        ConfigError, match=r"resident\.onnx: its precision is int8, .* --device cpu, or export it as fp32"
    ):
        make(device="cuda")


@pytest.fixture
def bucketed(artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server whose engines take a GPU's path."""
    GraphSessions(monkeypatch)
    monkeypatch.setattr(server_module, "Engine", partial(Engine, graphs=True))
    config = ServerConfig(artifacts, "127.0.0.1:0", grace=0.2, limits=Limits(max_streams=20), batching=Batching(6, 4))
    running = Server(config)
    running.start()
    yield running
    assert running.drain()


def test_a_server_on_that_path_answers_what_the_engine_computes(bucketed: Server, make: MakeEngine) -> None:
    """Loaded, captured and run by one thread: streams in steps and chunks get the host path's bytes."""
    assert all(lane.engine.device == "cpu" for lane in bucketed.lanes)
    x: npt.NDArray[np.float32] = np.random.default_rng(1).standard_normal((12, F), dtype=np.float32)
    (expected,) = make().run([(x.tobytes(),)], [12], [0], [1])
    with cellstream.connect(bucketed.address) as client:
        streams = [client.stream("vectors", version=1) for _ in range(3)]
        singly = [[stream.step(step) for stream in streams] for step in x[:7]]
        rest = [stream.step(x[7:]) for stream in streams]
        for number, stream in enumerate(streams):
            answers = np.concatenate([np.stack([step[number] for step in singly]), rest[number]])
            assert answers.tobytes() == expected[0]
            stream.close()
