"""Checkpoints: a module's weights with its spec on disk, and weights that came from elsewhere.

Owns the file formats. Knows nothing of training and of ONNX.
"""

from __future__ import annotations

import errno
import glob
import json
import os
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from model import interruption
from model.lstm import LSTM, Spec
from model.weights import WeightsError, check_finite, kind_of, normalize, select

SPEC_KEY = "cellstream.spec"
NOTES_KEY = "cellstream.notes"
SAFETENSORS = (".safetensors",)
PICKLED = (".pt", ".pth", ".bin", ".ckpt")


class CheckpointError(ValueError):
    """The file isn't a checkpoint that an LSTM can be built from; the text says why."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A module and what its maker noted about it for people (tokens, training data)."""

    module: LSTM
    notes: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()  # keys of the file that belong to other modules


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
    weights, metadata = read_weights(path)
    try:
        selection = select(weights, prefix=picked.prefix, encoder=picked.encoder, head=picked.head)
        normal = normalize(selection.weights)
        if (kind := kind_of(normal)) != "LSTM":
            check_finite(normal)
            return Others(kind, {name: value.float() for name, value in normal.items()}, selection.ignored)
        spec = Spec.from_json(metadata[SPEC_KEY]) if SPEC_KEY in metadata else None
        module = LSTM.from_state_dict(selection.weights, spec)
        return Checkpoint(module, _notes(metadata.get(NOTES_KEY, "{}"), path), selection.ignored)
    except WeightsError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except (RuntimeError, NotImplementedError, MemoryError) as error:  # sparse tensors, sizes beyond all memory
        raise CheckpointError(f"{path}: PyTorch can't build an LSTM of these weights and sizes") from error


def read_weights(path: Path) -> tuple[Mapping[str, Any], Mapping[str, str]]:
    """A file's state dict, whatever module it is of, and its metadata; raises CheckpointError naming the file."""
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "doesn't exist"
        raise CheckpointError(f"{path} {what}: give a .safetensors, .pt or .pth file")
    if path.suffix in SAFETENSORS:
        return _read_safetensors(path)
    if path.suffix in PICKLED:
        return _load_pickled(path), {}
    raise CheckpointError(f"{path}: {path.suffix or 'no suffix'} is none of {', '.join(SAFETENSORS + PICKLED)}")


def _read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from error


def _notes(text: str, path: Path) -> dict[str, str]:
    try:
        notes = json.loads(text)
    except ValueError as error:
        raise CheckpointError(f"{path}: damaged notes ({error})") from error
    if not isinstance(notes, dict):
        raise CheckpointError(f"{path}: damaged notes ({text[:40]!r})")
    return {str(name): str(value) for name, value in notes.items()}


def _load_pickled(path: Path) -> Mapping[str, Any]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, ValueError, KeyError) as error:
        # torch's own text is long, in colours, and advises to load with code running: it stays in the cause.
        raise CheckpointError(
            f"{path}: not a state dict that loads without running code (damaged, or it holds other objects than"
            " tensors); save it with torch.save(module.state_dict(), path)"
        ) from error
    if not isinstance(content, Mapping):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a state dict")
    return _weights_within(content, path)


def _weights_within(content: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The state dict that a training script saved among other things (epoch, optimizer, …), or `content` itself."""
    if any(isinstance(value, Tensor) for value in content.values()):
        return content
    inner = [name for name, value in content.items() if _holds_tensors(value)]
    if len(inner) > 1:
        raise CheckpointError(f"{path}: holds several sets of weights ({', '.join(map(str, inner))}); save just one")
    return content[inner[0]] if inner else content


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and bool(value) and all(isinstance(part, Tensor) for part in value.values())
