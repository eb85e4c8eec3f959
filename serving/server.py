"""The whole server: what is built from what, in which order it starts, and how it leaves.

Owns the wiring and the shutdown. The only place that knows every part.
"""

from __future__ import annotations

import contextlib
import gc
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health_pb2

from serving import log_output, multiplex_service, stream_service
from serving.admin_service import admin_methods
from serving.config import ServerConfig, host_and_port
from serving.engine import Engine
from serving.errand import on_loop
from serving.errors import ConfigError, ShuttingDown, Unavailable
from serving.front import SERVICE, Front
from serving.gate import Gate, MetadataLimit
from serving.graph_files import GraphFiles
from serving.health import HEALTH, Health
from serving.lane import Lane, Lanes
from serving.loop import Loop
from serving.metrics import serve_metrics
from serving.model_admin import ModelAdmin
from serving.models import Models, load_all
from serving.oip import infer_service
from serving.oip.admin_service import OpenInferenceAdmin, open_inference_methods
from serving.oip.described import described_files
from serving.oip.desk import Desk
from serving.one_thread import OneThread
from serving.port import cannot_listen
from serving.reflection import add_reflection
from serving.repository import Artifact, check_proof, find_artifacts
from serving.stats import ServerStats
from serving.status import code_of, trailing
from serving.streams import slab_rows
from serving.unary import REQUEST_SECONDS, Method, UnaryWire
from serving.wire import SERVER_OPTIONS, Wire
from serving.worker_control import Control, WorkerControl

VERSION = "0.1.0"
STALLED_SECONDS = 20.0  # a turn that takes longer counts as a server that doesn't work
_PUBLIC_THREADS = 16  # for reflection, all that is left to the public server; started when needed
_SILENT_SECONDS = 60.0  # for a call to send its first message, if nobody can have a reason to send none
_MOST_SILENT_ADMIN = 1024  # admin calls that have sent nothing, and of one connection
_MOST_SILENT_ADMIN_OF_ONE = 128
_LARGE_METADATA = 1 << 20  # gRPC's own limit, at which it refuses what ours let through
_LAST_WORDS_SECONDS = 2.0  # for statuses to reach their clients at the very end

_GPU_PRECISIONS = frozenset({"tf32", "fp16"})  # what a CPU computes in float32

log = structlog.get_logger(__name__)


