"""Formats of files, told by their first bytes: checkpoints, and what is given in place of one.

Owns what each kind of file is called, and what to do with it. Reads nothing of a checkpoint's content.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Literal

Format = Literal["safetensors", "pickled", "torchscript"]
_HEAD = 1024
_STARTS = (
    (b"\x89HDF", "an HDF5 file (Keras): convert its model to ONNX (tf2onnx), then python -m export wrap"),
    (b"GGUF", "a GGUF file, whose weights are quantised: give the checkpoint that it was made from"),
    (b"\x93NUMPY", "a numpy array: save the layer's state dict with torch.save(module.state_dict(), path)"),
    (b"version https://git-lfs", "a Git LFS pointer, not the file itself: run git lfs pull where it lies"),
    (b"\x1f\x8b", "a gzip archive: unpack it (tar xzf, or gunzip) and give the checkpoint in it"),
    (b"BZh", "a bzip2 archive: unpack it (tar xjf, or bunzip2) and give the checkpoint in it"),
    (b"\xfd7zXZ", "an xz archive: unpack it (tar xJf, or unxz) and give the checkpoint in it"),
    (b"7z\xbc\xaf", "a 7z archive: unpack it and give the checkpoint in it"),
    (b"(\xb5/\xfd", "a zstd archive: unpack it (unzstd) and give the checkpoint in it"),
    (b"<", "an HTML or XML page: what was fetched is a page about the file; fetch the file itself"),
)
_SAVE = "torch.save(module.state_dict(), path)"


class FormatError(ValueError):
    """A file that is no checkpoint; the text says what it is and what to do."""


def recognize(path: Path) -> Format:
    """Which kind of checkpoint it is; raises FormatError for whatever is none, and OSError where it can't be read."""
    if path.is_dir():
        raise FormatError(_folder(path))
    if not path.exists():
        raise FormatError("doesn't exist: give a .safetensors, .pt, .pth or .ckpt file")
    if not path.is_file():
        raise FormatError("is no ordinary file: give a .safetensors, .pt, .pth or .ckpt file")
    with path.open("rb") as file:
        head = file.read(_HEAD)
    if not head:
        raise FormatError("is empty: whatever wrote it didn't finish; get it again")
    if path.suffix in (".onnx", ".ort"):
        raise FormatError(f"is an ONNX model: python -m export wrap {path} --name NAME")
    if zipfile.is_zipfile(path) or head.startswith(b"PK\x03\x04"):
        return _zip(path)
    if _is_safetensors(path, head):
        return "safetensors"
    if head[:1] == b"\x80":
        return _pickle(head)
    raise FormatError(_other(path, head))


def _folder(path: Path) -> str:
    """What a folder is."""
    names = {entry.name for entry in path.iterdir()}
    versions = [name for name in names if name.isdecimal() and (path / name / "model.onnx").is_file()]
    if versions or {"model.onnx", "resident.onnx"} <= names:
        return f"is an artifact already: python -m export prove {path}"
    if "saved_model.pb" in names:
        return "is a TensorFlow SavedModel: convert it to ONNX (tf2onnx), then python -m export wrap"
    if {"data.pkl", "version"} <= names:
        return "is an unpacked torch.save file: give the file as it was, not unpacked"
    files = sorted(
        name for name in names if name.endswith((".safetensors", ".pt", ".pth", ".ckpt", ".bin")) or ".pth." in name
    )
    if files:
        return f"is a folder: give one of its files ({', '.join(files[:6])})"
    return "is a folder: give a .safetensors, .pt, .pth or .ckpt file"


def _zip(path: Path) -> Format:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, NotImplementedError) as error:
        raise FormatError("is cut off or damaged: its end, a zip directory, is missing; copy it again") from error
    ends = {name.rpartition("/")[2] for name in names}
    if {"data.pkl", "constants.pkl"} <= ends:
        return "torchscript"
    if "data.pkl" in ends:
        return "pickled"
    if "archive_format" in ends or "serialized_exported_program.json" in ends:
        raise FormatError(
            "is a program of torch.export: torch.save(torch.export.load(path).state_dict, new_path) gives its weights"
        )
    if names and all(name.endswith(".npy") for name in names):
        raise FormatError(f"is a numpy .npz archive: save the layer's state dict with {_SAVE}")
    if "model.weights.h5" in ends:
        raise FormatError("is a Keras model: convert it to ONNX (tf2onnx), then python -m export wrap")
    inside = [name for name in names if name.endswith((".pth", ".pt", ".ckpt", ".safetensors", ".bin"))]
    what = f"{', '.join(inside[:6])} in it" if inside else f"a checkpoint in it ({', '.join(names[:4])})"
    raise FormatError(f"is a zip archive: unpack it and give {what}")


def _is_safetensors(path: Path, head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or length > 2**40:
        return False
    if 8 + length > path.stat().st_size:
        raise FormatError("is cut off: it is shorter than its safetensors header says; copy it again")
    return True


def _pickle(head: bytes) -> Format:
    if b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." in head[:32]:  # torch.save's magic number, in its format until 1.6
        return "pickled"
    raise FormatError(f"is a plain pickle, not of torch.save, and reading it would run its code: save it with {_SAVE}")


def _other(path: Path, head: bytes) -> str:
    if head[257:262] == b"ustar":
        return "is a tar archive: unpack it (tar xf) and give the checkpoint in it"
    for start, what in _STARTS:
        if head.lstrip().startswith(start) or head.startswith(start):
            return f"is {what}"
    if head[4:8] == b"TFL3":
        return "is a TensorFlow Lite model: convert it to ONNX (tf2onnx), then python -m export wrap"
    if head.lstrip()[:1] in (b"{", b"["):
        return _json(path)
    if b"onnx" in head.lower() or b"pytorch" in head[:64]:
        return f"is an ONNX model, by its first bytes: python -m export wrap {path} --name NAME"
    return "is no checkpoint of any known format: give a .safetensors file, or one of " + _SAVE


def _json(path: Path) -> str:
    """What a JSON file is; an index of shards names the one with recurrent weights."""
    try:
        files = json.loads(path.read_text(encoding="utf-8"))["weight_map"]
        layers = sorted({file for key, file in files.items() if "weight_hh" in key}) or sorted(set(files.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return "is JSON, which holds no weights: give the .safetensors or .pt file beside it"
    return f"is an index of files that hold the weights: give the layer's, {', '.join(layers[:6])}"
