"""What several folders of tests need: small proved artifacts, made once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serving.config import CUDA_ENVIRONMENT, WIRE_ENVIRONMENT

os.environ.update(WIRE_ENVIRONMENT | CUDA_ENVIRONMENT)  # as a server's own process has it, before gRPC is imported


@pytest.fixture(scope="session")
def artifacts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model repository: vectors/1, vectors/2, tokens/1 and wide/1, exported and proved like anybody's."""
    import torch  # noqa: PLC0415  most tests need none of this

    from export.pipeline import export  # noqa: PLC0415
    from model.checkpoint import Checkpoint  # noqa: PLC0415
    from model.lstm import LSTM, Spec  # noqa: PLC0415

    root = tmp_path_factory.mktemp("artifacts")
    torch.manual_seed(0)
    torch.set_num_threads(1)  # for models as small as these a second thread only waits
    specs = [
        ("vectors", 1, Spec(input_size=5, hidden_size=7, layers=2, output_size=3)),
        ("vectors", 2, Spec(input_size=5, hidden_size=7, layers=2, output_size=3)),
        ("tokens", 1, Spec(vocabulary=11, encoder_size=4, hidden_size=6, output_size=11)),
        ("wide", 1, Spec(input_size=5, hidden_size=64, output_size=64)),
    ]
    for name, version, spec in specs:
        export(Checkpoint(LSTM(spec), {}), root / name / str(version), name=name)
    return root


@pytest.fixture(autouse=True)
def _quiet_logs(request: pytest.FixtureRequest) -> Iterator[None]:
    """Keep the server's log out of the test report, where pytest shows it on failure only."""
    import logging  # noqa: PLC0415

    import structlog  # noqa: PLC0415

    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
        logger_factory=structlog.PrintLoggerFactory(),
        cache_logger_on_first_use=False,
    )
    yield
    structlog.reset_defaults()


def pytest_collection_modifyitems(items: list[Any]) -> None:
    """Skip what needs a GPU where there is none, with that reason."""
    if shutil.which("nvidia-smi"):
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="needs an NVIDIA GPU, and this machine has none"))
