"""The command line: `python -m export CHECKPOINT --name NAME`, `… prove ARTIFACT`, `… wrap` and `… module`.

Owns signals and warnings while the rest is imported, which takes seconds; export.command_line has the words.
"""

from __future__ import annotations

import os
import sys
import warnings

from model import interruption


def main(arguments: list[str] | None = None) -> int:
    """Run the command and give its exit status."""
    from export import command_line  # noqa: PLC0415  imports PyTorch

    return command_line.main(sys.argv[1:] if arguments is None else arguments)


def _run() -> int:
    interruption.while_importing()
    if not sys.warnoptions:
        warnings.simplefilter("ignore")  # of the libraries' own: they name files of theirs, and nothing to do
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    from export import command_line  # noqa: F401, PLC0415  imports PyTorch

    interruption.while_running()
    status = main()
    interruption.afterwards()
    return status


if __name__ == "__main__":
    sys.exit(_run())
