"""The limits on calls before their first message."""

from __future__ import annotations

from typing import Any

import grpc
import pytest

from serving.errors import MetadataTooLarge
from serving.gate import Gate, check_metadata
from serving.stats import ServerStats


class SilentCall:
    """A call that has sent nothing."""

    def __init__(self, peer: str = "ipv4:127.0.0.1:1", method: str = "/a", metadata: Any = ()) -> None:
        self.peer = peer
        self.method = method
        self.metadata = metadata
        self.status: Any = None

    @property
    def ended(self) -> bool:
        """Whether it has a status."""
        return self.status is not None

    def finish(self, *status: Any) -> None:
        """Note the status."""
        self.status = status


def gate(now: list[float], *, evicts: bool = False, **limits: int) -> tuple[Any, ServerStats]:
    """One that waits 10 s for the messages of method /a, and its counts."""
    stats = ServerStats()
    chosen = {"metadata_bytes": 100, "calls": 4, "calls_of_one": 3, **limits}
    return Gate(stats, seconds={"/a": 10.0}, evicts=evicts, clock=lambda: now[0], **chosen), stats


def test_metadata_is_counted_as_http2_counts_it() -> None:
    """Names, values and 32 for each field, be they text or bytes; the refusal names size, limit and option."""
    check_metadata((("key", "x" * 33), ("k-bin", b"y" * 15)), 120)
    with pytest.raises(MetadataTooLarge, match=r"has 121 bytes, .* the limit is 120 bytes .*--max-metadata-bytes"):
        check_metadata((("key", "x" * 34), ("k-bin", b"y" * 15)), 120)


def test_a_refused_call_takes_no_place() -> None:
    """Too much metadata: the status, its reason, and a count of it."""
    made, stats = gate([0.0])
    code, text, metadata = made.admit(SilentCall(metadata=(("key", "x" * 100),)))
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "has 135 bytes" in text
    assert metadata == (("cellstream-reason", "metadata_too_large"),)
    assert stats.refusals == {"metadata_too_large": 1}
    assert len(made) == 0


def test_calls_of_one_connection_and_of_all() -> None:
    """Each limit is named; who speaks, or ends, makes room."""
    made, stats = gate([0.0])
    mine = [SilentCall() for _ in range(3)]
    assert [made.admit(call) for call in mine] == [None, None, None]
    assert made.admit(SilentCall())[1] == "3 calls of this connection have sent nothing; the limit is 3"
    assert made.admit(SilentCall("ipv4:127.0.0.1:2")) is None
    assert made.admit(SilentCall("ipv4:127.0.0.1:3"))[1] == "4 calls that have sent nothing are open; the limit is 4"
    assert stats.refusals == {"calls_limit": 2}
    for _ in range(2):
        made.heard(mine[0])
    assert len(made) == 3
    assert made.admit(SilentCall()) is None
    assert made.admit(SilentCall()) is not None


def test_the_oldest_makes_room_where_newer_calls_must_get_in() -> None:
    """Whoever stalls calls can't keep another connection's out."""
    made, _ = gate([0.0], evicts=True)
    calls = [SilentCall(f"ipv4:127.0.0.1:{port}") for port in range(5)]
    assert [made.admit(call) for call in calls] == [None] * 5
    assert [call.ended for call in calls] == [True, False, False, False, False]
    assert calls[0].status[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_silence_has_an_end_where_the_method_says_so() -> None:
    """After its seconds a call is ended with a word; methods without a limit stay; so does what has spoken."""
    now = [0.0]
    made, stats = gate(now)
    silent, patient, spoken = SilentCall(), SilentCall(method="/b"), SilentCall()
    for call in (silent, patient, spoken):
        made.admit(call)
    made.heard(spoken)
    now[0] = 9.9
    made.sweep()
    assert not silent.ended
    now[0] = 10.0
    made.sweep()
    code, text, metadata = silent.status
    assert (code, metadata) == (grpc.StatusCode.DEADLINE_EXCEEDED, (("cellstream-reason", "nothing_sent"),))
    assert text == "the call has sent no message for 10 s; that is the limit"
    assert (patient.status, spoken.status, len(made)) == (None, None, 1)
    assert stats.refusals == {"nothing_sent": 1}
