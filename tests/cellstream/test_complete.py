"""The interactive example, against the fake server's idea of a byte-level model."""

from __future__ import annotations

import io
import os
import signal
import sys
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import cellstream
from cellstream.examples import complete
from tests.cellstream import fake_server
from tests.cellstream.fake_server import FakeServer


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeServer]:
    """A fake server with `bytelm`, whose likeliest next byte is the one after the last (a … z, then a again)."""
    tensor = fake_server._tensor
    monkeypatch.setitem(
        fake_server._MODELS,
        ("bytelm", 1),
        ([tensor("tokens", "int64", minimum=0, maximum=255)], [tensor("logits", "float32", (256,))]),
    )
    sums = fake_server.Sums.__call__

    def alphabet(self: fake_server.Sums, steps: int, inputs: list[bytes]) -> list[bytes]:
        if self.model != "bytelm":
            return sums(self, steps, inputs)
        logits = np.zeros((steps, 256), np.float32)
        tokens = np.frombuffer(inputs[0], np.int64)
        logits[np.arange(steps), np.where(tokens == ord("z"), ord("a"), tokens + 1) % 256] = 9.0
        self.next_step += steps
        return [logits.tobytes()]

    monkeypatch.setattr(fake_server.Sums, "__call__", alphabet)
    fake = FakeServer()
    yield fake
    fake.die()


@pytest.fixture
def console(client: cellstream.Client) -> tuple[complete.Console, list[str]]:
    """A console with one session, and what it has written."""
    written: list[str] = []
    made = complete.Console(client, "bytelm", complete.Settings(temperature=0, length=3), written.append)
    made.new()
    return made, written


def _said(written: list[str]) -> str:
    text = "".join(written)
    written.clear()
    return text


def test_text_is_completed_and_gone_on_from(console: tuple[complete.Console, list[str]]) -> None:
    """The completion follows what was typed, and an empty line goes on from the state on the server."""
    talk, written = console
    talk.handle("ab")
    assert _said(written) == "abcde\n"
    talk.handle("")
    assert _said(written) == "fgh\n"
    talk.handle("y")
    assert _said(written) == "yzab\n"


def test_sessions_have_their_own_state(console: tuple[complete.Console, list[str]]) -> None:
    """Several sessions at once, each where it was left."""
    talk, written = console
    talk.handle("a")
    talk.handle(":new")
    talk.handle("m")
    talk.handle(":use 1")
    _said(written)
    talk.handle("")
    assert _said(written) == "efg\n"
    talk.handle(":list")
    assert _said(written) == (
        "* 1: step 7 of bytelm/1 on cpu, after 'abcdefg'\n  2: step 4 of bytelm/1 on cpu, after 'mnop'\n"
    )
    talk.handle(":close")
    assert talk.prompt == "[2] > "
    talk.handle("")
    assert _said(written) == "qrs\n"


@pytest.mark.parametrize(
    ("line", "text"),
    [
        (":use 9", "no session 9"),
        (":use x", "'x' is no number"),
        (":nonsense", "no command ':nonsense'"),
        (":length 0", "length 0; it must be at least 1"),
        (":temperature -1", "temperature -1; it must be 0"),
        (":seed -1", "seed -1"),
        ("", "read nothing yet"),
    ],
)
def test_what_cannot_be_done_is_said(console: tuple[complete.Console, list[str]], line: str, text: str) -> None:
    """A wrong command names its value."""
    with pytest.raises(complete.Unusable, match=text):
        console[0].handle(line)


def test_settings_change_the_draw(console: tuple[complete.Console, list[str]]) -> None:
    """The same seed draws the same text, and length and temperature are obeyed."""
    talk, written = console
    drawn = []
    for _ in range(2):
        for line in (":new", ":length 8", ":temperature 50", ":seed 4", "a"):
            talk.handle(line)
        drawn.append(_said(written))
    assert drawn[0] == drawn[1]
    assert drawn[0] != "abcdefghi\n"
    talk.handle(":temperature 0")
    talk.handle(":help")
    assert ":new" in _said(written)


def test_ctrl_c_ends_the_completion_and_not_the_session(client: cellstream.Client) -> None:
    """After Ctrl-C the session stands right behind the last byte that was written."""
    written: list[str] = []

    def out(text: str) -> None:
        written.append(text)
        if text == "d":
            os.kill(os.getpid(), signal.SIGINT)

    talk = complete.Console(client, "bytelm", complete.Settings(temperature=0, length=20), out)
    talk.new()
    talk.handle("a")
    assert _said(written) == "abcd\n"
    talk.handle(":length 2")
    talk.handle("")
    assert _said(written) == "ef\n"


def _main(monkeypatch: pytest.MonkeyPatch, text: bytes, *arguments: str) -> int:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(text)))
    return complete.main(list(arguments))


def test_piped_text_is_completed_once(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With stdin no terminal its text is completed, and the program ends."""
    arguments = ("--address", server.address, "--temperature", "0", "--length", "4")
    assert _main(monkeypatch, b"w\n", *arguments) == 0
    assert capsys.readouterr().out == "wxyza\n"


def test_a_terminal_has_a_conversation(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lines are handled until Ctrl-D; Ctrl-C at the prompt and mistakes don't end it."""
    lines: Iterator[Any] = iter(["k", KeyboardInterrupt, ":oops", EOFError])

    def ask(prompt: str) -> str:
        line = next(lines)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(isatty=lambda: True))
    monkeypatch.setattr("builtins.input", ask)
    assert complete.main(["--address", server.address, "--temperature", "0", "--length", "2"]) == 0
    out = capsys.readouterr().out
    assert "klm\n" in out
    assert "no command ':oops'" in out


def test_what_is_wrong_is_said_in_one_line(
    server: FakeServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Another kind of model, an unknown one, and no server at all."""
    assert _main(monkeypatch, b"a", "--address", server.address, "--model", "vector") == 1
    assert "is no byte-level model" in capsys.readouterr().err
    assert _main(monkeypatch, b"a", "--address", server.address, "--model", "nope") == 1
    assert "no model 'nope'" in capsys.readouterr().err
    server.die()
    assert _main(monkeypatch, b"a", "--address", server.address) == 1
    assert "run `make serve` in another terminal" in capsys.readouterr().err
