"""Weights in TorchScript files, read without running or compiling the code beside them.

Owns what of such a file is weights. Knows no layers.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from model.pickles import Foreign, PickleError, read

_DATA = ("data.pkl", "version", "byteorder")


def weights(path: Path) -> dict[str, Any]:
    """The tensors of the file's modules under their dotted names; what is packed comes as a stand-in.

    Raises PickleError for a file that can't be read or has no weights.
    """
    content = read(_data_alone(path))
    found = dict(_tensors(content, ""))
    if not found:
        raise PickleError(
            "is TorchScript without weights, or with weights frozen into its code (torch.jit.freeze): save the state"
            " dict of the module that it was made of, with torch.save(module.state_dict(), path)"
        )
    return found


def _data_alone(path: Path) -> io.BytesIO:
    """The archive without its code, as torch.save would have written it."""
    bare = io.BytesIO()
    try:
        with zipfile.ZipFile(path) as archive, zipfile.ZipFile(bare, "w") as copied:
            for entry in archive.infolist():
                name = entry.filename.partition("/")[2]
                if name in _DATA or name.startswith("data/"):
                    copied.writestr(entry.filename, archive.read(entry))
    except (zipfile.BadZipFile, NotImplementedError, EOFError) as error:
        raise PickleError("it is cut off or damaged: copy it again") from error
    bare.seek(0)
    return bare


def _tensors(value: Any, name: str) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Tensor):
        yield name, value
    elif isinstance(value, Foreign) and value.origin.startswith("__torch__.") and value.parts:
        attributes = value.parts[-1]
        if not isinstance(attributes, Mapping):
            yield name, value  # packed weights of a quantised module
            return
        for key, part in attributes.items():
            yield from _tensors(part, f"{name}.{key}" if name else str(key))
