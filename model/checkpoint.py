"""Checkpoints: a module's weights with its spec on disk, and weights that came from elsewhere.

Owns the file formats. Knows nothing of training and of ONNX.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model import interruption, pickles, torchscript
from model.file_formats import FormatError, recognize
from model.lstm import LSTM, Spec
from model.reparametrized import Resolved, resolve
from model.weight_sets import choose
from model.weights import WeightsError, check_finite, kind_of, listed, normalize, select

SPEC_KEY = "cellstream.spec"
NOTES_KEY = "cellstream.notes"


class CheckpointError(ValueError):
    """The file isn't a checkpoint that an LSTM can be built from; the text says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A module and what its maker noted about it for people (tokens, training data)."""

    module: LSTM
    notes: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # keys of the file that belong to other modules
    remarks: tuple[str, ...] = ()  # what was left out beside the weights, and how some were made


@dataclass(frozen=True, slots=True)
class Picked:
    """Which of a bigger module's weights are meant: the recurrent layer's prefix, an encoder's and a head's names."""

    prefix: str | None = None
    encoder: str | None = None
    head: str | None = None


@dataclass(frozen=True, slots=True)
class Others:
    """The weights of a GRU or a plain RNN, under our names."""

    kind: str
    weights: Mapping[str, Tensor]
    ignored: tuple[str, ...]
    remarks: tuple[str, ...] = ()


def save(module: LSTM, path: Path, *, notes: Mapping[str, str] | None = None) -> None:
    """Write weights, spec and notes as safetensors; the file appears under its name only when it is complete.

    Raises CheckpointError where it can't be written.
    """
    weights = {name: value.detach().contiguous() for name, value in module.state_dict().items()}
    metadata = {SPEC_KEY: module.spec.to_json(), NOTES_KEY: json.dumps(dict(notes or {}), sort_keys=True)}
    unfinished = check_writable(path)
    try:
        interruption.writing(unfinished)
        save_file(weights, unfinished, metadata=metadata)
        unfinished.chmod(0o644)  # safetensors leaves it to its writer alone
        unfinished.replace(path)
        interruption.done(unfinished, path)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} can't be written: {getattr(error, 'strerror', None) or error}") from error
    finally:
        unfinished.unlink(missing_ok=True)
        interruption.done(unfinished)


def check_writable(path: Path) -> Path:
    """The name under which `path` is written until it is complete; raises CheckpointError where it can't be made.

    What a killed process left under such a name is removed.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        for left in path.parent.glob(f".{glob.escape(path.name)}.*"):
            if left.suffix[1:].isdecimal() and not Path("/proc", left.suffix[1:]).exists():
                left.unlink()
        unfinished.touch()
        unfinished.unlink()
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, "it is a folder", str(path))
    except OSError as error:
        raise CheckpointError(f"{path} can't be written: {error.strerror or error}; give another file") from error
    return unfinished


EVERYTHING = Picked()


def load(path: Path, picked: Picked = EVERYTHING) -> Checkpoint:
    """Read a checkpoint: our safetensors, a torch.nn.LSTM's weights as safetensors, or a .pt/.pth state dict.

    `picked` says which weights of a bigger module are meant. Pickled files are read with weights_only, so no code of
    theirs runs. Raises CheckpointError naming the file.
    """
    found = load_any(path, picked)
    if isinstance(found, Others):
        raise CheckpointError(f"{path}: the weights of {found.kind}, not of an LSTM")
    return found


def load_any(path: Path, picked: Picked = EVERYTHING) -> Checkpoint | Others:
    """The same, or the weights of a GRU or a plain RNN."""
    found = _read(path, picked.prefix)
    metadata = found.metadata
    try:
        resolved = resolve(found.weights)
        selection = select(resolved.weights, prefix=picked.prefix, encoder=picked.encoder, head=picked.head)
        normal = normalize(selection.weights)
        remarks = (*_beside(found.beside), *_made(resolved, selection.ignored), *_rounded(normal))
        if (kind := kind_of(normal)) != "LSTM":
            check_finite(normal)
            return Others(kind, {name: value.float() for name, value in normal.items()}, selection.ignored, remarks)
        spec = Spec.from_json(metadata[SPEC_KEY]) if SPEC_KEY in metadata else None
        module = LSTM.from_state_dict(selection.weights, spec)
        return Checkpoint(module, _notes(metadata.get(NOTES_KEY, "{}"), path), selection.ignored, remarks)
    except WeightsError as error:
        raise CheckpointError(f"{path}: {_as_typed(str(error), picked)}") from error
    except (RuntimeError, NotImplementedError, MemoryError) as error:  # sizes beyond all memory
        raise CheckpointError(f"{path}: PyTorch can't build an LSTM of these weights and sizes") from error


def _as_typed(text: str, picked: Picked) -> str:
    """A refusal in the names that the user typed, instead of ours."""
    for option, name in (("head", picked.head), ("encoder", picked.encoder)):
        if name is not None:
            text = re.sub(rf"(?<![\w.]){option}\.(?=weight|bias)", f"{name.removesuffix('.')}.", text)
    return text


def _made(resolved: Resolved, ignored: tuple[str, ...]) -> tuple[str, ...]:
    """How weights in use were made that the file doesn't have as such."""
    return tuple(f"{name} is {how}" for name, how in resolved.made.items() if name not in ignored)


def _beside(names: tuple[str, ...]) -> tuple[str, ...]:
    return (f"left out, beside the weights: {listed(names)}",) if names else ()


def _rounded(weights: Mapping[str, Tensor]) -> tuple[str, ...]:
    """What the conversion to float32 does to the weights' own dtype."""
    strange = sorted({str(value.dtype).removeprefix("torch.") for value in weights.values()} - {"float32"})
    return tuple(
        f"weights of {dtype} are {'rounded to' if dtype == 'float64' else 'taken as'} float32" for dtype in strange
    )


class _File(NamedTuple):
    """A file's state dict, its metadata, and the names of what lies beside the weights."""

    weights: Mapping[str, Any]
    metadata: Mapping[str, str]
    beside: tuple[str, ...] = ()


def read_weights(path: Path, prefix: str | None = None) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """A file's state dict, whatever module it is of, and its metadata; raises CheckpointError naming the file.

    Where the file holds several, `prefix` begins with the name of one.
    """
    found = _read(path, prefix)
    return found.weights, found.metadata


def _read(path: Path, prefix: str | None) -> _File:
    try:
        if (kind := recognize(path)) == "safetensors":
            return _File(*_read_safetensors(path))
        if kind == "torchscript":
            return _File(torchscript.weights(path), {})
        found = choose(pickles.read(path), prefix)
    except FormatError as error:
        raise CheckpointError(f"{path} {error}") from error
    except (WeightsError, pickles.PickleError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    except OSError as error:
        raise CheckpointError(f"{path} can't be read: {error.strerror or error}") from error
    strange = [key for key in found.weights if not isinstance(key, str)]
    if strange:
        raise CheckpointError(f"{path}: a state dict's keys are names, and here are {listed(map(repr, strange))}")
    return _File(found.weights, {}, found.beside)


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error}); copy it again, or save it again") from error


def _notes(text: str, path: Path) -> dict[str, str]:
    try:
        notes = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged notes ({error})") from error
    if not isinstance(notes, dict):
        raise CheckpointError(f"{path}: damaged notes ({text[:40]!r})")
    return {str(name): str(value) for name, value in notes.items()}
