"""Worker processes side by side.

One worker and several, both running, take turns under the same load from processes of its own: steps per second, the
servers' CPU time per step, and how the kernel spread the connections. Servers and load share this machine's cores, so
steps per second can't grow as the workers do; the cores that the workers got, and what a step costs them, can.
"""

from __future__ import annotations

import argparse
import os
import re
import socket
import statistics
import subprocess
import sys
import time
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.server_process import RunningServer, ServerFailedError, server, workers_of

_TICK = os.sysconf("SC_CLK_TCK")
_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Load:
    """What every round asks for."""

    model: str
    processes: int
    connections: int  # of each process
    streams: int  # of each connection
    steps: int  # in a message
    seconds: float


@dataclass(frozen=True, slots=True)
class Round:
    """What one round gave."""

    steps: int
    seconds: float
    cpu_seconds: float  # of the workers and their supervisor
    spread: tuple[int, ...]  # streams of each worker; one connection has them all on one worker

    @property
    def rate(self) -> float:
        """Steps per second."""
        return self.steps / self.seconds

    @property
    def cores(self) -> float:
        """Cores that the server kept busy."""
        return self.cpu_seconds / self.seconds

    @property
    def micros(self) -> float:
        """Microseconds of the server's CPU time for a step."""
        return self.cpu_seconds / self.steps * 1e6


def cpu_seconds(running: RunningServer) -> float:
    """CPU time of a server's processes so far."""
    pids = [running.process.pid, *workers_of(running.process.pid).values()]
    fields = [Path(f"/proc/{pid}/stat").read_text(encoding="ascii").rpartition(")")[2].split() for pid in pids]
    return sum(int(field[11]) + int(field[12]) for field in fields) / _TICK  # utime, stime


def spread(port: int) -> tuple[int, ...]:
    """Live streams of each worker."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=_SECONDS) as response:
        text = response.read().decode()
    found: dict[str, int] = {}
    for labels, value in re.findall(r"^cellstream_live_streams{(.*)} (\S+)$", text, re.MULTILINE):
        worker = re.search('worker="([^"]*)"', labels)
        key = worker[1] if worker else ""
        found[key] = found.get(key, 0) + int(float(value))
    return tuple(found[key] for key in sorted(found))


def one_round(running: RunningServer, metrics_port: int, load: Load) -> Round:
    """Open everything, then count steps for some seconds."""
    words = [running.address, load.model, load.connections, load.streams, load.steps, load.seconds]
    command = [sys.executable, "-m", "bench.workers_load", *map(str, words)]
    with ExitStack() as stack:
        clients = [
            stack.enter_context(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True))
            for _ in range(load.processes)
        ]
        for client in clients:
            stack.callback(client.kill)
        for client in clients:
            _expect(client, "open")
        where = spread(metrics_port)
        began, before = time.perf_counter(), cpu_seconds(running)
        for client in clients:
            assert client.stdin is not None
            client.stdin.write("\n")
            client.stdin.flush()
        steps = sum(int(_expect(client)) for client in clients)
        seconds, cpu = time.perf_counter() - began, cpu_seconds(running) - before
    return Round(steps, seconds, cpu, where)


def _expect(client: subprocess.Popen[str], text: str | None = None) -> str:
    assert client.stdout is not None
    line = client.stdout.readline().strip()
    if not line or (text is not None and line != text):
        raise ServerFailedError(f"a load process said {line!r} and left")
    return line


def compare(repository: Path, workers: Sequence[int], rounds: int, load: Load) -> dict[int, list[Round]]:
    """Servers with so many workers each, all running, in rounds that take turns. Raises ServerFailedError."""
    results: dict[int, list[Round]] = {count: [] for count in workers}
    with ExitStack() as stack:
        running = {}
        for count in workers:
            port = _free_port()
            options = ["--workers", str(count), "--metrics-listen", f"127.0.0.1:{port}"]
            running[count] = (stack.enter_context(server(repository, options)), port)
        for number in range(rounds):
            for count in workers if number % 2 == 0 else reversed(workers):
                results[count].append(one_round(*running[count], load))
    return results


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def table_of(results: dict[int, list[Round]], load: Load) -> Table:
    """Medians over the rounds, and ratios to the fewest workers, round by round."""
    title = (
        f"{load.model}: {load.processes} load processes with {load.connections} connections of {load.streams} streams, "
    )
    table = Table(title=title + f"{load.steps} steps in a message, {os.cpu_count()} cores", title_justify="left")
    for name in ("workers", "steps/s", "ratio", "worst … best", "server cores", "server µs/step", "streams per worker"):
        table.add_column(name, justify="right")
    base = results[min(results)]
    for count, rounds in results.items():
        ratios = [mine.rate / theirs.rate for mine, theirs in zip(rounds, base, strict=True)]
        table.add_row(
            str(count),
            f"{statistics.median(each.rate for each in rounds):,.0f}",
            f"{statistics.median(ratios):.2f}",
            f"{min(ratios):.2f} … {max(ratios):.2f}",
            f"{statistics.median(each.cores for each in rounds):.2f}",
            f"{statistics.median(each.micros for each in rounds):.2f}",
            ", ".join("/".join(map(str, each.spread)) for each in rounds),
        )
    return table


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.workers", description=__doc__.partition("\n\n")[2])
    add = parser.add_argument
    add("--artifacts", type=Path, default=Path("artifacts"), help="default: %(default)s")
    add("--model", default="bytelm", help="default: %(default)s")
    add("--workers", type=int, nargs="+", default=[1, 2], metavar="N", help="to compare (default: 1 2)")
    add("--rounds", type=int, default=6, help="default: %(default)s")
    add("--processes", type=int, default=1, help="of load (default: %(default)s)")
    add("--connections", type=int, default=32, help="of each load process (default: %(default)s)")
    add("--streams", type=int, default=1, help="of each connection (default: %(default)s)")
    add("--steps", type=int, default=64, help="in a message (default: %(default)s)")
    add("--seconds", type=float, default=3.0, help="of each round (default: %(default)s)")
    arguments = parser.parse_args()
    load = Load(**{name: getattr(arguments, name) for name in Load.__dataclass_fields__})
    try:
        results = compare(arguments.artifacts, arguments.workers, arguments.rounds, load)
    except ServerFailedError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    Console(width=None if sys.stdout.isatty() else 160).print(table_of(results, load))
    return 0


if __name__ == "__main__":
    sys.exit(main())
