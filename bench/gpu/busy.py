"""The share of time in which the GPU computed, as nvidia-smi tells it several times a second."""

from __future__ import annotations

import shutil
import statistics
import subprocess
from types import TracebackType
from typing import Self

_EVERY_MS = 100
_SECONDS = 10.0


class Busy:
    """Asks while its block runs; afterwards either `share` (in percent) is known, or `unknown` says why not."""

    def __init__(self, device: str) -> None:
        self.share: float | None = None
        self.unknown = ""
        self._number = device.partition(":")[2] or "0"
        self._process: subprocess.Popen[str] | None = None
        if not device.startswith("cuda"):
            self.unknown = "the server computed on the CPU"
        elif shutil.which("nvidia-smi") is None:
            self.unknown = "there is no nvidia-smi to ask"

    def __enter__(self) -> Self:
        if not self.unknown:
            self._process = subprocess.Popen(
                [
                    "nvidia-smi",
                    f"--id={self._number}",
                    "--query-gpu=utilization.gpu",
                    "--format=csv,noheader,nounits",
                    f"--loop-ms={_EVERY_MS}",
                ],
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is None:
            return
        self._process.terminate()
        try:
            said, _ = self._process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            self._process.kill()
            said, _ = self._process.communicate()
        self._read(said)

    def _read(self, said: str) -> None:
        lines = [line.strip() for line in said.splitlines() if line.strip()]
        found = [float(line) for line in lines if line.replace(".", "", 1).isdigit()]
        if found:
            self.share = statistics.fmean(found)
        else:
            self.unknown = f"nvidia-smi doesn't tell it here ({lines[0] if lines else 'it said nothing'})"
