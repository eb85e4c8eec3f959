"""The options of wrapping: what doesn't read, or can't be, is refused by the option's name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from export.theirs import WrapError
from export.wrap_command import asked_of, parser


@pytest.mark.parametrize("option", ["--initial=h=nan", "--initial=h=1,inf", "--start=s=nan:1", "--initial=h=FILE"])
def test_what_a_stream_begins_with_is_finite(option: str, tmp_path: Path) -> None:
    """NaN and infinity are refused, in an option as in a file: the server takes no such state."""
    np.save(tmp_path / "h.npy", np.array([0.0, np.nan]))
    option = option.replace("FILE", str(tmp_path / "h.npy"))
    with pytest.raises(WrapError, match=f"{option.split('=')[0]} .*must be finite"):
        asked_of(parser().parse_args(["x.onnx", "--name", "a", option]))
