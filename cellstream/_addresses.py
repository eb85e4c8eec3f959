"""What a gRPC target says about where its server is.

Owns the rule that a server on this machine is never asked for through a proxy that the environment names.
"""

from __future__ import annotations

import ipaddress
import os
import re

_PROXIES = ("grpc_proxy", "https_proxy", "http_proxy")  # as gRPC looks for them, in this order
_TARGET = re.compile(r"(?:(?:dns|ipv4|ipv6):(?://[^/]*/)?)?/?(\[[^\]]*\]|[^:]*)(?::\w+)?", re.ASCII)


def proxy_arguments(address: str) -> dict[str, int]:
    """Channel arguments that keep the environment's proxies away from a server on this machine."""
    return {"grpc.enable_http_proxy": 0} if on_loopback(address) else {}


def on_loopback(address: str) -> bool:
    """Whether a gRPC target is this machine: localhost, an address of 127.0.0.0/8, or ::1."""
    host = _host(address)
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return (mapped or found).is_loopback or (mapped or found).is_unspecified


def proxy_hint(address: str) -> str:
    """A clause for an error: which proxy of the environment is between us and the server; empty: none."""
    if on_loopback(address) or address.startswith(("unix:", "unix-abstract:")):
        return ""
    name = next((name for name in _PROXIES if os.environ.get(name)), None)
    if name is None:
        return ""
    host = _host(address) or address
    return f"; the environment's {name} is used for {host}: put {host} into no_proxy to go without it"


def _host(address: str) -> str:
    found = _TARGET.fullmatch(address)
    return found.group(1).strip("[]").partition("%")[0].rstrip(".").lower() if found else ""
