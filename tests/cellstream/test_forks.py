"""A process with open streams forks: the child is told at once, and the parent goes on."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cellstream.fake_server import FakeServer

# Every line is done by a child of its own, with a stream, a multiplexed call and a run of the parent's open.
IN_CHILD = {
    "step": "stream.step(1)",
    "chunk": "stream.step([1, 2], timeout=3)",
    "run": "next(stream.run([1]))",
    "go on with a run": "next(run)",
    "open": "client.stream('sum', retry=cellstream.Retry(total=60))",
    "multiplex": "client.multiplex('sum')",
    "models": "client.models()",
    "a multiplexed step": "many.step({1: 1})",
    "a multiplexed open": "many.open(2)",
}
CODE = """
import os, sys, threading, time, gc
import cellstream
client = cellstream.connect(sys.argv[1])
stream = client.stream("sum"); assert stream.step(1) == 1
many = client.multiplex("sum"); many.open(1); many.step({1: 1})
run = client.stream("sum").run(iter([1, 2, 3])); next(run)

def in_child(work):
    sys.stdout.flush()
    pid = os.fork()
    if pid == 0:
        work()
        return True
    until = time.monotonic() + 30
    while not os.waitpid(pid, os.WNOHANG)[0]:
        if time.monotonic() > until:
            os.kill(pid, 9); os.waitpid(pid, 0)
            print("hangs", flush=True)
            return False
        threading.Event().wait(0.005)
    return False
"""


def _run(server: FakeServer, code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", CODE + code, server.address], capture_output=True, text=True, check=False, timeout=100
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    return done.stdout.splitlines()


def test_what_a_fork_inherits_raises_at_once(server: FakeServer) -> None:
    """Whatever the child does with the parent's objects raises StreamClosed; the parent's streams go on."""
    code = f"""
def attempt(line):
    try:
        exec(line, globals())
    except cellstream.StreamClosed as error:
        print(error.reason, flush=True)
    os._exit(0)
for line in {list(IN_CHILD.values())!r}:
    in_child(lambda: attempt(line))
assert stream.step(1, timeout=20) == 2
assert many.step({{1: 1}}, timeout=20)[1] == 2
assert next(run) == 3
stream.close(); many.close(); client.close()
print("went on")
"""
    assert _run(server, code) == ["forked"] * len(IN_CHILD) + ["went on"]


@pytest.mark.parametrize(
    "work",
    [
        "stream.close(); stream.cancel(); many.close(); client.close()",
        "globals().pop('stream'); globals().pop('run'); globals().pop('client'); gc.collect()",
        "sys.exit(0)",
    ],
)
def test_a_fork_may_leave(server: FakeServer, work: str) -> None:
    """Closing, dropping and exiting are quick in the child, and do nothing to the parent's connection."""
    code = f"""
def leave():
    {work}
if not in_child(leave):
    assert stream.step(1, timeout=20) == 2
    stream.close(); many.close(); client.close()
    print("went on")
"""
    assert _run(server, code) == ["went on"]


def test_a_fork_may_connect(server: FakeServer) -> None:
    """A client that the child makes works, and so does the parent's beside it."""
    code = """
def work():
    with cellstream.connect(sys.argv[1]) as own, own.stream("sum") as mine:
        print(mine.step(5, timeout=20), flush=True)
    os._exit(0)
in_child(work)
assert stream.step(1, timeout=20) == 2
stream.close(); many.close(); client.close()
"""
    assert _run(server, code) == ["5"]


def test_a_fork_from_a_busy_client(server: FakeServer) -> None:
    """Forked while other threads step: whichever lock they held, the child is told."""
    code = """
stop = False
def step():
    with client.stream("sum") as busy:
        while not stop:
            busy.step(1)
threads = [threading.Thread(target=step) for _ in range(3)]
[thread.start() for thread in threads]
def attempt():
    try:
        stream.step(1)
    except cellstream.StreamClosed as error:
        print(error.reason, flush=True)
    os._exit(0)
for _ in range(10):
    in_child(attempt)
stop = True
[thread.join() for thread in threads]
stream.close(); many.close(); client.close()
"""
    assert _run(server, code) == ["forked"] * 10


def test_asyncio_in_a_fork(server: FakeServer) -> None:
    """The same for asyncio's streams."""
    code = """
import asyncio
async def main():
    async with cellstream.aio.connect(sys.argv[1]) as client, client.stream("sum") as stream:
        await stream.step(1)
        pid = os.fork()
        if pid == 0:
            for ask in (lambda: stream.step(1), lambda: client.stream("sum").__aenter__(), client.models):
                try:
                    ask().send(None)
                except cellstream.StreamClosed as error:
                    print(error.reason, flush=True)
            os._exit(0)
        os.waitpid(pid, 0)
        assert await stream.step(1) == 2
asyncio.run(main())
stream.close(); many.close(); client.close()
"""
    assert _run(server, code) == ["forked"] * 3
