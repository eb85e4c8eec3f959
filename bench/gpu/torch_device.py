"""PyTorch's side of a device: waiting, CUDA graphs, pinned memory, and what its products are computed in.

On the CPU everything is itself, so that a rehearsal runs the same code.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

_WARM_UPS = 3


def usable(device: str) -> bool:
    """Whether this PyTorch can compute there."""
    return not device.startswith("cuda") or torch.cuda.is_available()


class TorchDevice:
    """One device."""

    def __init__(self, name: str) -> None:
        self.device = torch.device(name)
        self.cuda = self.device.type == "cuda"

    def wait(self) -> None:
        """Until everything asked of the device has ended."""
        if self.cuda:
            torch.cuda.synchronize(self.device)

    def set_precision(self, precision: str) -> torch.dtype:
        """Compute products so from now on; returns the dtype that weights should have."""
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        torch.backends.cudnn.allow_tf32 = precision == "tf32"
        return torch.float16 if precision == "fp16" else torch.float32

    def graph(self, work: Callable[[], object]) -> Callable[[], object]:
        """`work` captured into a CUDA graph; the result replays it, and doesn't wait."""
        if not self.cuda:
            return work
        torch.cuda.set_device(self.device)  # captures are of the current one
        aside: torch.cuda.Stream = torch.cuda.Stream(self.device)  # type: ignore[no-untyped-call]
        aside.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(aside):
            for _ in range(_WARM_UPS):
                work()
        torch.cuda.current_stream(self.device).wait_stream(aside)
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, capture_error_mode="thread_local"):
            work()

        def replay(_held: object = work) -> None:  # a graph knows where its memory lies, and doesn't hold it
            captured.replay()

        return replay

    def on_host(self, *shape: int, pinned: bool = True) -> Tensor:
        """Float32 in host memory, pinned where there is a GPU to pin it for."""
        return torch.empty(*shape, pin_memory=pinned and self.cuda)

    def on_device(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Normal random numbers: zeros would cost a GPU less power, and so less time."""
        return torch.randn(*shape, device=self.device).to(dtype)

    @property
    def cache_bytes(self) -> int:
        """Of the last cache before the device's memory; 0: unknown."""
        return int(torch.cuda.get_device_properties(self.device).L2_cache_size) if self.cuda else 0

    def give_back(self) -> None:
        """Memory that PyTorch keeps for itself, for others on the device."""
        if self.cuda:
            torch.cuda.empty_cache()

    def healthy(self) -> bool:
        """Whether the device still computes: after some errors a process can't use it any more."""
        try:
            return float((torch.ones(1, device=self.device) + 1).item()) == 2.0
        except (RuntimeError, AssertionError):  # the latter where PyTorch has no CUDA at all
            return False
