"""A model's folder as Triton Inference Server wants it: `config.pbtxt` and `initial_state/` beside the versions.

Owns those files and when they may be written: one configuration speaks for all versions, and what people wrote into it
stays. An artifact is finished before any of this, and is none the worse where Triton can't serve it.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from export import artifact
from export.one_by_one import AS_GIVEN, BATCHES, ONE_BY_ONE
from export.pbtxt import pbtxt
from model.contract import Contract
from model.triton_config import IDLE_MICROSECONDS, TritonError, check_loadable, initial_files, model_config

CONFIG = "config.pbtxt"
INITIAL = "initial_state"
MAX_BATCH = 128  # streams in one run, and live streams in all: what our own server has if it isn't told otherwise
MAX_CANDIDATES = 4096
HEADER = """\
# Written by Cellstream's exporter for Triton Inference Server. Once edited it is yours: no export changes it again.
# sha256 of the lines below: {digest}
"""
_HEADER = re.compile(re.escape(HEADER).replace(re.escape("{digest}"), "([0-9a-f]{64})"))


def describe(version: Path) -> tuple[str, ...]:
    """Let Triton serve the artifact that was just written to `artifacts/NAME/VERSION`; a line on what came of it.

    Elsewhere than in a model repository, where the folder isn't called by a number, nothing is written or said.
    """
    if not version.name.isdecimal() or int(version.name) not in artifact.versions(version.parent):
        return ()
    try:
        return (write(version.parent, int(version.name)),)
    except TritonError as error:
        return (f"not for Triton: {error}",)


def write(folder: Path, version: int | None = None) -> str:
    """Write `artifacts/NAME/config.pbtxt`, by the newest version that Triton can serve; a line that says so.

    Raises TritonError where it can't serve `version` (by default the newest), or nothing can be written.
    """
    found = artifact.versions(folder)
    if not found:
        raise TritonError(f"no artifact at {folder}: it needs folders 1, 2, … that have {artifact.MODEL}")
    said = {number: _said(folder / str(number)) for number in found}
    able = {number: config for number, config in said.items() if not isinstance(config, str)}
    refused = said[found[-1] if version is None else version]
    try:
        if not able:
            _forget(folder)
            raise TritonError(refused)
        newest = able[max(able)]
        line = _write(folder, newest, [number for number, config in able.items() if config == newest], found)
    except OSError as error:
        raise TritonError(f"can't write {folder / CONFIG}: {error.strerror or error}") from error
    if isinstance(refused, str):
        raise TritonError(f"{refused} ({line})")
    return line


def configuration(contract: Contract) -> dict[str, Any]:
    """The configuration by which Triton loads the contract's model.onnx; raises TritonError where it can't."""
    check_loadable(contract)
    if AS_GIVEN in contract.notes:
        raise TritonError(f"{artifact.MODEL} keeps the given file's fixed batch, and Triton's is free")
    # Where a stream's neighbours in a batch would change its bits, or the graph takes one stream only.
    alone = contract.notes.get(BATCHES) == ONE_BY_ONE
    return model_config(
        contract,
        max_batch=1 if alone else MAX_BATCH,
        max_candidates=MAX_CANDIDATES,
        idle_microseconds=IDLE_MICROSECONDS,
    )


def _said(version: Path) -> dict[str, Any] | str:
    """A version's configuration under its folder's name, or why it has none."""
    try:
        return configuration(_contract(version))
    except (TritonError, artifact.ArtifactError) as error:
        return str(error)


def _contract(version: Path) -> Contract:
    """The contract of a version; Triton wants its model called as its folder is."""
    _, contract = artifact.read_graph(version / artifact.MODEL, weights=False)
    return replace(contract, name=version.parent.name)


def _write(folder: Path, config: Mapping[str, Any], same: list[int], found: list[int]) -> str:
    """Write the configuration of versions `same` of all that were `found`, and what it refers to; a line about it."""
    left_out = [str(number) for number in found if number not in same]
    policy: dict[str, Any] = {"specific": {"versions": same}} if left_out else {"all": {}}
    text = signed(pbtxt({**config, "version_policy": policy}))
    path = folder / CONFIG
    if not _is_ours(path):
        anew = f"for a new one remove it and run python -m export triton {folder}"
        return f"{path} was written or edited by hand and stays so; {anew}"
    for name, data in initial_files(_contract(folder / str(same[-1]))).items():
        _replace(folder / INITIAL / name, data)
    _replace(path, text.encode())
    apart = f", but not version {', '.join(left_out)} (it has one configuration for all versions)" if left_out else ""
    return f"wrote {path}: Triton serves {folder.name}, too{apart}"


def signed(body: str) -> str:
    """A configuration that says whether it was edited since."""
    return HEADER.format(digest=_digest(body)) + body


def _is_ours(path: Path) -> bool:
    """Whether the file is as an export left it, or isn't there at all."""
    if not path.exists():
        return True
    text = path.read_bytes().decode(errors="replace")
    header = _HEADER.match(text)
    return header is not None and header[1] == _digest(text[header.end() :])


def _forget(folder: Path) -> None:
    """Remove a configuration that speaks of no version any more."""
    if _is_ours(folder / CONFIG):
        (folder / CONFIG).unlink(missing_ok=True)


def _replace(path: Path, data: bytes) -> None:
    """Write a file that appears whole or not at all."""
    path.parent.mkdir(exist_ok=True)
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        unfinished.write_bytes(data)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
