"""The reservation of a port: who may still listen there, and who may not."""

from __future__ import annotations

import socket
from contextlib import closing

import pytest

from serving.errors import ConfigError
from serving.port import Reservation


def worker(host: str, port: int) -> socket.socket:
    """A listener that shares its port."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
    listener.bind((host, port))
    listener.listen()
    return listener


def port_of(reserved: Reservation) -> int:
    """The port behind the last colon."""
    return int(reserved.address.rpartition(":")[2])


def free_port() -> int:
    """A port that nobody has."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@pytest.mark.parametrize("chosen", [True, False], ids=["port 0", "a port"])
@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "localhost"])
def test_a_reserved_port_is_for_workers_only(host: str, chosen: bool) -> None:
    """Before and while workers listen, nobody else can reserve the port or listen on it, and they can."""
    with Reservation(f"{host}:{0 if chosen else free_port()}") as reserved:
        port = port_of(reserved)
        for _ in range(2):
            with pytest.raises(ConfigError, match=f"can't listen on '{host}:{port}'; is another server there"):
                Reservation(f"{host}:{port}")
            with pytest.raises(OSError, match="in use"):  # it asks for SO_REUSEADDR, as servers do
                socket.create_server(("127.0.0.1", port))
            with pytest.raises(ConfigError):
                Reservation(f"127.0.0.1:{port}")
            first, second = worker("127.0.0.1", port), worker("127.0.0.1", port)
            with closing(first), closing(second), pytest.raises(ConfigError):
                Reservation(f"127.0.0.1:{port}")
    Reservation(f"{host}:{port}").close()


def test_nobody_connects_to_a_reservation() -> None:
    """Until a worker listens, clients are refused at once: none waits in a queue that nobody serves."""
    with Reservation("127.0.0.1:0") as reserved, pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", port_of(reserved)), timeout=5.0)


def test_a_port_where_somebody_listens_is_refused() -> None:
    """Whether that one would share it or not."""
    with socket.create_server(("127.0.0.1", 0)) as taken, pytest.raises(ConfigError, match="is another server there"):
        Reservation(f"127.0.0.1:{taken.getsockname()[1]}")
    port = free_port()
    with closing(worker("127.0.0.1", port)), pytest.raises(ConfigError, match="is another server there"):
        Reservation(f"127.0.0.1:{port}")


def test_connections_of_an_earlier_server_do_not_count() -> None:
    """A restart gets its port although the kernel still remembers connections that the server ended."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        where = server.getsockname()
        with socket.create_connection(where) as client:
            accepted, _ = server.accept()
            accepted.close()  # first: this side keeps the connection in TIME_WAIT
            assert client.recv(1) == b""
    Reservation(f"127.0.0.1:{where[1]}").close()


def test_addresses_that_this_machine_lacks_are_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name that stands for one address that isn't there and one that is can be listened on at the latter."""
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (host, 0)) for host in ("203.0.113.1", "127.0.0.1")]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    with Reservation("localhost:0") as reserved, pytest.raises(OSError, match="in use"):
        socket.create_server(("127.0.0.1", port_of(reserved)))


@pytest.mark.skipif(not socket.has_dualstack_ipv6(), reason="this machine has no IPv6")
def test_ipv6_hosts_stand_in_brackets() -> None:
    """As they do for a single server."""
    with Reservation("[::1]:0") as reserved:
        assert reserved.address == f"[::1]:{port_of(reserved)}"
        with closing(worker("::1", port_of(reserved))), pytest.raises(ConfigError):
            Reservation(reserved.address)


def test_a_host_that_is_not_ours_is_refused() -> None:
    """An address of somebody else's, or a name that means nothing, is said like a port that is taken."""
    with pytest.raises(ConfigError, match=r"can't listen on '203\.0\.113\.1:50051'"):
        Reservation("203.0.113.1:50051")
