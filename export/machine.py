"""The machine that a proof was made on, the day and the versions, in words."""

from __future__ import annotations

import datetime as dt
import os
import platform
from pathlib import Path
from types import ModuleType
from typing import Any


def provenance(*libraries: ModuleType) -> dict[str, Any]:
    """What every certificate says of how it came about: its fields `created`, `machine` and `versions`."""
    return {
        "created": dt.datetime.now(dt.UTC).date().isoformat(),
        "machine": describe(),
        "versions": {"python": platform.python_version()}
        | {library.__name__: str(library.__version__) for library in libraries},
    }


def describe() -> str:
    """System, architecture, processor and cores."""
    return f"{platform.system()} {platform.machine()}, {_processor()}, {os.cpu_count()} cores"


def _processor() -> str:
    """The processor's name, as far as the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"
