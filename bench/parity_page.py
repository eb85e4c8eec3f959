"""The suite's report as one page: the worst ratio of each case, what changes no bit, the planted faults."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape

from export import page, plots
from export.yardstick import MAX_BAR, RMS_BAR
from model.contract import ParityRecord

Records = Mapping[str, Sequence[ParityRecord]]


def suite_page(records: Records, invariances: Mapping[str, bool], controls: Mapping[str, float]) -> str:
    """The page."""
    everything = [record for found in records.values() for record in found]
    passed = all(record.passed for record in everything) and all(ratio > 0 for ratio in controls.values())
    title = "Parity over a grid of models"
    text = f"{len(everything)} comparisons of {len(records)} models, from the reference cell to the answers over gRPC."
    sections = [
        page.heading(title, passed=passed, text=text),
        _worst(records),
        _equal(records),
        page.invariances_section(invariances),
        page.controls_section(controls),
        *(f"<h2>{escape(name)}</h2>\n{page.records_section(found)}" for name, found in records.items()),
    ]
    return page.document(title, sections)


def _worst(records: Records) -> str:
    judged = {name: [r for r in found if r.rms_bar >= 1] for name, found in records.items()}
    chosen = plots.colours(list(dict.fromkeys(r.subject for found in judged.values() for r in found)))

    def rows(field: str) -> list[tuple[str, list[tuple[str, float]]]]:
        return [
            (
                name,
                [
                    (s, max(getattr(r, field) for r in found if r.subject == s))
                    for s in dict.fromkeys(r.subject for r in found)
                ],
            )
            for name, found in judged.items()
        ]

    return (
        "<h2>The worst ratio of each case</h2>\n<p>Error against float64 as a multiple of PyTorch's own in float32, or"
        " of what roundings alone make (in int8, tf32 and fp16: by the same roundings in float64): the worst over all"
        " lengths, initial states, outputs and states.</p>\n"
        + plots.legend(chosen)
        + plots.dots(rows("rms_ratio"), chosen, bar=RMS_BAR, x="worst ratio of rms errors")
        + plots.dots(rows("max_ratio"), chosen, bar=MAX_BAR, x="worst ratio of largest errors")
    )


def _equal(records: Records) -> str:
    exact = [record for found in records.values() for record in found if not record.rms_bar]
    lines = []
    for subject in dict.fromkeys(record.subject for record in exact):
        found = [record.passed for record in exact if record.subject == subject]
        kind = "held" if all(found) else "failed"
        lines.append(f'<tr><td>{escape(subject)}</td><td class="{kind}">{sum(found)} of {len(found)} equal</td></tr>')
    return (
        "<h2>Chunks, batches and the server</h2>\n<p>The same streams in ragged chunks and changing batches, and as"
        " clients are answered, against each one alone in model.onnx: equality of bytes.</p>\n"
        f"<table>{''.join(lines)}</table>"
    )
