"""The command line of wrapping: `python -m export wrap THEIRS.onnx --name NAME …`, its help and its table.

Owns words and the reading of options. Knows no graph.
"""

from __future__ import annotations

import argparse
import math
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from export import artifact, state_notes, wrap
from export.layouts import BATCH, TIME, Layout
from export.one_by_one import BATCHES
from export.pairs import StateQuestionError
from export.report import findings
from export.row_parts import HELP, WHOLE_ROWS, row_parts
from export.starts import noted
from export.theirs import WrapError
from export.triton_theirs import asked_by
from export.understanding import Asked
from model.contract import Contract, StatePair, TensorSpec

WRAP = "wrap"
_AXES = (BATCH, TIME)
FALSE_TRUE = "0:1"  # what a start says if nothing else is told


def parser() -> argparse.ArgumentParser:
    """The options, with a help that teaches."""
    made = argparse.ArgumentParser(
        prog="python -m export wrap",
        description="Turn a stateful ONNX model that somebody else made into an artifact that the server can serve: its"
        " states stay on the server, a client sends one step after the other. States are inferred from what the graph's"
        " nodes do with them, axes and ranges from names, shapes and a trial run; where a choice is left, the refusal"
        " names the option that settles it, with the command line to copy. Nothing is written unless the result gives,"
        " bit for bit, what plain ONNX Runtime calls of the given file give with the states carried by hand.",
        epilog="what can be told:\n"
        "  a state             --state h=h_out           input and its successor among the outputs; all, or none\n"
        "  no state            --input cell_id           an input that only looks like one\n"
        "  a state inside      --connect all             of recurrent nodes (or NODE) that begin anew at every call\n"
        "  what clients get    --output logits           of the outputs, all but the states' by default\n"
        "  a side input        --constant sr=16000       a value, or a .npy file; it never changes\n"
        "  a sequence's start  --start START             an input that says 1 with a stream's first step, and 0 with\n"
        "                                                all others; --start START=-1:1 for -1 instead of 0\n"
        "  a first value       --initial h=h0.npy        of a new stream, where it isn't zero; a value or a .npy file\n"
        "  what axes are       --shape x=batch,time,80   per axis a size, 'batch' or 'time'; a number where a call of\n"
        "                                                several frames is one step: --shape audio=batch,512\n"
        "  values' bounds      --range token=0:255       both inclusive; inferred for an index into a table\n"
        "  how batches run     --batch alone             one stream after the other within a run\n\n"
        "examples:\n"
        "  python -m export wrap gru.onnx --name gru\n"
        "  python -m export wrap vad.onnx --name vad --constant sr=16000 \\\n"
        "      --shape input=batch,512 --shape state=2,batch,128\n"
        "  python -m export wrap theirs.onnx --name theirs --state a=b --state c=d\n"
        "  python -m export wrap lstm/1/model.onnx --name lstm --triton-config lstm/config.pbtxt\n"
        "  python -m export prove artifacts/gru                   # prove it again",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("model", type=Path, metavar="THEIRS.onnx", help="the model, its external data beside it")
    made.add_argument("--name", required=True, help="the model's name: letters, digits, '.', '_' and '-'")
    made.add_argument("--version", type=int, help="its version, from 1 (default: the one after the newest)")
    made.add_argument("--out", type=Path, default=Path("artifacts"), help="the repository (default: %(default)s)")
    for option, form in (
        ("state", "IN=OUT"),
        ("constant", "NAME=VALUE"),
        ("initial", "NAME=VALUE"),
        ("shape", "NAME=AXES"),
        ("range", "NAME=LOW:HIGH"),
    ):
        made.add_argument(f"--{option}", action="append", default=[], metavar=form, help="see below; repeatable")
    made.add_argument("--connect", action="append", default=[], metavar="NODE|all", help="see below; repeatable")
    made.add_argument("--start", action="append", default=[], metavar="NAME[=FALSE:TRUE]", help="see below; repeatable")
    for option in ("input", "output"):
        made.add_argument(f"--{option}", action="append", default=[], metavar="NAME", help="see below; repeatable")
    made.add_argument(
        "--triton-config",
        type=Path,
        metavar="CONFIG.pbtxt",
        help="a Triton model's: its states, first values, outputs and control inputs, where no option says otherwise",
    )
    made.add_argument(
        "--batch",
        type=wrap.Batching,
        choices=list(wrap.Batching),
        default=wrap.Batching.AUTO,
        help="together: all streams of a batch in one go; alone: one after the other, for graphs whose batch is fixed"
        " to 1 or whose last bits depend on it; auto (the default): together where that changes no bit",
    )
    made.add_argument("--row-parts", type=row_parts, default=WHOLE_ROWS, metavar="K|auto", help=HELP)
    return made


def run(arguments: list[str], console: Console, progress: Any) -> None:
    """Wrap as the arguments say, and show what was understood."""
    options = parser().parse_args(arguments)
    final = artifact.target(options.out, options.name, options.version)
    asked = asked_of(options)
    if options.triton_config is not None:
        asked = asked_by(options.triton_config, asked)
    try:
        with progress(console) as shown:
            made = wrap.wrap(
                options.model,
                final,
                name=options.name,
                asked=asked,
                batching=options.batch,
                row_parts=options.row_parts,
                progress=shown,
            )
    except StateQuestionError as question:
        raise WrapError(with_commands(question, arguments)) from question
    show(made, console)
    assert made.contract.certificate is not None
    console.print(findings(made.contract.certificate.invariances, made.contract.certificate.controls))
    console.print(f"wrote {made.folder}, proved by {_counted(made)}")
    console.print(f"next: make serve (or python -m serving --model-repository {options.out})")


def with_commands(question: StateQuestionError, arguments: list[str]) -> str:
    """The question with a whole command line for each answer, made from what was typed."""
    typed = [f"python -m export {WRAP}", shlex.join(arguments)]
    commands = [f"{choice.meaning}: {' '.join([*typed, shlex.join(choice.options)])}" for choice in question.choices]
    return "; ".join([str(question), *commands])


def _counted(made: wrap.Wrapped) -> str:
    """How many comparisons there were, and of which kind."""
    close = sum(record.max_bar > 0 for record in made.records)
    bits = f"{len(made.records)} comparisons, all bit for bit"
    if not close:
        return bits
    return f"{bits} but for {close} within bars, with runs of the given file that round differently"


def show(made: wrap.Wrapped, console: Console) -> None:
    """The table of what was understood, and what was given up."""
    console.print(table(made.contract))
    for remark in made.remarks:
        console.print(f"  {remark}", markup=False)
    console.print(f"  {how_it_runs(made.contract)}", markup=False)


def table(contract: Contract) -> Table:
    """One line for each tensor: what it is, and where its axes are."""
    title = Text(f"{contract.notes.get(wrap.MARK, contract.name)}: what was understood")
    view = Table(title=title, title_justify="left")
    for column in ("", "tensor", "dtype", "one step of one stream", "axes in the graph", ""):
        view.add_column(column)
    for kind, specs in (("input", contract.inputs), ("output", contract.outputs)):
        for spec in specs:
            limits = f"{spec.minimum} … {spec.maximum}" if spec.maximum is not None else ""
            view.add_row(kind, escape(spec.name), spec.dtype, _shape(spec), _axes(spec), limits)
    evidence = state_notes.noted(contract)
    starts = {one.state.input: f"first {one.true.item()}, then {one.false.item()}" for one in noted(contract)}
    for state in contract.states:
        first = starts.get(state.input) or ("from zero" if state.initial is None else "from its own first value")
        names = escape(f"{state.input} → {state.output}")
        says = f"{first}; {escape(evidence[state.input])}" if state.input in evidence else first
        view.add_row("state", names, state.dtype, _shape(state), _axes(state), says)
    for constant in contract.constants:
        value = np.frombuffer(constant.value, constant.dtype)
        view.add_row("constant", escape(constant.name), constant.dtype, "", "", np.array2string(value, threshold=4))
    return view


def asked_of(options: argparse.Namespace) -> Asked:
    """The options as values; raises WrapError for one that doesn't read."""
    return Asked(
        states=pairs("state", options.state),
        inputs=tuple(options.input),
        outputs=tuple(options.output),
        constants={name: _array("constant", value) for name, value in pairs("constant", options.constant).items()},
        initial={name: _finite("initial", name, value) for name, value in pairs("initial", options.initial).items()},
        shapes={name: _layout(name, value) for name, value in pairs("shape", options.shape).items()},
        ranges={name: bounds(name, value) for name, value in pairs("range", options.range).items()},
        starts={name: _start(name, value) for name, value in _started(options.start).items()},
        connect=tuple(options.connect),
    )


def pairs(option: str, given: list[str]) -> dict[str, str]:
    """The values of a repeatable option NAME=VALUE, by name; raises WrapError for one that doesn't read."""
    found: dict[str, str] = {}
    for text in given:
        name, value = _split(option, text)
        if name in found:
            raise WrapError(f"--{option} {name} is given twice")
        found[name] = value
    return found


def _split(option: str, text: str) -> tuple[str, str]:
    name, sign, value = text.partition("=")
    if not (name and sign and value):
        raise WrapError(f"--{option} {text}: it has the form NAME=…")
    return name, value


def _started(given: list[str]) -> dict[str, str]:
    return pairs("start", [text if "=" in text else f"{text}={FALSE_TRUE}" for text in given])


def _start(name: str, text: str) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    """What an input says for false and for true; raises WrapError where it doesn't read."""
    false, _, true = text.partition(":")
    if not (false and true):
        raise WrapError(f"--start {name}={text}: it has the form NAME=FALSE:TRUE")
    return _finite("start", name, false), _finite("start", name, true)


def _array(option: str, text: str) -> npt.NDArray[Any]:
    if text.endswith(".npy"):
        try:
            return np.asarray(np.load(text, allow_pickle=False))
        except (OSError, ValueError) as error:
            raise WrapError(f"--{option}: {text} can't be read as an array: {error}") from error
    words = {"true": True, "false": False}
    try:
        numbers = [words[part] if part in words else _number(part) for part in text.lower().split(",")]
    except ValueError as error:
        raise WrapError(f"--{option}: {text!r} is no number, list of numbers or .npy file") from error
    return np.array(numbers[0] if len(numbers) == 1 else numbers)


def _finite(option: str, name: str, text: str) -> npt.NDArray[Any]:
    """A value that a stream begins with; raises WrapError where it isn't finite: the server takes no such state."""
    value = _array(option, text)
    if value.dtype.kind == "f" and not np.isfinite(value).all():
        raise WrapError(f"--{option} {name}={text}: every value must be finite, and here is NaN or infinity")
    return value


def _number(text: str) -> float:
    try:
        return int(text)
    except ValueError:
        return float(text)


def _layout(name: str, text: str) -> Layout:
    parts = [part.strip() for part in text.split(",")]
    if not all(part in _AXES or (part.isdecimal() and int(part) > 0) for part in parts):
        raise WrapError(f"--shape {name}={text}: each axis is a size, 'batch' or 'time'")
    return tuple(part if part in _AXES else int(part) for part in parts)


def bounds(name: str, text: str) -> tuple[float, float]:
    """LOW:HIGH; raises WrapError where it doesn't read."""
    low, _, high = text.partition(":")
    try:
        both = _number(low), _number(high)
    except ValueError as error:
        raise WrapError(f"--range {name}={text}: it has the form LOW:HIGH") from error
    if not (math.isfinite(both[0]) and math.isfinite(both[1])):
        raise WrapError(f"--range {name}={text}: both bounds are finite")
    if both[0] > both[1]:
        raise WrapError(f"--range {name}={text}: {low} is more than {high}")
    return both


def _shape(spec: TensorSpec | StatePair) -> str:
    return escape(str(list(spec.shape)))


def _axes(spec: TensorSpec | StatePair) -> str:
    names = {spec.batch_axis: "batch"}
    if isinstance(spec, TensorSpec) and spec.time_axis is not None:
        names[spec.time_axis] = "time"
    rest = iter(spec.shape)
    axes = [names[axis] if axis in names else str(next(rest)) for axis in range(len(names) + len(spec.shape))]
    return escape(f"[{', '.join(axes)}]")


def how_it_runs(contract: Contract) -> str:
    """What a run of the resident graph takes."""
    steps = f"up to {contract.max_steps} steps of each" if contract.ragged else "one step of each"
    calls = ", a call for each" if contract.single_lane else ""
    return f"a run takes {steps}, its streams {contract.notes.get(BATCHES, 'together')}{calls}"
