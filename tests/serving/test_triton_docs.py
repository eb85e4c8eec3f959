"""The examples of docs/triton.md are run as they stand, but for the address."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from serving.server import Server

PAGE = Path(__file__).parents[2] / "docs" / "triton.md"
EXAMPLES = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)


def test_there_are_examples() -> None:
    """Otherwise the test below would test nothing."""
    assert len(EXAMPLES) >= 2


@pytest.mark.parametrize("text", EXAMPLES, ids=lambda text: str(EXAMPLES.index(text)))
def test_an_example_runs(triton: Server, text: str) -> None:
    """Each says by its own asserts what it shows."""
    assert "127.0.0.1:50051" in text
    names: dict[str, object] = {}
    exec(compile(text.replace("127.0.0.1:50051", triton.address), str(PAGE), "exec"), names)
    names["client"].close()  # type: ignore[attr-defined]