class Server:
    """A server for everything under one model repository."""

    def __init__(
        self,
        config: ServerConfig,
        *,
        clock: Callable[[], float] = time.monotonic,
        workers: WorkerControl | None = None,
    ) -> None:
        """Bind the port, then load, check and warm up every model. Raises ConfigError.

        `workers` stands for all workers, where this is one of several: orders go to all of them.
        """
        self._config = config
        self._clock = clock
        self._workers = workers
        artifacts = find_artifacts(config.model_repository)
        stats = ServerStats()
        self._server = grpc.server(
            ThreadPoolExecutor(_PUBLIC_THREADS, "public"),
            interceptors=[MetadataLimit(stats, config.limits.max_metadata_bytes)],
            options=_options(config),
        )
        self.address = "" if config.share_port else _bind(self._server, config.listen)  # a port that is taken: at once
        thread = OneThread("loop")  # a GPU's engine is run by the thread that made it
        self.lanes = Lanes()
        like = None if workers is None else workers.serves
        thread.call(lambda: load_all(artifacts, self.lanes, self._load, like=like))
        self.front = Front(self.lanes, config.limits, stats, clock)
        self.health = Health(self.lanes)
        add_reflection(self._server, (SERVICE, HEALTH), described_files())
        self._gate = self._hot_gate()
        desk = Desk(self.front)
        self._wire = Wire(
            self._server,
            {
                stream_service.METHOD: lambda call: stream_service.StreamCall(self.front, call),
                multiplex_service.METHOD: lambda call: multiplex_service.MultiplexCall(self.front, call),
                infer_service.INFER: lambda call: infer_service.InferCall(desk, call),
                infer_service.STREAM_INFER: lambda call: infer_service.StreamInferCall(desk, call),
            },
            self._gate,
        )
        self.loop = Loop(self._wire, self.lanes, flush=self.front.flush, clock=clock, thread=thread)
        self._unary = self._unary_wire(desk)
        self.health.post = self._unary.post
        self.loop.on_death = self.health.die
        self.loop.on_loss = _exit_at_once  # the system then ends every connection, so that nobody waits
        if config.share_port:  # at the last moment: from now on the kernel gives us connections
            self.address = _bind(self._server, config.listen)
        self.metrics_port: int | None = None
        self._loading = 0  # models, by the loop's own thread

    def start(self) -> None:
        """Begin to answer."""
        if self._config.metrics_listen is not None:
            self.metrics_port = serve_metrics(self.front, self._config.metrics_listen, self.health.state)
        self._server.start()
        self._wire.start()
        self._unary.start()
        self.loop.start()
        self.health.update(working=True)
        if self._workers is not None:
            self._workers.begin(self._models)
        gc.collect()
        gc.freeze()  # what start-up made lives for ever: the collector needn't look at it again
        what = "worker serving" if self._config.share_port else "serving"
        log.info(what, address=self.address, models=self.models, metrics_port=self.metrics_port)

    @property
    def models(self) -> tuple[str, ...]:
        """What is served: NAME/VERSION each."""
        return tuple(f"{lane.name}/{lane.version}" for lane in self.lanes)

    def look(self) -> None:
        """See whether the loop still does its turns, and let health say so. Call every second or so."""
        if self.loop.alive:
            self.health.update(working=self._turning)
            self.loop.post(self._gate.sweep)

    @property
    def works(self) -> bool:
        """Whether what serves still moves, or knows that it doesn't: else another process had better take its place."""
        return (self._turning or not self.loop.alive) and self._clock() - self._unary.beat < STALLED_SECONDS

    @property
    def _turning(self) -> bool:
        return bool(self._loading) or self._clock() - self.loop.beat < STALLED_SECONDS

    def drain(self) -> bool:
        """Leave: refuse new streams, let open ones go on for `grace` seconds, end the rest. True if all went well."""
        config, grace = self._config, self._config.grace
        streams = sum(lane.streams.live for lane in self.lanes)
        log.info("draining", streams=streams, delay_seconds=config.drain_delay, grace_seconds=grace)
        self.health.leave()
        self._do(self._close)
        if self.loop.alive:
            time.sleep(config.drain_delay)
        # The port is closed, and every connection gets GOAWAY: whoever is told to go next finds another server.
        self._server.stop(grace + _LAST_WORDS_SECONDS)
        self._do(lambda: self.front.go_away(grace))
        self._wait_for_calls(grace)
        left = sum(lane.streams.live for lane in self.lanes)
        last_words = ShuttingDown("the server has shut down; use another one")
        code, text = code_of(last_words), str(last_words)
        self._do(lambda: self._wire.finish_all(code, text, trailing(last_words)))
        self._wait_for_calls(_LAST_WORDS_SECONDS)
        self._do(lambda: self._wire.refuse_all(code, text))  # clients that don't read
        self._wait_for_calls(_LAST_WORDS_SECONDS)
        self._unary.finish(code, text, _LAST_WORDS_SECONDS)
        stopped = self._server.stop(0)
        ended = self.loop.stop(_LAST_WORDS_SECONDS)
        self._wire.stop()
        self._unary.stop()
        stopped.wait(_LAST_WORDS_SECONDS)
        log.info("stopped", streams_cut_off=left)
        return self.loop.alive and ended

    def _hot_gate(self) -> Gate:
        limits, seconds = (
            self._config.limits,
            dict.fromkeys((stream_service.METHOD, infer_service.INFER), _SILENT_SECONDS),
        )
        gate = Gate(
            self.front.stats,
            metadata_bytes=limits.max_metadata_bytes,
            calls=limits.max_silent_calls,
            calls_of_one=limits.max_silent_calls_per_connection,
            seconds=seconds,
        )
        self.front.stats.gates.append(gate)
        return gate

    def _unary_wire(self, desk: Desk) -> UnaryWire:
        stats = self.front.stats
        methods = self._admin_methods(desk)
        watches = {f"/{HEALTH}/Watch": self.health.watcher}
        gate = Gate(
            stats,
            metadata_bytes=self._config.limits.max_metadata_bytes,
            calls=_MOST_SILENT_ADMIN,
            calls_of_one=_MOST_SILENT_ADMIN_OF_ONE,
            seconds=dict.fromkeys((*methods, *watches), REQUEST_SECONDS),
            evicts=True,
        )
        stats.gates.append(gate)
        return UnaryWire(self._server, methods, watches, stats, gate)

    def _admin_methods(self, desk: Desk) -> dict[str, Method]:
        config = self._config
        models = self._models = Models(
            config.model_repository,
            self.lanes,
            load=self._load if config.device == "cpu" else self._load_on_loop,
            post=self.loop.post,
            allowed=config.model_control,
        )

        def changed() -> None:
            desk.forget()
            self.health.changed()

        models.on_add, models.on_change = self.health.watch, changed
        control: Control = models if self._workers is None else self._workers
        self.control = control
        admin = OpenInferenceAdmin(
            self.front, models, control, name=config.server_name, version=VERSION, working=lambda: self.health.working
        )
        return {
            **admin_methods(self.front, ModelAdmin(models, control), self.loop.post),
            **open_inference_methods(admin),
            f"/{HEALTH}/Check": Method(self.health.check, health_pb2.HealthCheckRequest),
        }

    def _close(self) -> None:
        self._models.close()
        for lane in self.lanes:
            lane.streams.close()

    def _do(self, work: Callable[[], None]) -> None:
        """Have the loop do `work`, and wait for it, if it still does its turns."""
        if self.loop.alive:
            with contextlib.suppress(Unavailable):
                on_loop(self.loop.post, work, seconds=_LAST_WORDS_SECONDS)

    def _wait_for_calls(self, seconds: float) -> None:
        deadline = self._clock() + seconds
        while self._wire.live and self._clock() < deadline:
            time.sleep(0.01)

    def _load_on_loop(self, artifact: Artifact, files: GraphFiles) -> Lane:
        """Load by the thread that will run it, as a GPU's engine wants; streams wait meanwhile."""
        self._loading += 1
        try:
            return on_loop(self.loop.post, lambda: self._load(artifact, files))
        finally:
            self._loading -= 1

    def _load(self, artifact: Artifact, files: GraphFiles) -> Lane:
        config = self._config
        started = self._clock()
        engine = Engine(
            files,
            rows=slab_rows(config.limits, config.batching),
            max_batch=config.batching.max_batch,
            slice_steps=config.batching.slice_steps,
            max_run_steps=config.batching.max_run_steps,
            threads=config.threads,
            device=config.device,
        )
        problem = check_proof(artifact, engine.contract, files, allow_unproved=config.allow_unproved)
        if problem is not None:
            log.warning("serving unproved", problem=problem)
        if engine.device == "cpu" and engine.contract.precision in _GPU_PRECISIONS:
            log.warning(
                "a model for GPUs runs on the CPU: right, and no faster than in fp32",
                model=artifact.name,
                version=artifact.version,
                precision=engine.contract.precision,
            )
        lane = Lane(
            artifact.name,
            artifact.version,
            engine,
            limits=config.limits,
            batching=config.batching,
            sequencing=config.sequencing,
            clock=self._clock,
            identity=files.identity,
        )
        lane.warm_up()
        log.info(
            "model loaded",
            model=lane.name,
            version=lane.version,
            precision=engine.contract.precision,
            device=engine.device,
            cuda_graphs=engine.graphed,
            seconds=round(self._clock() - started, 3),
        )
        return lane


