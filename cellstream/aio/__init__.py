"""The client for asyncio: the same as `cellstream.connect`, awaited.

async with cellstream.aio.connect("127.0.0.1:50051") as client, client.stream("bytelm") as stream:
    logits = await stream.step(list(b"def "))
"""

from cellstream.aio.client import Client, connect
from cellstream.aio.multiplex import Multiplex
from cellstream.aio.stream import Stream

__all__ = ["Client", "Multiplex", "Stream", "connect"]
