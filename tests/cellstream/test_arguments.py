"""What the operator's command lines say to numbers that are none, or that the protocol can't hold."""

from __future__ import annotations

import pytest

from cellstream import sequences
from cellstream.models import __main__ as models

BIG = "9" * 20


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"load m --version {BIG}", f"--version: {BIG} is too large; the largest is 9223372036854775807"),
        ("load m --version -1", "--version: -1 is below 0"),
        ("load m --version x", "--version: 'x' isn't a whole number"),
        ("--timeout nan list", "--timeout: nan isn't a number of seconds from 0 on"),
        ("--timeout -1 list", "--timeout: -1 isn't a number of seconds from 0 on"),
    ],
)
def test_models(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The option and the value are named, before a server is asked."""
    with pytest.raises(SystemExit, match="2"):
        models.main(line.split())
    assert told in capsys.readouterr().err


@pytest.mark.parametrize(
    ("line", "told"),
    [
        (f"evict m --id {BIG}", f"--id: {BIG} is too large"),
        (f"list m --limit {BIG}", f"--limit: {BIG} is too large"),
        ("list m --limit -1", "--limit: -1 is below 0"),
        ("evict m --idle nan", "--idle: nan isn't a number of seconds from 0 on"),
        ("list m --idle soon", "--idle: 'soon' isn't a number of seconds"),
    ],
)
def test_sequences(line: str, told: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The same for sequences."""
    with pytest.raises(SystemExit, match="2"):
        sequences.main(line.split())
    assert told in capsys.readouterr().err
