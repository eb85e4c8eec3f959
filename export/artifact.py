"""The artifact on disk: its layout, names and versions, its weights file, and how it appears all at once.

Owns paths and bytes. Knows nothing of what is in the graphs.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt
import onnx
from onnx import ModelProto, TensorProto, helper, numpy_helper

from export import staging
from model import interruption
from model.contract import Certificate, Contract, ContractError, certificate_to_plain, graph_digest

MODEL = "model.onnx"
WEIGHTS = "model.onnx.data"
RESIDENT = "resident.onnx"
PARITY = "parity.json"
PAGE = "parity.html"
ALIGNMENT = 64  # bytes, of each weight in the weights file
SMALL = 64  # elements: integer constants up to this size stay in the graph, where shape inference sees them
_NAME = re.compile(r"[A-Za-z0-9._-]+")
LONGEST_NAME = 128  # letters: any file system has room for that, and so have labels of metrics
LAST_VERSION = 2**63 - 1
_ELSEWHERE = "give a folder that you may write into, as in --out FOLDER"
_HINTS = {
    errno.ENOSPC: "free some space there, or give another folder, as in --out FOLDER",
    errno.EDQUOT: "free some space there, or give another folder, as in --out FOLDER",
    errno.EFBIG: "the limit on the size of files (ulimit -f) is too small for this model",
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EROFS: _ELSEWHERE,
    errno.ENOTDIR: "a file is in the way; give another folder, as in --out FOLDER",
    errno.EEXIST: "a file is in the way; give another folder, as in --out FOLDER",
    errno.ENAMETOOLONG: "give shorter names",
    errno.EMFILE: "raise the limit on open files (ulimit -n)",
}


class ArtifactError(ValueError):
    """The artifact can't be written or read there; the text says what to do."""


def check_name(name: str) -> str:
    """The name, if a folder and a model can be called so; raises ArtifactError otherwise."""
    if not _NAME.fullmatch(name) or name.startswith("."):
        raise ArtifactError(f"name {name!r}: letters, digits, '.', '_' and '-' only, and no '.' in front")
    if len(name) > LONGEST_NAME:
        raise ArtifactError(f"a name of {len(name)} letters: at most {LONGEST_NAME}")
    return name


def versions(folder: Path) -> list[int]:
    """The versions that lie in `artifacts/<name>`, in order."""
    if not folder.is_dir():
        return []
    return sorted(int(path.name) for path in folder.iterdir() if path.is_dir() and re.fullmatch(r"[1-9]\d*", path.name))


def target(out: Path, name: str, version: int | None) -> Path:
    """Where the artifact goes: `out/name/version`, by default the version after the newest.

    Raises ArtifactError for a bad name or version and for a version that exists: artifacts never change.
    """
    folder = out / check_name(name)
    if version is None:
        return folder / str(max(versions(folder), default=0) + 1)
    if version < 1:
        raise ArtifactError(f"version {version}: versions count from 1")
    if version > LAST_VERSION:
        raise ArtifactError(f"version {version}: at most {LAST_VERSION}, the last that the protocol can say")
    if (folder / str(version)).exists():
        raise ArtifactError(
            f"{folder / str(version)} exists, and artifacts never change: leave out --version to get the next free"
            " one, or remove that folder"
        )
    return folder / str(version)


def find(path: Path) -> Path:
    """The artifact at `artifacts/NAME/VERSION`, or the newest one at `artifacts/NAME`; raises ArtifactError."""
    if (path / MODEL).is_file():
        missing = [name for name in (WEIGHTS, RESIDENT) if not (path / name).is_file()]
        if missing:
            raise ArtifactError(f"{path} is damaged: no {' and no '.join(missing)}; export it anew")
        return path
    found = versions(path)
    if found:
        return find(path / str(found[-1]))
    raise ArtifactError(f"no artifact at {path}: it needs {MODEL}, or folders 1, 2, … that have one")


@contextmanager
def staged(final: Path) -> Iterator[Path]:
    """A folder to write an artifact into, which becomes `final` at the end of the block and vanishes on any error.

    What killed exports left in the repository is removed first. Raises ArtifactError where it can't be written.
    """
    try:
        with staging.hidden(final) as folder:
            yield folder
            folder.chmod(0o755)
            _publish(folder, final)
    except OSError as error:
        if isinstance(error, BrokenPipeError) or not _within(error.filename, final.parent):
            raise
        raise ArtifactError(f"can't write into {final.parent}: {reason(error)}") from error


def _publish(folder: Path, final: Path) -> None:
    try:
        folder.rename(final)
    except OSError as error:
        if not final.exists():
            raise
        raise ArtifactError(f"{final} appeared while this export ran: export again to get another version") from error
    interruption.done(folder, final)


def _within(name: object, folder: Path) -> bool:
    """Whether an OSError's file name lies in `folder` or on the way to it, or is unknown, as that of a write is."""
    if name is None:
        return True
    path = Path(os.fsdecode(name) if isinstance(name, (str, bytes)) else str(name))
    return path.is_relative_to(folder) or folder.is_relative_to(path)


def reason(error: OSError) -> str:
    """Why something can't be read or written, and what to do."""
    text = error.strerror or str(error)
    return f"{text}; {hint}" if (hint := _HINTS.get(error.errno or 0)) else text


