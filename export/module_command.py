"""The command line of modules: `python -m export module FILE.py:NAME --name NAME …`, its help and its table.

Owns words and the reading of options. Knows no graph.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text
from torch import nn

from export import artifact, module, wrap, wrap_command
from export.module_calls import ModuleError
from export.module_code import first_state, load_module
from export.module_first_states import named_beginner
from export.module_parity import STEPS
from export.report import findings, parity_table
from export.row_parts import HELP, WHOLE_ROWS, RowParts, row_parts
from model.checkpoint import Others
from model.stack import stack

MODULE = "module"


def parser() -> argparse.ArgumentParser:
    """The options, with a help that teaches."""
    made = argparse.ArgumentParser(
        prog="python -m export module",
        description="Export a PyTorch module of your own: recurrent layers of any kind and number with whatever is"
        " between them, several inputs and outputs. Its states are found by watching it run. Nothing is written unless"
        " its steps one by one give what the untouched module gives for whole sequences in float64, and ONNX computes"
        " the same. FILE.py is RUN to make the module: export only code that you trust.",
        epilog="what forward may look like:\n"
        "  forward(x) -> y                  nn.LSTM, nn.GRU, nn.RNN inside, begun from zero or parameters\n"
        "  forward(x, state) -> (y, state)  any nested state; begun by None, initial_state(batch), --state or --begin\n"
        "  forward(x, done, h) -> (y, h)    a mask that resets the state: bool, or --range done=0:1\n"
        "  forward(batch, state)            a dict: --input batch.obs=float32[batch,5]\n"
        "  forward(x_t, state)              cells: one call is one step\n"
        "outputs are a tensor, a tuple or a dict, one value per step or, as of out[:, -1], one per sequence.\n\n"
        "what can't stream, and is refused: layers that are bidirectional over time (over frequency inside one step\n"
        "they stream), packed sequences, whatever looks ahead or over the whole sequence, states made from the input\n"
        "or kept in attributes, random numbers.\n\n"
        "examples:\n"
        "  python -m export module my_model.py:MyModel --name mine --weights mine.pt\n"
        "  python -m export module train.py:make --name mine --weights last.ckpt --prefix model. \\\n"
        "      --input x=float32[batch,time,5]\n"
        "  python -m export module cells.py:Cell --name cell --input x=float32[batch,5] \\\n"
        "      --state 'state=(float32[batch,7],float32[batch,7])'",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    made.add_argument("where", metavar="FILE.py:NAME", help="a module, or a class or function that makes one")
    made.add_argument("--name", required=True, help="the model's name: letters, digits, '.', '_' and '-'")
    made.add_argument("--version", type=int, help="its version, from 1 (default: the one after the newest)")
    made.add_argument("--out", type=Path, default=Path("artifacts"), help="the repository (default: %(default)s)")
    made.add_argument("--weights", type=Path, help="a checkpoint or TorchScript to load into it (read without running)")
    made.add_argument("--prefix", help="which of the checkpoint's keys are the module's, as in model.")
    for option, form, text in (
        ("input", "NAME=DTYPE[AXES]", "what forward takes; repeatable, and guessed from its first layer without"),
        ("state", "NAME=DTYPE[AXES]", "a first state of zeros, where forward needs one; repeatable"),
        (
            "successor",
            "NAME=PLACE",
            "where forward's answer has a state's new value: 1, 1.0 or a key; repeatable",
        ),
        ("range", "NAME=LOW:HIGH", "an input's lowest and highest value; an nn.Embedding's are found; repeatable"),
    ):
        made.add_argument(f"--{option}", action="append", default=[], metavar=form, help=text)
    made.add_argument("--begin", metavar="METHOD", help="what makes a first state: a method of the batch size, or None")
    made.add_argument("--row-parts", type=row_parts, default=WHOLE_ROWS, metavar="K|auto", help=HELP)
    return made


def run(arguments: list[str], console: Console, progress: Any) -> None:
    """Export as the arguments say, and show what was understood."""
    options = parser().parse_args(arguments)
    final = artifact.target(options.out, options.name, options.version)
    made, ignored = load_module(options.where, options.weights, options.prefix)
    if ignored:
        console.print(f"left out, of other modules: {', '.join(ignored)}", markup=False)
    with progress(console) as shown:
        exported = module.export_module(
            made,
            final,
            name=options.name,
            inputs=options.input,
            first_state=_first_state(made, options),
            successors=wrap_command.pairs("successor", options.successor),
            ranges={
                name: wrap_command.bounds(name, text)
                for name, text in wrap_command.pairs("range", options.range).items()
            },
            origin=Path(options.where.rpartition(":")[0]).name + ":" + options.where.rpartition(":")[2],
            notes={"source": artifact.digest(Path(options.where.rpartition(":")[0]))},
            row_parts=options.row_parts,
            progress=shown,
            steps=STEPS,
        )
    show(exported, options.out, console)


def _first_state(made: nn.Module, options: argparse.Namespace) -> Any:
    """What makes a first state, where an option says it."""
    told = first_state(wrap_command.pairs("state", options.state))
    if told is not None and options.begin is not None:
        raise ModuleError("--state and --begin both say what a first state is: say one")
    return told if options.begin is None else named_beginner(made, options.begin)


def run_weights(
    others: Others,
    final: Path,
    *,
    name: str,
    nonlinearity: str | None,
    row_parts: RowParts = WHOLE_ROWS,
    progress: Any,
) -> module.Exported:
    """Export the weights of a GRU or a plain RNN, by the module that they are of; raises WeightsError."""
    made = stack(others.kind, others.weights, nonlinearity)
    size = made.encoder.in_features if isinstance(made.encoder, nn.Linear) else made.lstm.input_size
    spec = "x=int64[batch,time]" if isinstance(made.encoder, nn.Embedding) else f"x=float32[batch,time,{size}]"
    return module.export_module(
        made,
        final,
        name=name,
        inputs=[spec],
        origin=f"nn.{others.kind}",
        row_parts=row_parts,
        progress=progress,
        steps=STEPS,
    )


def show(exported: module.Exported, out: Path, console: Console) -> None:
    """What was understood, what was proved, and what to do next."""
    console.print(table(exported))
    for remark in exported.remarks:
        console.print(f"  {remark}", markup=False)
    console.print(f"  {wrap_command.how_it_runs(exported.contract)}", markup=False)
    console.print(parity_table(exported.records))
    console.print(findings(exported.evidence.invariances, exported.evidence.controls))
    console.print(f"wrote {exported.folder}, proved by {len(exported.records)} comparisons")
    console.print(f"next: make serve (or python -m serving --model-repository {out})")


def table(exported: module.Exported) -> Table:
    """One line for each tensor: what it is, where it comes from, and its axes."""
    plan = exported.plan
    title = Text(f"{exported.contract.notes[wrap.MARK]}: what was understood")  # rich sees emojis in file.py:NAME
    view = Table(title=title, title_justify="left")
    for column in ("", "tensor", "dtype", "axes in forward", "where from", ""):
        view.add_column(column)
    for kind, tensors in (("input", plan.inputs), ("output", plan.outputs)):
        for tensor in tensors:
            bounds = "" if tensor.bounds is None else f"{tensor.bounds[0]} … {tensor.bounds[1]}"
            view.add_row(kind, escape(tensor.name), tensor.dtype, _axes(tensor.layout), "forward", bounds)
    for state in plan.states:
        first = "from zero" if state.initial is None else "from its own first value"
        view.add_row("state", escape(state.name), state.dtype, _axes(state.layout), escape(state.origin), first)
    return view


def _axes(layout: tuple[int | str, ...]) -> str:
    return escape(f"[{', '.join(map(str, layout))}]")
