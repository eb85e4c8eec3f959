"""What is given in place of a checkpoint is named, with what to do next."""

from __future__ import annotations

import io
import json
import pickle
import tarfile
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from model import file_formats

Writer = Callable[[Path], object]


def zipped(*names: str) -> bytes:
    """A zip archive of empty files."""
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name in names:
            archive.writestr(name, "")
    return data.getvalue()


def tarred() -> bytes:
    """A tar archive."""
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("a"))
    return data.getvalue()


def saved(*, cut: int = 0) -> bytes:
    """A checkpoint, or as much of it as was copied."""
    data = io.BytesIO()
    torch.save(nn.LSTM(3, 4).state_dict(), data)
    return data.getvalue()[: len(data.getvalue()) - cut]


def numpy_archive() -> bytes:
    """A .npz file."""
    data = io.BytesIO()
    np.savez(data, a=np.zeros(1))
    return data.getvalue()


SHARDS = {"weight_map": {"lstm.weight_hh_l0": "b.safetensors", "e.weight": "a.safetensors"}}
FILES: dict[str, tuple[bytes, str]] = {
    "empty.pt": (b"", "is empty"),
    "model.onnx": (b"\x08\x08", "an ONNX model: python -m export wrap .*model.onnx --name NAME"),
    "cut.pt": (saved(cut=200), "is cut off"),
    "cut.safetensors": ((100).to_bytes(8, "little") + b'{"a":', "is cut off"),
    "plain.pkl": (pickle.dumps({"a": 1}), "a plain pickle"),
    "archive.zip": (zipped("policy.pth", "data"), "a zip archive: unpack it and give policy.pth"),
    "program.pt2": (zipped("m/archive_format"), "a program of torch.export"),
    "model.keras": (zipped("config.json", "model.weights.h5"), "a Keras model"),
    "a.npz": (numpy_archive(), r"a numpy .npz archive"),
    "a.tar": (tarred(), "a tar archive"),
    "a.tar.gz": (b"\x1f\x8b\x08", "a gzip archive"),
    "a.h5": (b"\x89HDF\r\n", "an HDF5 file"),
    "a.tflite": (b"\x1c\0\0\0TFL3", "a TensorFlow Lite model"),
    "a.bin": (b"version https://git-lfs.github.com/spec/v1\n", "a Git LFS pointer"),
    "page.pt": (b"\n<!DOCTYPE html>", "an HTML or XML page"),
    "model.safetensors.index.json": (
        json.dumps(SHARDS).encode(),
        "an index of files .* give the layer's, b.safetensors$",
    ),
    "config.json": (b'{"hidden": 4}', "JSON, which holds no weights"),
    "junk.pt": (b"junk" * 99, "no checkpoint of any known format"),
}


@pytest.mark.parametrize("name", FILES)
def test_files_are_named(name: str, tmp_path: Path) -> None:
    """By their content, mostly, and not by their suffix."""
    data, words = FILES[name]
    (tmp_path / name).write_bytes(data)
    with pytest.raises(file_formats.FormatError, match=words):
        file_formats.recognize(tmp_path / name)


@pytest.mark.filterwarnings("ignore")
def test_torchscript_is_told_from_a_pickle(tmp_path: Path) -> None:
    """It has constants beside its data."""
    torch.jit.save(torch.jit.script(nn.LSTM(3, 4)), tmp_path / "a.pt")
    assert file_formats.recognize(tmp_path / "a.pt") == "torchscript"


def test_a_checkpoint_may_be_called_anything(tmp_path: Path) -> None:
    """Its suffix is nobody's business."""
    (tmp_path / "best.pth.tar").write_bytes(saved())
    assert file_formats.recognize(tmp_path / "best.pth.tar") == "pickled"


@pytest.mark.parametrize(
    ("inside", "words"),
    [
        ("1/model.onnx", "is an artifact already: python -m export prove"),
        ("saved_model.pb", "a TensorFlow SavedModel"),
        ("pytorch_model.bin", r"is a folder: give one of its files \(pytorch_model.bin\)"),
        ("x", "is a folder: give a .safetensors"),
    ],
)
def test_folders_are_named(inside: str, words: str, tmp_path: Path) -> None:
    """By what lies in them."""
    (tmp_path / inside).parent.mkdir(exist_ok=True)
    (tmp_path / inside).touch()
    with pytest.raises(file_formats.FormatError, match=words):
        file_formats.recognize(tmp_path)