class WeightsWriter:
    """Writes WEIGHTS one weight at a time, so that no second copy of all of them is ever held.

    The same weights in the same order give the same bytes.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file, self._end, self._hash = file, 0, hashlib.sha256()

    @property
    def digest(self) -> str:
        """What the contract calls `weights_digest`, of what has been written so far."""
        return f"sha256:{self._hash.hexdigest()}"

    def keep(self, name: str, array: npt.NDArray[Any]) -> TensorProto:
        """Write a weight, and return the tensor that refers to it; a small constant is the tensor itself."""
        if stays(array.dtype, array.size):
            return numpy_helper.from_array(array, name)
        self._write(b"\0" * (-self._end % ALIGNMENT))
        tensor = refer(name, array, offset=self._end)
        self._write(np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<")).reshape(-1).view(np.uint8).data)
        return tensor

    def _write(self, data: bytes | memoryview) -> None:
        self._file.write(data)
        self._hash.update(data)
        self._end += len(data)


def write_weights(model: ModelProto, path: Path) -> str:
    """Move the weights out of `model` into the file `path`, leaving references to it, and return its digest."""
    with path.open("wb") as file:
        writer = WeightsWriter(file)
        for tensor in model.graph.initializer:
            tensor.CopyFrom(writer.keep(tensor.name, numpy_helper.to_array(tensor)))
        return writer.digest


def read_weights(model: ModelProto, folder: Path) -> dict[str, npt.NDArray[Any]]:
    """The weights of a graph read without them, by name, mapped from the file: nothing is read before it is used."""
    return {tensor.name: _mapped(tensor, folder) for tensor in model.graph.initializer}


def _mapped(tensor: TensorProto, folder: Path) -> npt.NDArray[Any]:
    if tensor.data_location != TensorProto.EXTERNAL:
        return numpy_helper.to_array(tensor)
    where = {entry.key: entry.value for entry in tensor.external_data}
    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).newbyteorder("<")
    try:
        return np.memmap(folder / WEIGHTS, dtype, "r", int(where["offset"]), tuple(tensor.dims))
    except (KeyError, OSError, ValueError) as error:
        raise ArtifactError(f"{folder / WEIGHTS}: weight {tensor.name!r} isn't there; export it anew") from error


def stays(dtype: np.dtype[Any], size: int) -> bool:
    """Whether so many elements are a constant of the graph's own: small, integer, and no 8-bit weights."""
    return np.issubdtype(dtype, np.integer) and dtype != np.uint8 and size <= SMALL


def refer(name: str, array: npt.NDArray[Any], *, offset: int) -> TensorProto:
    """A tensor of that name, type and shape whose values lie in WEIGHTS, `offset` bytes from its start."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    tensor = TensorProto(name=name, data_type=kind, dims=array.shape, data_location=TensorProto.EXTERNAL)
    for key, value in (("location", WEIGHTS), ("offset", str(offset)), ("length", str(array.nbytes))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def digest(path: Path) -> str:
    """A file's "sha256:" and hexadecimal SHA-256, as the contract calls that of the weights file `weights_digest`."""
    with path.open("rb") as file:
        return f"sha256:{hashlib.file_digest(file, 'sha256').hexdigest()}"


def check_digest(folder: Path, contract: Contract) -> None:
    """Raise ArtifactError where weights, graphs or contract aren't what the artifact was made with."""
    found = digest(folder / WEIGHTS)
    if found != contract.weights_digest:
        raise ArtifactError(
            f"{folder / WEIGHTS} was changed: its digest is {found[:19]}…, and the contract says"
            f" {contract.weights_digest[:19]}…; export it anew"
        )
    digests = {} if contract.certificate is None else contract.certificate.digests
    for name, proved in digests.items():
        found = contract.digest() if name == "contract" else graph_digest((folder / name).read_bytes())
        if found != proved:
            raise ArtifactError(f"the {name} of {folder} was changed since its proof; export it anew")


def write_graph(model: ModelProto, path: Path, contract: Contract) -> None:
    """Write a graph with the contract in its metadata."""
    del model.metadata_props[:]
    for key, value in contract.to_metadata().items():
        model.metadata_props.add(key=key, value=value)
    path.write_bytes(model.SerializeToString(deterministic=True))


def certify(contract: Contract, certificate: Certificate, graphs: Mapping[str, ModelProto]) -> Contract:
    """The contract with its certificate, which says by digest for which graphs (by file name) and contract it is."""
    digests = {name: graph_digest(model.SerializeToString(deterministic=True)) for name, model in graphs.items()}
    return replace(contract, certificate=replace(certificate, digests=digests | {"contract": contract.digest()}))


def seal(folder: Path, contract: Contract, certificate: Certificate) -> Contract:
    """Write both graphs in `folder` anew with their certificate, and the certificate beside them; the contract now."""
    graphs = {name: read_graph(folder / name, weights=False)[0] for name in (MODEL, RESIDENT)}
    certified = certify(contract, certificate, graphs)
    assert certified.certificate is not None
    for name, model in graphs.items():
        write_graph(model, folder / name, certified)
    write_certificate(certified.certificate, folder / PARITY)
    return certified


def write_certificate(certificate: Certificate, path: Path) -> None:
    """Write the certificate beside the graphs, for people and scripts."""
    path.write_text(json.dumps(certificate_to_plain(certificate), indent=1) + "\n", encoding="utf-8")


def read_graph(path: Path, *, weights: bool) -> tuple[ModelProto, Contract]:
    """Read a graph and its contract, with or without its weights; raises ArtifactError naming the file."""
    try:
        model = onnx.load(path, load_external_data=weights)
        return model, Contract.from_metadata({entry.key: entry.value for entry in model.metadata_props})
    except ContractError as error:
        raise ArtifactError(f"{path}: {error}") from error
    except Exception as error:  # protobuf and onnx raise many kinds, none of them typed
        raise ArtifactError(f"{path} can't be read: {error}") from error
