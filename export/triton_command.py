"""The command line of `python -m export triton ARTIFACT`: Triton's configuration written anew. Owns words."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from export import triton

TRITON = "triton"


def parser() -> argparse.ArgumentParser:
    """The one argument, with a help that teaches."""
    made = argparse.ArgumentParser(
        prog="python -m export triton",
        description="Write config.pbtxt (and initial_state/, where a stream doesn't begin from zero) for artifacts that"
        " have none: those of older exports, or whose file was removed. Every export does the same. One that was edited"
        " by hand stays as it is. Triton can't serve every model; where it can't, the reason is told.",
        epilog="examples:\n"
        "  python -m export triton artifacts/bytelm\n"
        "  tritonserver --model-repository=$PWD/artifacts\n\n"
        "docs/triton.md has the rest.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("folder", type=Path, metavar="ARTIFACT", help="artifacts/NAME, with all its versions")
    return made


def run(arguments: list[str], console: Console) -> None:
    """Write it and say so; raises TritonError where Triton can't serve the newest version."""
    options = parser().parse_args(arguments)
    console.print(triton.write(options.folder), markup=False)
