"""The words of the command line: its commands, their options, and every fault as one line."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bars

from export import artifact, module, module_command, pipeline, triton_command, wrap, wrap_command
from export.checks import StructureError
from export.module_calls import ModuleError
from export.precision import Precision
from export.report import condensed, cost, findings, parity_table, percent
from export.resident import ResidentError
from export.row_parts import HELP, WHOLE_ROWS, row_parts
from export.theirs import WrapError
from model import interruption
from model.checkpoint import CheckpointError, Others, Picked, load_any
from model.contract import Contract, ContractError
from model.stack import NONLINEARITIES
from model.triton_config import TritonError
from model.weights import WeightsError

FAULTS = (
    CheckpointError,
    ContractError,
    StructureError,
    ResidentError,
    pipeline.ParityError,
    artifact.ArtifactError,
    WrapError,
    ModuleError,
    WeightsError,
    TritonError,
)
PROVE = "prove"
BROKEN_PIPE = 141  # 128 and SIGPIPE: the reader of stdout has gone
TRACEBACK = "CELLSTREAM_TRACEBACK"


def _export_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export",
        description="Export a PyTorch LSTM to ONNX, prove that it computes the same, and write it as an artifact that"
        " the server can serve. CHECKPOINT is a .safetensors file (ours, or the bare weights of a torch.nn.LSTM) or a"
        " .pt/.pth/.ckpt file made by torch.save(module.state_dict(), …) or by Lightning, which is read without running"
        " code. Sizes are inferred from the weights. An nn.LSTMCell's are those of an LSTM; an nn.GRU's and an nn.RNN's"
        " are exported as a module of them.",
        epilog="precisions, each with its own bar (see the certificate for what has never run on a GPU):\n"
        + "".join(f"  {precision:5}{precision.terms.means}\n" for precision in Precision)
        + "\nwhat is written, only when everything passed:\n"
        "  artifacts/NAME/VERSION/model.onnx        portable: x, h, c -> y, h_out, c_out, any batch and time\n"
        "  artifacts/NAME/VERSION/model.onnx.data   the weights, shared by both graphs\n"
        "  artifacts/NAME/VERSION/resident.onnx     what the server runs: states of all streams in one slab\n"
        "  artifacts/NAME/VERSION/parity.json       the certificate, which both graphs carry too\n"
        "  artifacts/NAME/VERSION/parity.html       the same as a page, with plots\n"
        "  artifacts/NAME/config.pbtxt              for Triton Inference Server, which serves the same folder\n\n"
        "examples:\n"
        "  python -m export checkpoints/bytelm.safetensors --name bytelm\n"
        "  python -m export my_lstm.pt --name mine --version 3     # refused where version 3 exists\n"
        "  python -m export my_lstm.pt --name mine --precision int8  # 8-bit weights\n"
        "  python -m export my_lstm.pt --name mine --precision fp16 --row-parts auto   # for a GPU, rows in parts\n"
        "  python -m export prove artifacts/bytelm                 # prove the newest version again\n"
        "  python -m export prove artifacts/bytelm/1               # or this one\n"
        "  python -m export last.ckpt --name mine --prefix model.lstm --head model.fc    # out of a bigger module\n"
        "  python -m export module --help                          # a module of your own\n"
        "  python -m export wrap --help                            # somebody else's ONNX model\n"
        "  python -m export triton --help                          # config.pbtxt anew",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help="the weights, or the word 'prove' (below)")
    parser.add_argument("--name", required=True, help="the model's name: letters, digits, '.', '_' and '-'")
    parser.add_argument("--version", type=int, help="its version, from 1 (default: the one after the newest)")
    parser.add_argument("--out", type=Path, default=Path("artifacts"), help="the repository (default: %(default)s)")
    parser.add_argument(
        "--precision",
        type=Precision,
        choices=list(Precision),
        default=Precision.FP32,
        help="of the products; gates and states are float32 in all (default: %(default)s)",
    )
    parser.add_argument("--row-parts", type=row_parts, default=WHOLE_ROWS, metavar="K|auto", help=HELP)
    parser.add_argument("--prefix", help="of the layer's keys in a bigger module's checkpoint: model.lstm")
    parser.add_argument("--encoder", help="the keys of an embedding or linear map in front: model.embed")
    parser.add_argument("--head", help="the keys of a linear map behind: model.fc")
    parser.add_argument("--nonlinearity", choices=NONLINEARITIES, help="a plain RNN's, which its weights don't say")
    return parser


def _prove_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m export prove",
        description="Prove an artifact again, from itself alone: the digest of its weights, the structure of both"
        " graphs, and parity with a PyTorch module read from its weights, on this machine. Changes nothing.",
        epilog="examples:\n  python -m export prove artifacts/bytelm\n  python -m export prove artifacts/bytelm/1",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "path", type=Path, metavar="ARTIFACT", help="artifacts/NAME (its newest version) or one version"
    )
    return parser


@contextmanager
def _progress(console: Console) -> Iterator[pipeline.Progress]:
    """A progress bar for as long as the block runs."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task("structure", total=None)

        def show(what: str, done: int, total: int) -> None:
            bars.update(task, description=what, completed=done, total=total)

        yield show


