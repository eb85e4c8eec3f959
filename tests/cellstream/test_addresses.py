"""A server on this machine is reached without the proxies that the environment names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

import cellstream
from cellstream._addresses import on_loopback, proxy_hint
from tests.cellstream.fake_server import FakeServer


@pytest.mark.parametrize(
    ("address", "here"),
    [
        ("127.0.0.1:50051", True),
        ("localhost:50051", True),
        ("LOCALHOST:50051", True),
        ("localhost", True),
        ("127.1.2.3:80", True),
        ("[::1]:50051", True),
        ("dns:///localhost:50051", True),
        ("dns:127.0.0.1:50051", True),
        ("dns://8.8.8.8/localhost:50051", True),
        ("ipv4:127.0.0.1:50051", True),
        ("ipv6:[::1]:50051", True),
        ("[::ffff:127.0.0.1]:50051", True),
        ("example.com:50051", False),
        ("localhost.example.com:50051", False),
        ("10.0.0.1:50051", False),
        ("127.0.0.1.example.com:50051", False),
        ("unix:/run/cellstream", False),
        ("", False),
    ],
)
def test_which_addresses_are_this_machine(address: str, here: bool) -> None:
    """Names and numbers of loopback, in every spelling that gRPC takes."""
    assert on_loopback(address) == here
    assert ("grpc.enable_http_proxy", 0) in cellstream.Channel().arguments(address) or not here


@pytest.mark.parametrize("name", ["http_proxy", "grpc_proxy", "https_proxy"])
def test_a_proxy_in_the_environment_is_not_asked_for_loopback(server: FakeServer, name: str) -> None:
    """README's first example works where a proxy is set, for threads, asyncio and the command lines."""
    code = f"""
import asyncio, cellstream
with cellstream.connect("{server.address}") as client, client.stream("sum", timeout=20) as stream:
    print(stream.step(1))
async def main():
    async with cellstream.aio.connect("{server.address}") as client, client.stream("sum", timeout=20) as stream:
        print(await stream.step(1))
asyncio.run(main())
"""
    environment = {**os.environ, name: "http://127.0.0.1:9", "no_proxy": "", "no_grpc_proxy": ""}
    run = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False, timeout=60
    )
    assert run.stdout.split() == ["1", "1"], run.stderr


def test_a_proxy_is_named_where_it_may_be_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """An unreachable server elsewhere: the error says that a proxy is used, and not its address with a password."""
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    quick = cellstream.Retry(attempts=1, total=20)
    with cellstream.connect("server.invalid:50051", retry=quick) as client:
        for ask in (lambda: client.stream("m"), client.models):
            with pytest.raises(
                cellstream.Unavailable, match=r"http_proxy is used for server\.invalid.*no_proxy"
            ) as caught:
                ask()
            assert "secret" not in str(caught.value)
    assert proxy_hint("127.0.0.1:50051") == proxy_hint("unix:/run/x") == ""
    monkeypatch.delenv("http_proxy")
    assert proxy_hint("server.invalid:50051") == ""
