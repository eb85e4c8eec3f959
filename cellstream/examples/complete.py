"""Type the beginning of some text, and watch a served byte-level model complete it, character by character.

Every session is one stream: all that was typed and written so far is in its state on the server, and nothing of it
here. Needs a model that takes one byte per step (int64) and gives 256 logits, like the demo's `bytelm`.
"""

from __future__ import annotations

import argparse
import codecs
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType
from typing import Any

import numpy as np
import numpy.typing as npt

import cellstream

HELP = """\
Type the beginning of some text: the model goes on from there. An empty line: it goes on from where it is.
  :new            start a session with fresh state, and use it    :use N   use session N
  :list           the sessions that are open                      :close   end this session
  :temperature T  0: always the likeliest byte; 1: as trained     :seed N  draw the same way again
  :length N       bytes to write each time                        :help    this page
Ctrl-C ends a completion, Ctrl-D the program.
"""
STEP_SECONDS = 30.0  # no answer within this: the server hangs


class Unusable(Exception):  # noqa: N818  the user's to mend, said in one line
    """What the user asked for can't be done."""


@dataclass
class Settings:
    """How the next byte is chosen, and how many are."""

    temperature: float = 0.7
    length: int = 200
    seed: int = 0
    dice: np.random.Generator = field(init=False)

    def __post_init__(self) -> None:
        self.reseed(self.seed)

    def reseed(self, seed: int) -> None:
        """Draw from the beginning again."""
        self.seed, self.dice = seed, np.random.default_rng(seed)

    def choose(self, logits: npt.NDArray[np.float32]) -> int:
        """A byte, from logits [256]: the likeliest at temperature 0, else drawn from softmax(logits / temperature)."""
        if self.temperature == 0:
            return int(np.argmax(logits))
        # argmax(x / t + Gumbel noise) is a draw from softmax(x / t): the Gumbel-max trick
        return int(np.argmax(logits / self.temperature + self.dice.gumbel(size=logits.shape)))


class Session:
    """One stream and what it expects next."""

    def __init__(self, client: cellstream.Client, model: str) -> None:
        self._stream = client.stream(model)
        try:
            check_model(self._stream.model)
        except Unusable:
            self._stream.close()
            raise
        self._logits: npt.NDArray[np.float32] | None = None  # [256], of the byte that comes next
        self.tail = b""  # the last few bytes, to know the session by

    def read(self, text: bytes) -> None:
        """Take in what was typed."""
        if text:
            # Out of date until the answer is here: should it never come, there is nothing to go on from.
            self._logits = None
            self._logits = self._stream.step(np.frombuffer(text, np.uint8), timeout=STEP_SECONDS)[-1]
            self.tail = (self.tail + text)[-40:]

    def write(self, settings: Settings) -> Iterator[bytes]:
        """The completion, byte by byte; each is in the stream's state when it is given."""
        if self._logits is None:
            raise Unusable("this session has read nothing yet: type the beginning of some text")
        for _ in range(settings.length):
            byte = bytes([settings.choose(self._logits)])
            self.read(byte)
            yield byte

    def describe(self) -> str:
        """Where it stands, in one line."""
        model = self._stream.model
        tail = self.tail.decode(errors="replace")
        state = f"{model.name}/{model.version} on {model.device}"
        return f"step {self._stream.answered_step} of {state}, after {tail!r}"

    def close(self) -> None:
        """End the stream."""
        self._stream.close()


class Console:
    """The sessions and the commands; lines come in through `handle`, text leaves through `out`."""

    def __init__(self, client: cellstream.Client, model: str, settings: Settings, out: Callable[[str], None]) -> None:
        self._client = client
        self._model = model
        self._settings = settings
        self._out = out
        self._sessions: dict[int, Session] = {}
        self._opened = 0
        self._current = 0
        self._stop = False
        self._commands: dict[str, Callable[[str], None]] = {
            "new": lambda _: self.new(),
            "use": self._use,
            "list": self._list,
            "close": self._close,
            "temperature": self._set_temperature,
            "seed": self._set_seed,
            "length": self._set_length,
            "help": lambda _: self._out(HELP),
        }

    @property
    def prompt(self) -> str:
        """What stands before the user's line."""
        return f"[{self._current}] > "

    def new(self) -> None:
        """Open a session and use it."""
        session = Session(self._client, self._model)
        self._opened += 1
        self._current = self._opened
        self._sessions[self._current] = session

    def handle(self, line: str) -> None:
        """A command, or text to complete. Raises Unusable, or why the session's stream failed."""
        if not line.startswith(":"):
            self.complete(line.encode("utf-8", "surrogateescape"), echo=True)
            return
        name, _, argument = line[1:].partition(" ")
        command = self._commands.get(name)
        if command is None:
            raise Unusable(f"no command {line!r}; :help names them")
        command(argument.strip())

    def complete(self, text: bytes, *, echo: bool) -> None:
        """Read `text` and write on from it, until the length or Ctrl-C; a stream that fails is forgotten."""
        session = self._session()
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        try:
            with _interruptible(self):
                session.read(text)
                if echo:
                    self._out(decoder.decode(text))
                for byte in session.write(self._settings):
                    self._out(decoder.decode(byte))
                    if self._stop:
                        break
        except cellstream.StepTimeout:
            raise  # the stream goes on
        except cellstream.CellstreamError:
            del self._sessions[self._current]
            raise
        finally:
            self._out("\n")

    def interrupt(self) -> None:
        """End the completion that is under way, after its next byte."""
        self._stop = True

    def resume(self) -> None:
        """Let completions run again."""
        self._stop = False

    @property
    def interrupted(self) -> bool:
        """Whether the completion was told to end."""
        return self._stop

    def _session(self) -> Session:
        if self._current not in self._sessions:
            raise Unusable("no session is in use; :new starts one, :list names those that are open")
        return self._sessions[self._current]

    def _use(self, argument: str) -> None:
        number = _number(argument, int)
        if number not in self._sessions:
            raise Unusable(f"no session {number}; :list names those that are open")
        self._current = number

    def _list(self, _: str) -> None:
        for number, session in self._sessions.items():
            self._out(f"{'*' if number == self._current else ' '} {number}: {session.describe()}\n")

    def _close(self, _: str) -> None:
        self._session().close()
        del self._sessions[self._current]
        self._current = max(self._sessions, default=0)

    def _set_temperature(self, argument: str) -> None:
        temperature = _number(argument, float)
        if not 0 <= temperature <= 100:
            raise Unusable(f"temperature {argument}; it must be 0 … 100")
        self._settings.temperature = temperature

    def _set_seed(self, argument: str) -> None:
        seed = _number(argument, int)
        if seed < 0:
            raise Unusable(f"seed {argument}; it must not be negative")
        self._settings.reseed(seed)

    def _set_length(self, argument: str) -> None:
        length = _number(argument, int)
        if length < 1:
            raise Unusable(f"length {argument}; it must be at least 1")
        self._settings.length = length


