"""parity.html: one page, whole in itself, that shows what the certificate says."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path

from export import artifact, page, plots
from model.contract import Certificate


def certificate_at(folder: Path) -> Certificate:
    """The certificate of a proved artifact."""
    _, contract = artifact.read_graph(folder / artifact.RESIDENT, weights=False)
    assert contract.certificate is not None
    return contract.certificate


def pictures(text: str) -> list[ET.Element]:
    """All plots of a page, parsed."""
    return [ET.fromstring(found) for found in re.findall(r"<svg.*?</svg>", text, re.DOTALL)]


def test_a_proved_artifact_has_its_page(artifacts: Path) -> None:
    """Beside the certificate: four plots, every fault and circumstance by name, and nothing from elsewhere."""
    folder = artifacts / "vectors" / "1"
    text = (folder / artifact.PAGE).read_text()
    certificate = certificate_at(folder)
    assert len(pictures(text)) == 4
    assert not re.search(r"https?://|<script|<link|<img|@import|url\(", text)
    assert len(re.findall("<polyline", text)) == 3  # nn.LSTM in float32, and both graphs
    for name in (*certificate.controls, *certificate.invariances):
        assert name.replace("'", "&#x27;") in text
    assert text.count("<tr>") >= len(certificate.records)
    assert ">passed<" in text
    assert "FAILED" not in text


def test_failures_and_strange_names_are_shown_as_they_are(artifacts: Path) -> None:
    """A failed comparison, a difference and an unseen fault stand out; a name can't break the page."""
    certificate = certificate_at(artifacts / "tokens" / "1")
    record = replace(certificate.records[-1], passed=False, subject="<b>&")
    broken = replace(certificate, records=(record,), invariances={"chunking": False}, controls={"x": 0.0, "y": 5.0})
    text = page.artifact_page("<i>", broken, {})
    assert text.count("FAILED") == 2
    assert "bytes differ" in text
    assert "not seen" in text
    assert "1 of 2 caught" in text
    assert "<i>" not in text.split("<body>")[1].split("legend")[0].replace("<i style", "")
    assert "<b>" not in text


def test_curves_stand_errors_of_nothing() -> None:
    """Errors of zero have no place on a log scale: they are left out, and all of them make a sentence."""
    chosen = plots.colours(["a", "b"])
    assert "<svg" not in plots.curves({"a": [0.0, 0.0]}, chosen, x="step", y="error")
    (picture,) = pictures(plots.curves({"a": [0.0, 1e-7, 1e-6], "b": [1e-8]}, chosen, x="step", y="error"))
    assert len(picture.findall("polyline")) == 2
