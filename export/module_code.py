"""A user's Python file: the module that is made in it.

Owns running the file, which is the user's own code, and what is said where that fails.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from export.layouts import BATCH
from export.module_calls import ModuleError
from export.module_errors import told
from export.module_filling import fill
from export.module_plan import parse_form
from model.checkpoint import read_weights
from model.file_formats import FormatError, recognize

_LISTED = 6


def load_module(
    where: str, weights: Path | None = None, prefix: str | None = None
) -> tuple[nn.Module, tuple[str, ...]]:
    """The module that `FILE.py:NAME` is, or gives when it is called; with these weights where there are any.

    Gives the weights' keys that a prefix left out, too.
    Runs the file. Raises ModuleError in one line, CheckpointError for the weights' file.
    """
    file, sign, name = where.rpartition(":")
    if Path(file or where).suffix != ".py":
        _refuse_weights(Path(where if Path(where).is_file() else file))
    if not (sign and file and name):
        raise ModuleError(f"{where}: say which file and what in it, as in my_model.py:MyModel")
    code = _run(Path(file))
    made: Any = getattr(code, name, None)
    if made is None:
        there = [key for key, value in vars(code).items() if callable(value) and value.__module__ == code.__name__]
        raise ModuleError(f"{file} has no {name!r}; there are {_listed(there)}")
    if not isinstance(made, nn.Module):
        if not callable(made):
            raise ModuleError(f"{where} is a {type(made).__name__}: a module, or a function or class that makes one")
        try:
            made = made()
        except Exception as error:  # whatever a user's code raises
            raise ModuleError(
                f"{name}() fails: {told(error)}; write a function without arguments that makes the module"
            ) from error
    if not isinstance(made, nn.Module):
        raise ModuleError(f"{name}() gives a {type(made).__name__}, not a torch.nn.Module")
    if weights is not None:
        return made, fill(made, weights, prefix)
    if prefix is not None:
        raise ModuleError("--prefix says which of --weights' keys are meant: there are no --weights")
    return made, ()


def _refuse_weights(path: Path) -> None:
    """Raise ModuleError for a checkpoint or TorchScript in the place of Python code."""
    try:
        if not path.is_file():
            return
        kind = recognize(path)
    except (FormatError, OSError):
        return  # running it says what is wrong
    what = "TorchScript, compiled code that can't be taken apart" if kind == "torchscript" else "weights without code"
    keys = [str(key) for key in read_weights(path)[0]] if kind == "torchscript" else []
    layers = sorted({key.partition("weight_hh_l0")[0] for key in keys if key.endswith("weight_hh_l0")})
    alone = f"; its recurrent layer alone: python -m export {path} --prefix {layers[0]} --name NAME"
    raise ModuleError(
        f"{path} is {what}: give the Python class that it was made of, as python -m export module FILE.py:CLASS"
        f" --weights {path} --name NAME{alone if len(layers) == 1 and layers[0] else ''}"
    )


def _run(path: Path) -> ModuleType:
    if not path.is_file():
        raise ModuleError(f"{path} doesn't exist")
    spec = importlib.util.spec_from_file_location(path.stem, path.resolve())
    if spec is None or spec.loader is None:
        raise ModuleError(f"{path} is no Python file")
    code = importlib.util.module_from_spec(spec)
    before, known = list(sys.path), sys.modules.get(spec.name)
    sys.path.insert(0, str(path.resolve().parent))  # it may import its neighbours
    sys.modules[spec.name] = code  # as dataclasses and pickles want it
    try:
        spec.loader.exec_module(code)
    except Exception as error:  # whatever a user's code raises
        raise ModuleError(f"running {path} fails: {told(error)}") from error
    finally:
        sys.path[:] = before
        if known is not None:
            sys.modules[spec.name] = known
    return code


@dataclass(frozen=True, slots=True)
class FirstState:
    """What `--state NAME=…` says of a first state: by argument, dtypes and axes of zeros, nested in tuples."""

    forms: Mapping[str, Any]

    @property
    def names(self) -> tuple[str, ...]:
        """The arguments of forward that are states."""
        return tuple(self.forms)

    def __call__(self, batch: int) -> Any:
        """Zeros for so many streams: of one argument its state, of several a tuple of theirs."""
        states = [_zeros(form, batch) for form in self.forms.values()]
        return states[0] if len(states) == 1 else tuple(states)


def first_state(options: Mapping[str, str]) -> FirstState | None:
    """What `--state` options say of a first state, if there are any; raises ModuleError for one that doesn't read."""
    forms = {name: _form(f"--state {name}={text}", text) for name, text in options.items()}
    return FirstState(forms) if forms else None


def _form(option: str, text: str) -> Any:
    """`float32[2,batch,7]`, or a tuple of such in round brackets."""
    text = text.strip()
    if not (text.startswith("(") and text.endswith(")")):
        return parse_form(option, text)
    parts, depth, start = [], 0, 1
    for place, sign in enumerate(text):
        depth += (sign in "([") - (sign in ")]")
        if depth == 0 or (depth == 1 and sign == ","):
            parts.append(text[start:place])
            start = place + 1
    return [_form(option, part) for part in parts if part.strip()]


def _zeros(form: Any, batch: int) -> Any:
    if isinstance(form, list):
        return tuple(_zeros(part, batch) for part in form)
    dtype, layout = form
    sizes = [batch if size == BATCH else size for size in layout]
    zeros: Tensor = torch.zeros(sizes, dtype=getattr(torch, dtype))
    return zeros


def _listed(names: list[str]) -> str:
    return ", ".join(names[:_LISTED]) + (f" and {len(names) - _LISTED} more" if len(names) > _LISTED else "") or "none"
