"""What people read of an export: the table's columns, and the sentence on what a precision costs."""

from __future__ import annotations

from typing import Any

from rich.console import Console

from export.parity import EMULATED
from export.precision import Precision
from export.report import cost, parity_table, percent
from model.contract import ParityRecord


def record(subject: str, share: float, share_bar: float) -> ParityRecord:
    """A record that passed, with these shares."""
    sizes: dict[str, Any] = {
        "rms_error": 1.0,
        "max_error": 1.0,
        "rms_ratio": 1.0,
        "max_ratio": 1.0,
        "rms_bar": 2.0,
        "max_bar": 4.0,
    }
    return ParityRecord(subject, "truth", "y", 10, "zero", passed=True, share=share, share_bar=share_bar, **sizes)


def shown(*records: ParityRecord) -> str:
    """The table as text, wide enough for all of it."""
    console = Console(width=160)
    with console.capture() as text:
        console.print(parity_table(records))
    return text.get()


def test_shares_are_shown_where_something_is_asked_of_them() -> None:
    """A reduced precision has a column with the worst share and its bar; float32 has none."""
    reduced = shown(record("nn.LSTM float32", 1e-7, 0), record("model.onnx", 0.0123, 0.02))
    assert "1.2% / 2%" in reduced
    assert "<0.001%" in reduced
    assert "same roundings make when" in " ".join(reduced.split())
    assert "share" not in shown(record("model.onnx", 1e-7, 0))


def test_the_cost_says_whether_it_is_usual() -> None:
    """Within the limit, beyond it because the model amplifies, and nothing at all in float32."""
    usual = cost([record(EMULATED, 0.011, 0.02), record("model.onnx", 0.0123, 0.02)], Precision.INT8)
    assert "an error of 1.2% of a tensor's rms at worst (1.1% where" in usual
    assert usual.endswith("and the limit is 2%")
    wild = cost([record(EMULATED, 0.31, 0.62), record("model.onnx", 0.32, 0.62)], Precision.INT8)
    assert "an error of 32%" in wild
    assert "BEYOND the usual 2%, since this model amplifies roundings" in wild
    assert cost([record("model.onnx", 1e-7, 0)], Precision.FP32) == ""


def test_percents_have_two_digits() -> None:
    """And nothing below a thousandth of one."""
    assert [percent(share) for share in (0, 1e-7, 0.00052, 0.0123, 0.3)] == ["0%", "<0.001%", "0.052%", "1.2%", "30%"]
