"""Ctrl-C at any moment: the client can be used afterwards."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.cellstream.fake_server import FakeServer

CODE = """
import gc, itertools, os, signal, sys, threading, time
import cellstream
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
client = cellstream.connect(sys.argv[1])
done, caught = [], []

def kick():
    for _ in range(50):
        time.sleep(0.012)
        os.kill(os.getpid(), signal.SIGINT)
    done.append(True)

def drive():
    while not done:
        try:
            work(client)
        except cellstream.CellstreamError as error:
            assert isinstance(error, cellstream.StreamClosed), repr(error)

threading.Thread(target=kick, daemon=True).start()
while not done:
    try:
        drive()
    except KeyboardInterrupt:
        caught.append(1)
signal.signal(signal.SIGINT, signal.SIG_IGN)
with client.stream("sum") as stream:
    assert stream.step(1, timeout=10) == 1
with client.multiplex("sum") as many:
    many.open(1)
    assert many.step({1: 1}, timeout=10)[1] == 1
assert client.models(timeout=10)
globals().pop("streams", None)
gc.collect()
client._worker.flush(10)
assert not [link for link in client._live if not link._core.ended]
client.close()
print("works on", len(caught) > 10)
"""
WORK = {
    "opening and closing": """
def work(client):
    with client.stream("sum") as stream:
        assert stream.step(1, timeout=10) == 1
""",
    "stepping": """
streams = []
def work(client):
    if not streams or streams[0].error is not None:
        streams[:] = [client.stream("sum")]
    streams[0].step(1, timeout=10)
""",
    "running": """
def work(client):
    with client.stream("sum") as stream:
        for _ in itertools.islice(stream.run(itertools.repeat(1)), 50):
            pass
""",
    "multiplexing": """
def work(client):
    with client.multiplex("sum") as many:
        many.open(1, 2)
        assert many.step({1: 1, 2: 2}, timeout=10) == {1: 1, 2: 2}
        many.finish(1)
        client.models()
""",
}


@pytest.mark.parametrize("kind", WORK)
def test_an_interrupt_leaves_nothing_locked(server: FakeServer, kind: str) -> None:
    """Dozens of interrupts while a client does all it can: it goes on to work, and no stream is left open."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore::ResourceWarning", "-c", WORK[kind] + CODE, server.address],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.strip() == "works on True", done.stderr
