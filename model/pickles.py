"""Files of torch.save, read without running code of theirs: objects of other classes come as inert stand-ins.

Owns what is read past and what is refused by its name. Knows nothing of weights.
"""

from __future__ import annotations

import io
import pickle
import re
import warnings
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

_MOST = 500  # classes in one file
_REFUSED = re.compile(r"GLOBAL (\S+) was not an allowed global")
_BLOCKED = re.compile(r"GLOBAL (\S+) whose module \S+ is blocked")
_FILLED = re.compile(r"Can only (SETITEM|append|extend).*<class 'stand_in\.([^']+)'>", re.DOTALL)
_RUNS_CODE = re.compile(
    r"(os|posix|nt|sys|subprocess|shutil|socket|runpy|importlib|ctypes|pty|webbrowser|builtins\.(eval|exec|compile|open"
    r"|__import__))\b"
)
_ADVICE = re.compile(r"\x1b\[[0-9;]*m|Please use `torch.*|Check the documentation.*", re.DOTALL)


class PickleError(ValueError):
    """A file that can't be read without running code, or at all; the text says why and what to do."""


class Foreign:
    """An object of a class that wasn't run: its class's name, and whatever the file says of it."""

    origin = ""

    def __new__(cls, *parts: Any) -> Any:
        """Keep what the file gives the class."""
        made = super().__new__(cls)
        made.parts = list(parts)
        return made

    def __init__(self, *_: Any) -> None:
        self.parts: list[Any]

    def __setstate__(self, state: Any) -> None:
        """Keep what the file would set."""
        self.parts.append(state)

    @property
    def what(self) -> str:
        """What it is, in a few words."""
        if "numpy" in self.origin and self.origin.endswith("._reconstruct"):
            return "a numpy array"
        return f"a whole pickled module ({self.origin})" if self.is_module else f"an object of {self.origin}"

    @property
    def is_module(self) -> bool:
        """Whether it is a torch.nn.Module, by its attributes."""
        return any(isinstance(part, dict) and {"_parameters", "_modules"} <= part.keys() for part in self.parts)


class _Mapping(Foreign):
    """A subclass of dict: its items are read, nothing of its own runs."""

    def __new__(cls, *_: Any) -> Any:
        """Give what PyTorch's reader fills."""
        return OrderedDict()


class _Sequence(Foreign):
    """A subclass of list, or a deque."""

    def __new__(cls, *_: Any) -> Any:
        """Give what PyTorch's reader fills."""
        return []


class _Attribute(Foreign):
    """What getattr would give: something that may be called, and gives a stand-in."""

    origin = "an attribute"


class _GetAttribute(Foreign):
    def __new__(cls, *_: Any) -> Any:
        """Give no attribute of anything."""
        return _Attribute


_KNOWN: dict[str, type[Foreign]] = {
    "builtins.getattr": _GetAttribute,
    "collections.defaultdict": _Mapping,
    "collections.deque": _Sequence,
}


def read(path: Path | io.BytesIO) -> Any:
    """The file's content, its foreign objects as Foreign; raises PickleError in one sentence."""
    stand_ins: dict[str, type[Foreign]] = {}
    for name in _classes(path):
        _add(stand_ins, name)
    while True:
        try:
            return _load(path, stand_ins)
        except pickle.UnpicklingError as error:
            if len(stand_ins) > _MOST or not _learn(stand_ins, str(error)):
                raise PickleError(_said(error, stand_ins)) from error
        except PickleError:
            raise
        except Exception as error:  # PyTorch's own rebuilding meets stand-ins where it needs the real thing
            raise PickleError(_said(error, stand_ins)) from error


def _load(path: Path | io.BytesIO, stand_ins: dict[str, type[Foreign]]) -> Any:
    if isinstance(path, io.BytesIO):
        path.seek(0)
    safe: list[Any] = [(made, name) for name, made in stand_ins.items()]
    with warnings.catch_warnings(), torch.serialization.safe_globals([*safe, (_Attribute, "stand_in.attribute")]):
        warnings.simplefilter("ignore")
        return torch.load(path, map_location="cpu", weights_only=True)


def _classes(path: Path | io.BytesIO) -> list[str]:
    """The names of classes and functions that PyTorch's reader doesn't know, if it can list them."""
    try:
        return list(torch.serialization.get_unsafe_globals_in_checkpoint(path))
    except Exception:  # noqa: BLE001  older formats; loading finds them one by one
        return []


def _add(stand_ins: dict[str, type[Foreign]], name: str, base: type[Foreign] | None = None) -> None:
    name = name if "." in name else f"builtins.{name}"
    if _RUNS_CODE.match(name):
        raise PickleError(f"it calls {name} when it is loaded, as attacks do: nothing of it was read; get it elsewhere")
    base = base or _KNOWN.get(name, Foreign)
    stand_ins[name] = type(name, (base,), {"origin": name, "__module__": "stand_in"})


def _learn(stand_ins: dict[str, type[Foreign]], message: str) -> bool:
    """Add what the reader missed, or let a stand-in be filled; whether there was such a thing."""
    if (found := _REFUSED.search(message)) and found[1] not in stand_ins:
        _add(stand_ins, found[1])
        return True
    if (found := _BLOCKED.search(message)) is not None:
        _add(stand_ins, found[1])
    found = _FILLED.search(message)
    if found and issubclass(stand_ins.get(found[2], _Mapping), (_Mapping, _Sequence)) is False:
        _add(stand_ins, found[2], _Mapping if found[1] == "SETITEM" else _Sequence)
        return True
    return False


def _said(error: Exception, stand_ins: dict[str, type[Foreign]]) -> str:
    """PyTorch's reason without its advice to run the file's code, and the classes in question."""
    text = str(error)
    text = text.rpartition("WeightsUnpickler error:")[2] or text
    reason = " ".join(_ADVICE.sub("", text).split()).strip(". ") or type(error).__name__
    if "Unsupported operand" in reason:
        reason = "it was saved with a newer pickle_protocol than torch.save's own, 2"
    if "Only persistent_load of storage" in reason:
        reason = "it holds whole pickled modules"
    known = [name for name in stand_ins if not name.startswith(("numpy.", "builtins."))]
    of = f" (objects of {', '.join(known[:6])})" if known else ""
    return (
        f"PyTorch can't read it without running its code{of}: {reason}; in the program that wrote it:"
        " torch.save(module.state_dict(), path)"
    )
