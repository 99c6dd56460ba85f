from __future__ import annotations

import json
from pathlib import Path
from random import Random
from typing import Any

import pytest

from tests import fuzz
from xattn.batch.items import Failure


def test_the_first_cases_find_nothing(tmp_path: Path) -> None:
    assert [fuzz.case(seed, tmp_path) for seed in range(40)] == [None] * 40


def test_a_report_that_does_not_escape_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("xattn.views.report.page._json", json.dumps)
    found = [fuzz.case(seed, tmp_path) for seed in range(3, 200, 4)]
    assert any(each and "report" in each for each in found)


def test_a_recording_misread_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def misread(path: Path) -> list[Any]:
        return [fuzz.make_run(steps=2, latent=(4, 6), seed=2)]

    monkeypatch.setattr(fuzz, "load", misread)
    with pytest.raises(fuzz.Found, match="other maps"):
        fuzz.recordings(Random(0), tmp_path)


def test_a_lost_line_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fuzz, "read_items", lambda path: ([], [Failure(0, "all is lost")]))
    with pytest.raises(fuzz.Found, match="the sound line was lost"):
        fuzz.lines(Random(0), tmp_path)
