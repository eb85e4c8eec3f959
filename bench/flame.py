"""`python -m bench.flame STACKS --out docs/flame.svg`: a flame graph of the loop's thread, as a still picture.

STACKS are folded stacks (`frame;frame;… count` in each line), as a sampling profiler writes them: for instance
`py-spy record --native --format raw -o STACKS -p PID` while `python -m bench.load` runs. Owns the picture only.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from html import escape
from pathlib import Path

WIDTH, ROW, FONT = 1000, 17, 11
LEAST = 0.004  # of all samples: narrower frames are left out
ROOT = "Loop._turn"
_LIBRARIES = {
    "onnxruntime": "ONNX Runtime",
    "cygrpc": "gRPC",
    "_multiarray_umath": "numpy",
    "_message.abi3": "protobuf",
}
_COLOURS = {"ONNX Runtime": "#74c0fc", "gRPC": "#ffd43b", "numpy": "#b197fc", "protobuf": "#ffa8a8"}
_OURS = "#ff922b"


@dataclass(slots=True)
class Frame:
    """A function within its callers: how many samples it was seen in, and what it called."""

    count: int = 0
    calls: dict[str, Frame] = field(default_factory=dict)

    @property
    def depth(self) -> int:
        """Rows that it takes with what it called."""
        return 1 + max((inner.depth for inner in self.calls.values()), default=0)


def fold(lines: Iterable[str]) -> Frame:
    """The tree under the loop's turn; frames of one library are one. Raises ValueError for other lines."""
    root = Frame()
    for line in lines:
        stack, _, count = line.rpartition(" ")
        names = [_name(frame) for frame in stack.split(";")]
        if ROOT not in names:
            continue
        place = root
        root.count += int(count)
        for name in _without_repeats(names[names.index(ROOT) + 1 :]):
            place = place.calls.setdefault(name, Frame())
            place.count += int(count)
    return root


def _name(frame: str) -> str:
    function, _, where = frame.partition(" (")
    for part, name in _LIBRARIES.items():
        if part in where:
            return name
    return function if where.startswith("serving/") else ""


def _without_repeats(names: list[str]) -> list[str]:
    named = [name for name in names if name]
    return [name for before, name in zip(["", *named], named, strict=False) if name != before]


def picture(root: Frame) -> str:
    """The tree as SVG, callers above."""
    height = root.depth * ROW + 22
    parts: list[str] = []
    _draw(parts, Frame(root.count, {"one turn of the loop": root}), 0.0, 0, root.count)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="system-ui, sans-serif"'
    head += f' font-size="{FONT}">\n<rect width="{WIDTH}" height="{height}" fill="#fff"/>\n'
    return head + "\n".join(parts) + "\n</svg>\n"


def _draw(parts: list[str], frame: Frame, left: float, row: int, total: int) -> None:
    for name, inner in sorted(frame.calls.items(), key=lambda item: -item[1].count):
        width = WIDTH * inner.count / total
        if inner.count < LEAST * total:
            continue
        share = f"{100 * inner.count / total:.1f} %"
        room = int((width - 6) / (FONT * 0.56))
        text = f"{name} {share}" if len(name) + len(share) < room else name if len(name) <= room else ""
        parts.append(
            f'<g><title>{escape(name)}: {share}</title><rect x="{left:.1f}" y="{row * ROW + 2}" width="{width:.1f}"'
            f' height="{ROW - 1}" fill="{_COLOURS.get(name, _OURS)}" stroke="#fff"/>'
            f'<text x="{left + 3:.1f}" y="{row * ROW + 14}">{escape(text)}</text></g>'
        )
        _draw(parts, inner, left, row + 1, total)
        left += width


def main() -> int:
    """The command line; the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.flame", description=re.sub(r"\n+", " ", __doc__ or ""))
    parser.add_argument("stacks", type=Path, metavar="STACKS")
    parser.add_argument("--out", type=Path, default=Path("docs/flame.svg"), metavar="FILE.svg", help="%(default)s")
    options = parser.parse_args()
    try:
        root = fold(options.stacks.read_text(encoding="utf-8", errors="replace").splitlines())
    except (OSError, ValueError) as error:
        print(f"error: {options.stacks}: {error}", file=sys.stderr)
        return 1
    if not root.count:
        print(f"error: {options.stacks} has no stack with {ROOT}: was a server under load sampled?", file=sys.stderr)
        return 1
    options.out.write_text(picture(root), encoding="utf-8")
    print(f"{root.count} samples; wrote {options.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
