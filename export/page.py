"""parity.html: what was proved, on one self-contained page that people can read. Owns words and their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape

from export import plots
from export.parity import DOUBLE
from export.precision import Precision
from export.report import cost, percent
from model.contract import Certificate, ParityRecord

STYLE = """
:root { color-scheme: light }
body { font: 15px/1.55 system-ui, sans-serif; color: #212529; background: #fff; max-width: 800px; margin: 2.5rem auto;
  padding: 0 1rem }
h1 { font-size: 1.7rem; margin: 0 } h2 { font-size: 1.15rem; margin: 2.4rem 0 .3rem }
p { margin: .4rem 0 } .quiet { color: #5c636a } code { font-size: .92em; overflow-wrap: anywhere }
.verdict { display: inline-block; padding: .1rem .7rem; border-radius: 1rem; color: #fff; font-weight: 600 }
.yes { background: #2b8a3e } .no { background: #c92a2a }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; fill: #343a40 }
.grid { stroke: #dee2e6 } .thread { stroke: #f1f3f5 } .bar { stroke: #c92a2a; stroke-width: 1.5 }
.beyond { fill: #fff5f5 } .curve { fill: none; stroke-width: 1.8; stroke-linejoin: round } .caught { fill: #2b8a3e }
.missed { fill: #868e96; font-style: italic } .axis { fill: #5c636a }
.legend span { margin-right: 1.1rem; white-space: nowrap }
.legend i { display: inline-block; width: .75em; height: .75em; border-radius: 50%; margin-right: .4em }
table { border-collapse: collapse; font-size: 13px } td, th { padding: .15rem .7rem .15rem 0; text-align: left }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums } .scroll { overflow-x: auto }
.held { color: #2b8a3e; font-weight: 600 } .failed { color: #c92a2a; font-weight: 600 }
"""
Curves = Mapping[str, Sequence[float]]


def artifact_page(name: str, certificate: Certificate, curves: Curves, precision: Precision = Precision.FP32) -> str:
    """The page of one artifact."""
    title = f"Parity of {name}"
    sections = [
        _head(title, certificate, precision),
        curves_section(curves, precision),
        cases_section(certificate.records, precision),
        invariances_section(certificate.invariances),
        controls_section(certificate.controls),
        states_section(certificate.states),
        _not_checked(certificate),
        records_section(certificate.records),
    ]
    return document(title, sections)


def document(title: str, sections: Iterable[str]) -> str:
    """A page of these sections, with nothing from elsewhere."""
    return (
        f'<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n<title>{escape(title)}</title>\n'
        '<meta name="viewport" content="width=device-width">\n'
        f"<style>{STYLE}</style>\n</head>\n<body>\n" + "\n".join(sections) + "\n</body>\n</html>\n"
    )


def heading(title: str, *, passed: bool, text: str) -> str:
    """What it is about, the verdict, and one sentence."""
    verdict = f'<span class="verdict {"yes" if passed else "no"}">{"passed" if passed else "FAILED"}</span>'
    return f"<h1>{escape(title)}</h1>\n<p>{verdict} {escape(text)}</p>"


def _head(title: str, certificate: Certificate, precision: Precision) -> str:
    text = f"{len(certificate.records)} comparisons, {certificate.created}, {certificate.machine}."
    versions = ", ".join(f"{name} {version}" for name, version in certificate.versions.items())
    return (
        heading(title, passed=certificate.passed, text=text)
        + f'\n<p class="quiet">{escape(versions)}<br>weights <code>{escape(certificate.weights_digest)}</code></p>'
        + (f"\n<p>{escape(cost(certificate.records, precision))}.</p>" if precision.reduced else "")
    )


def curves_section(curves: Curves, precision: Precision = Precision.FP32) -> str:
    """Error against step."""
    if not curves:
        return ""
    curves = {subject: errors for subject, errors in curves.items() if subject != DOUBLE}  # a world below the others
    chosen = plots.colours(list(curves))
    together = (
        "ONNX makes the errors that its precision's roundings make when emulated in float64"
        if precision.reduced
        else "ONNX is as exact as PyTorch"
    )
    return (
        "<h2>Error against step</h2>\n<p>How far each form's outputs are from the reference cell in float64 (rms over"
        f" streams and elements). Where the lines run together, {together}, however long a stream runs."
        " resident.onnx gives the bytes of model.onnx, so its line is dashed.</p>\n"
        + plots.legend(chosen)
        + "\n"
        + plots.curves(curves, chosen, x="step", y="rms error of y")
    )


def cases_section(records: Sequence[ParityRecord], precision: Precision = Precision.FP32) -> str:
    """The ratios that were found, case by case."""
    judged = [record for record in records if record.rms_bar >= 1]
    if not judged:
        return ""
    chosen = plots.colours(list(dict.fromkeys(record.subject for record in judged)))
    cases = dict.fromkeys((record.steps, record.initial) for record in judged)

    def rows(field: str) -> list[tuple[str, list[tuple[str, float]]]]:
        return [
            (
                f"T={steps}, {initial} state",
                [(r.subject, getattr(r, field)) for r in judged if (r.steps, r.initial) == (steps, initial)],
            )
            for steps, initial in cases
        ]

    return (
        "<h2>The ratio, case by case</h2>\n<p>Each dot is one tensor (y, h or c): its error as a multiple of PyTorch's"
        " own float32 error, or of what roundings alone make where that is more"
        + (f"; for ONNX in {precision}, of what the same roundings cost in float64" if precision.reduced else "")
        + ". The red line is the bar.</p>\n"
        + plots.legend(chosen)
        + plots.dots(rows("rms_ratio"), chosen, bar=judged[0].rms_bar, x="ratio of rms errors")
        + plots.dots(rows("max_ratio"), chosen, bar=judged[0].max_bar, x="ratio of largest errors")
    )


def invariances_section(invariances: Mapping[str, bool]) -> str:
    """What changes no bit."""
    if not invariances:
        return ""
    lines = "".join(
        f'<tr><td>{escape(name)}</td><td class="{"held" if held else "failed"}">'
        f"{'same bytes' if held else 'bytes differ'}</td></tr>"
        for name, held in invariances.items()
    )
    return (
        "<h2>What changes no bit of a stream's answers</h2>\n<p>Outputs and states of a stream run alone, in one chunk,"
        " against the same stream under other circumstances, on this machine's CPU.</p>\n"
        f"<table>{lines}</table>"
    )


def controls_section(controls: Mapping[str, float]) -> str:
    """Planted faults."""
    if not controls:
        return ""
    caught = sum(value > 0 for value in controls.values())
    return (
        f"<h2>Planted faults: {caught} of {len(controls)} caught</h2>\n<p>Each fault was planted into a copy of this"
        " model, and the same comparisons were made. The length is how many times the bar its error is (float32"
        " epsilons, where the bar is equality of bytes); 1 would still have passed.</p>\n"
        + plots.log_bars(controls, x="times the bar")
    )


def states_section(states: Mapping[str, str]) -> str:
    """What was taken for a state, and what says so."""
    lines = "".join(
        f"<tr><td><code>{escape(name)}</code></td><td>{escape(text)}</td></tr>" for name, text in states.items()
    )
    return f"<h2>What says that these are states</h2>\n<table>{lines}</table>" if states else ""


def _not_checked(certificate: Certificate) -> str:
    lines = "".join(f"<li>{escape(text)}</li>" for text in certificate.not_checked)
    return f"<h2>Not checked</h2>\n<ul>{lines}</ul>" if lines else ""


def records_section(records: Sequence[ParityRecord]) -> str:
    """Every figure."""
    lines = "".join(
        f"<tr><td>{escape(r.subject)}</td><td>{escape(r.tensor)}</td><td class=n>{r.steps}</td>"
        f"<td>{escape(r.initial)}</td><td class=n>{r.rms_error:.2e}</td><td class=n>{r.max_error:.2e}</td>"
        f"<td class=n>{r.rms_ratio:.3g}</td><td class=n>{r.max_ratio:.3g}</td>"
        f"<td class=n>{percent(r.share)}</td>"
        f'<td class="{"held" if r.passed else "failed"}">{"ok" if r.passed else "FAILED"}</td></tr>'
        for r in records
    )
    return (
        f"<details><summary>All {len(records)} comparisons</summary><div class=scroll><table><tr><th>level</th>"
        "<th>tensor</th><th class=n>T</th><th>state</th><th class=n>rms error</th><th class=n>largest</th>"
        "<th class=n>rms ratio</th><th class=n>max ratio</th><th class=n>share of rms</th><th></th></tr>"
        f"{lines}</table></div></details>"
    )