def check_model(model: cellstream.Model) -> None:
    """Raise Unusable unless the model reads bytes and gives 256 logits."""
    shapes = [(t.dtype, t.shape) for t in (*model.inputs, *model.outputs)]
    if shapes != [("int64", ()), ("float32", (256,))]:
        tensors = ", ".join(f"{t.name} {t.dtype}{list(t.shape)}" for t in (*model.inputs, *model.outputs))
        raise Unusable(f"model {model.name!r} ({tensors}) is no byte-level model: int64[] in, float32[256] out")


@contextmanager
def _interruptible(console: Console) -> Iterator[None]:
    """Ctrl-C ends the completion between two bytes, so that the stream stays whole; a second one ends it at once."""

    def stop(number: int, frame: FrameType | None) -> None:
        if console.interrupted:
            signal.default_int_handler(number, frame)
        console.interrupt()

    console.resume()
    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _number(text: str, kind: Callable[[str], Any]) -> Any:
    try:
        return kind(text)
    except ValueError:
        raise Unusable(f"{text!r} is no number") from None


def _converse(console: Console, out: Callable[[str], None]) -> None:
    """Lines from the terminal, until Ctrl-D."""
    out(HELP)
    while True:
        try:
            console.handle(input(console.prompt))
        except EOFError:
            out("\n")
            return
        except KeyboardInterrupt:
            out("\n")
        except (Unusable, cellstream.CellstreamError) as error:
            out(f"{_explain(error)}\n")


def _explain(error: Exception) -> str:
    if isinstance(error, cellstream.StreamLost):
        return f"{error}\nThis session is over; :new starts another."
    return str(error)


def _out(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _arguments(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m cellstream.examples.complete",
        description=__doc__,
        epilog="Text piped in is completed once.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--address", default="127.0.0.1:50051", help="host:port of the server")
    parser.add_argument("--model", default="bytelm", help="its name on the server")
    parser.add_argument("--temperature", type=float, default=0.7, help="0: always the likeliest byte (default: 0.7)")
    parser.add_argument("--length", type=int, default=200, help="bytes to write each time (default: 200)")
    parser.add_argument("--seed", type=int, default=0, help="of the draws (default: 0)")
    arguments = parser.parse_args(argv)
    if not 0 <= arguments.temperature <= 100 or arguments.length < 1 or arguments.seed < 0:
        parser.error("--temperature must be 0 … 100, --length at least 1, --seed not negative")
    return arguments


def main(argv: list[str] | None = None) -> int:
    """Run the example; returns its exit code."""
    arguments = _arguments(argv)
    settings = Settings(arguments.temperature, arguments.length, arguments.seed)
    with cellstream.connect(arguments.address, retry=cellstream.Retry(attempts=2)) as client:
        console = Console(client, arguments.model, settings, _out)
        try:
            console.new()
            if sys.stdin.isatty():
                _converse(console, _out)
            else:
                console.complete(sys.stdin.buffer.read().removesuffix(b"\n"), echo=True)
        except cellstream.StreamLost as error:
            sys.stderr.write(f"{error}\n")
        except cellstream.Unavailable as error:
            sys.stderr.write(f"No server at {arguments.address}: run `make serve` in another terminal.\n({error})\n")
        except (Unusable, cellstream.CellstreamError) as error:
            sys.stderr.write(f"{error}\n")
        except KeyboardInterrupt:
            return 130
        except BrokenPipeError:  # nobody reads on: nothing is wrong, and nothing more can be said
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return 0
        else:
            return 0
    return 1


if __name__ == "__main__":
    sys.exit(main())
