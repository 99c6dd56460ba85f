"""Diagnoses of a batch: how many images have each finding, and a page of the worst."""

from __future__ import annotations

from pathlib import Path

import xattn
from tests import tiny
from xattn import batch

EVERYTHING = xattn.Thresholds(neglected=0, leaked=0, merged=0, background=0, displaced=0)


def test_findings_are_counted_and_shown_the_worst_first(tmp_path: Path) -> None:
    prompts = ["a red car and a <b>", "a red car and a blue boat", "red"]
    lines = [{"prompt": text, "size": [16, 16], "steps": 1} for text in prompts]
    batch.run(tiny.sd1(), lines, tmp_path / "runs", batch_size=3)
    found = xattn.open_runs(tmp_path / "runs").diagnose(thresholds=EVERYTHING)
    assert found.items == 3
    assert found.counts["Merged"] == 2
    assert len(found.worst) == 2  # "red" alone has no noun
    scores = [max(each.score for each in findings) for _, findings in found.worst]
    assert scores == sorted(scores, reverse=True)
    found.page(tmp_path / "wrong.html", most=1)
    page = (tmp_path / "wrong.html").read_text()
    run, findings = found.worst[0]
    assert str(found) in page
    assert page.count("<section>") == 1
    assert page.count("<img") == 1 + len(findings)  # the image, and a map of each finding
    assert ("&lt;b&gt;" in page) == ("<b>" in run.prompt)
    assert "<script" not in page
