"""Numbers on the command lines: types for argparse, whose refusals name the option and the value."""

from __future__ import annotations

import argparse

_MOST = (1 << 63) - 1  # an int64, as the protocol has it


def whole(text: str) -> int:
    """A whole number that the protocol can hold. Raises ArgumentTypeError."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a whole number") from None
    if abs(number) > _MOST:
        raise argparse.ArgumentTypeError(f"{text} is too large; the largest is {_MOST}")
    return number


def count(text: str) -> int:
    """A whole number from 0 on. Raises ArgumentTypeError."""
    number = whole(text)
    if number < 0:
        raise argparse.ArgumentTypeError(f"{text} is below 0")
    return number


def seconds(text: str) -> float:
    """A number of seconds from 0 on. Raises ArgumentTypeError."""
    try:
        number = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} isn't a number of seconds") from None
    if not number >= 0:
        raise argparse.ArgumentTypeError(f"{text} isn't a number of seconds from 0 on")
    return number
