"""What a user's own code raised, told in one line: its message, and its place in their file.

Owns which frame of a traceback is the user's.
"""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterable
from pathlib import Path

import torch

_OURS = Path(__file__).parent.parent
_NOT_THEIRS = (
    str(Path(torch.__file__).parent),
    sysconfig.get_path("stdlib"),
    str(_OURS / "export"),
    str(_OURS / "model"),
    "<",
)
_PACKAGES = sysconfig.get_path("purelib")
_LONGEST = 600


def told(error: BaseException) -> str:
    """An error's kind and message in one line, with the place in the user's code that it came from."""
    text = " ".join(str(error).split())
    if len(text) > _LONGEST:
        text = " ".join(str(error).strip().splitlines()[0].split())[:_LONGEST]
    where = place(traceback.extract_tb(error.__traceback__))
    kind = type(error).__name__
    return f"{kind}{': ' * bool(text)}{text}" + f" ({where})" * bool(where)


def place(frames: Iterable[traceback.FrameSummary]) -> str:
    """The innermost frame of a user's own code, as `net.py line 12`; empty where there is none."""
    known = [frame for frame in frames if not frame.filename.startswith(_NOT_THEIRS) or _in_packages(frame.filename)]
    theirs = [frame for frame in known if not frame.filename.startswith(_PACKAGES)]
    others = [frame for frame in known if not frame.filename.startswith(_NOT_THEIRS[0])]
    frame = next(iter(reversed(theirs or others)), None)
    return "" if frame is None else f"{Path(frame.filename).name} line {frame.lineno}"


def _in_packages(filename: str) -> bool:
    return filename.startswith(_PACKAGES) and not filename.startswith(_NOT_THEIRS[0])