def _export(arguments: list[str], console: Console) -> None:
    options = _export_parser().parse_args(arguments)
    final = artifact.target(options.out, options.name, options.version)
    checkpoint = load_any(options.checkpoint, Picked(options.prefix, options.encoder, options.head))
    for remark in checkpoint.remarks:
        _say(f"note: {remark}")
    if checkpoint.ignored:
        console.print(f"left out, of other modules: {condensed(checkpoint.ignored)}", markup=False)
    if options.nonlinearity is not None and getattr(checkpoint, "kind", "LSTM") != "RNN":
        raise CheckpointError(
            f"--nonlinearity {options.nonlinearity}: only a plain RNN has one to choose, and {options.checkpoint} holds"
            f" the weights of {'a GRU' if isinstance(checkpoint, Others) else 'an LSTM'}; leave it out"
        )
    if isinstance(checkpoint, Others):
        if options.precision.reduced:
            raise CheckpointError(f"{options.checkpoint}: --precision {options.precision} is for LSTMs only")
        with _progress(console) as progress:
            exported = module_command.run_weights(
                checkpoint,
                final,
                name=options.name,
                nonlinearity=options.nonlinearity,
                row_parts=options.row_parts,
                progress=progress,
            )
        module_command.show(exported, options.out, console)
        return
    with _progress(console) as progress:
        proved = pipeline.export(
            checkpoint,
            final,
            name=options.name,
            precision=options.precision,
            row_parts=options.row_parts,
            progress=progress,
        )
    console.print(parity_table(proved.records))
    if options.precision.reduced:
        console.print(cost(proved.records, options.precision))
    console.print(findings(proved.evidence.invariances, proved.evidence.controls))
    console.print(f"wrote {proved.folder}, proved by {len(proved.records)} comparisons")
    for remark in proved.remarks:
        console.print(remark, markup=False)
    console.print(f"next: make serve (or python -m serving --model-repository {options.out})")


def _prove(arguments: list[str], console: Console) -> None:
    options = _prove_parser().parse_args(arguments)
    wrapped = wrap.is_wrapped(options.path)
    with _progress(console) as progress:
        proved = (wrap if wrapped else pipeline).prove(options.path, progress=progress)
    console.print(wrap_command.table(proved.contract) if wrapped else parity_table(proved.records))
    if isinstance(proved, pipeline.Proved):
        console.print(findings(proved.evidence.invariances, proved.evidence.controls))
    if module.MODULE in proved.contract.notes:
        console.print(f"not proved again: {module.NOT_AGAIN}")
    console.print(f"{proved.folder} is proved again by {len(proved.records)} comparisons; its weights are unchanged")
    if isinstance(proved, pipeline.Proved):
        console.print(*_what_was_proved(proved.contract))


def _what_was_proved(contract: Contract) -> list[str]:
    """What a second proof can't compare with, where the artifact hasn't the checkpoint's own weights."""
    precision = Precision(contract.precision)
    if precision.terms.exact_weights or contract.certificate is None:
        return []
    at_export = max(record.share for record in contract.certificate.records if record.share_bar > 0)
    again = f"proved again is that both graphs compute what their own {precision} weights say; against the checkpoint's"
    return [f"{again} float32 weights, which an artifact doesn't have, the export found {percent(at_export)} at worst"]


def _wrap(arguments: list[str], console: Console) -> None:
    wrap_command.run(arguments, console, _progress)


def _module(arguments: list[str], console: Console) -> None:
    module_command.run(arguments, console, _progress)


COMMANDS: dict[str, Callable[[list[str], Console], None]] = {
    PROVE: _prove,
    wrap_command.WRAP: _wrap,
    module_command.MODULE: _module,
    triton_command.TRITON: triton_command.run,
}


def main(arguments: list[str]) -> int:
    """Run the command; a fault is one line and exit code 1, wrong usage exit code 2."""
    console = Console(highlight=False, soft_wrap=True)
    command = COMMANDS.get(arguments[0] if arguments else "")
    interruption.begin()
    try:
        if command is None:
            _export(arguments, console)
        else:
            command(arguments[1:], console)
        sys.stdout.flush()
    except KeyboardInterrupt as error:
        _say(interruption.message())
        return interruption.exit_status(error)
    except Exception as error:  # noqa: BLE001  never a traceback
        return _fault(error, console)
    return 0


def _fault(error: Exception, console: Console) -> int:
    """Say in one line what went wrong, and give the exit status."""
    if isinstance(error, FAULTS):
        if isinstance(error, pipeline.ParityError) and error.records:
            console.print(parity_table(error.records))
        _say(f"error: {error}")
    elif isinstance(error, BrokenPipeError):
        _no_more_output()
        return BROKEN_PIPE
    elif isinstance(error, OSError):
        _no_more_output()
        _say(f"error: {error.filename or 'the output'}: {artifact.reason(error)}{interruption.stays()}")
    elif isinstance(error, MemoryError):
        _say("error: this machine hasn't the memory that this model needs; export it on one with more")
    elif os.environ.get(TRACEBACK):
        raise error
    else:
        _say(
            f"error: {type(error).__name__}: {' '.join(str(error).split())}; the exporter doesn't expect this: please"
            f" report it, with the traceback that {TRACEBACK}=1 in the environment shows"
        )
    return 1


def _say(line: str) -> None:
    """Print a line to stderr, if there is one still."""
    with suppress(OSError):
        sys.stderr.write(f"{line}\n")
        sys.stderr.flush()


def _no_more_output() -> None:
    """Let nothing more be said on stdout where it can't be written, not even when Python ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
