"""Whether every node of a graph runs where it was asked to.

Owns the rule, and the one trial run whose profile shows where each node ran. ONNX Runtime gives a node to the CPU
without a word when its provider has no kernel for it, and copies tensors to and fro around it in every run.

The rule: on the CPU by right are nodes, and copies, that have to do with integers and booleans only, at most SMALL of
them in each tensor, or as many as there are lanes. That is what shapes, sizes and `lengths` are, which ONNX Runtime
keeps in the host's memory on purpose. Anything else (a number of the model's own, a whole batch of tokens, a slab) has
got there by accident.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from model.contract import LENGTHS, READ_ROWS, WRITE_ROWS, Contract, ContractError
from serving.device import Device, open_session
from serving.errors import ConfigError
from serving.graph_files import GraphFiles

SMALL = 8  # elements: more than any shape has axes
LANES = 16  # of the trial run

_COUNTS = frozenset({"bool", *(f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64))})
_COPIES = ("MemcpyToHost", "MemcpyFromHost")  # on the device's provider, and between it and the CPU
_NODE_SUFFIX = "_kernel_time"  # of the name of a node's own event
_NAMED = 5  # nodes that an error names


def read_contract(session: Any, path: Path) -> Contract:
    """The contract of a loaded graph. Raises ConfigError."""
    try:
        return Contract.from_metadata(session.get_modelmeta().custom_metadata_map)
    except ContractError as error:
        raise ConfigError(f"{path}: {error}", public=f"its {path.name} has no contract that can be read") from error


def check(source: Path | GraphFiles, device: Device, *, threads: int) -> Contract:
    """The contract of a graph, every one of whose nodes runs on `device`. Raises ConfigError."""
    path = source if isinstance(source, Path) else source.path
    with tempfile.TemporaryDirectory() as folder:
        session = open_session(source, device, threads=threads, profile=Path(folder) / "placement")
        contract = read_contract(session, path)
        try:
            session.run(None, _trial(contract))
        except Exception as error:
            raise ConfigError(f"{path}: it doesn't run on {device}: {error}") from error
        events = json.loads(Path(session.end_profiling()).read_text())
    found = list(misplaced(events, device.provider, lanes=LANES))
    if found:
        rest = f", and {len(found) - _NAMED} more" if len(found) > _NAMED else ""
        raise ConfigError(f"{path}: not all of it runs on {device}: {'; '.join(found[:_NAMED])}{rest}")
    return contract


def misplaced(events: Iterable[Mapping[str, Any]], provider: str, *, lanes: int) -> Iterator[str]:
    """What ran elsewhere than on `provider` by accident, according to a profile's events of a run of `lanes` lanes."""
    most, computed = max(SMALL, lanes), False
    for event in events:
        name, about = str(event.get("name", "")), event.get("args", {})
        if event.get("cat") != "Node" or not name.endswith(_NODE_SUFFIX):
            continue
        operator, place = about["op_name"], about["provider"]
        if place == provider and operator not in _COPIES:
            computed = True
            continue
        tensors = [*about["input_type_shape"], *about["output_type_shape"]]
        for dtype, shape in (pair for tensor in tensors for pair in tensor.items()):
            if dtype not in _COUNTS or math.prod(shape) > most:
                verb = "copies" if operator in _COPIES else f"on {place} with"
                yield f"{name.removesuffix(_NODE_SUFFIX)} ({operator}) {verb} {dtype}{shape}"
                break
    if not computed:
        yield f"no node ran on {provider}"


def _trial(contract: Contract) -> dict[str, npt.NDArray[Any]]:
    """What a run of a few lanes takes: two steps each where steps may differ, of which some lanes have one."""
    steps, lanes = 2 if contract.ragged else 1, 1 if contract.single_lane else LANES
    feeds: dict[str, npt.NDArray[Any]] = {
        LENGTHS: np.full(lanes, steps, np.int32),
        READ_ROWS: np.zeros(lanes, np.int64),
        WRITE_ROWS: np.arange(1, lanes + 1),
    }
    feeds[LENGTHS][1::2] = 1
    for spec in contract.inputs:
        feeds[spec.name] = np.full((lanes, steps, *spec.shape), spec.minimum or 0, spec.dtype)
    for slab in contract.slabs():
        feeds[slab.input] = np.zeros(slab.shape(2 * lanes), slab.dtype)
    return feeds