def _exit_at_once() -> None:
    log_output.flush(_LAST_WORDS_SECONDS)
    os._exit(1)


def _options(config: ServerConfig) -> list[tuple[str, Any]]:
    return [
        *SERVER_OPTIONS,
        # Unless we are workers, a second server on the port is a mistake, not a way to share it.
        ("grpc.so_reuseport", int(config.share_port)),
        ("grpc.max_receive_message_length", 2 * config.limits.max_message_bytes),
        ("grpc.max_send_message_length", -1),
        # A client that vanished without a word is found within 30 s: 20 s of silence, and 10 s for a probe's answer.
        ("grpc.keepalive_time_ms", 20_000),
        ("grpc.keepalive_timeout_ms", 10_000),
        ("grpc.http2.ping_timeout_ms", 10_000),  # this one counts; the one above is TCP_USER_TIMEOUT
        # Between these two gRPC refuses by chance; alike, and far beyond our own limit, they leave it to us.
        ("grpc.max_metadata_size", max(_LARGE_METADATA, 4 * config.limits.max_metadata_bytes)),
        ("grpc.absolute_max_metadata_size", max(_LARGE_METADATA, 4 * config.limits.max_metadata_bytes)),
        ("grpc.keepalive_permit_without_calls", 1),
        # A client may probe once a second; one that does it more often is turned away with too_many_pings.
        ("grpc.http2.min_ping_interval_without_data_ms", 500),
    ]


def _bind(server: grpc.Server, address: str) -> str:
    host, asked = host_and_port(address)
    try:
        port = server.add_insecure_port(f"{host}:{asked}")
    except RuntimeError as error:
        raise cannot_listen(address) from error
    if asked not in (0, port):
        raise ConfigError(f"can't listen on {address!r}: port {port} was bound instead")
    return f"{host}:{port}"
