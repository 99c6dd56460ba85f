"""The documentation shows what was measured, and the benchmarks themselves run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from benchmarks import documentation, joint, machine, page, speed, textbook, timing
from tests import tiny


def test_the_documentation_shows_the_results() -> None:
    """Mended by ``python -m benchmarks --docs``."""
    results = page.read()
    if not documentation.DOCS.exists() or not results:
        pytest.skip("no docs or no results in this tree")
    text = documentation.DOCS.read_text("utf-8")
    assert text == documentation.with_tables(text, documentation.summary(results)), (
        "run python -m benchmarks --docs"
    )


def test_the_page_shows_the_results() -> None:
    """Mended by ``python -m benchmarks``."""
    results = page.read()
    if not results:
        pytest.skip("no results in this tree")
    written = (page.RESULTS / "benchmarks.md").read_text("utf-8")
    assert written == page.page(results)


def test_tables_go_between_the_markers_and_nowhere_else() -> None:
    text = f"above\n{documentation.BEGIN}\nold\n{documentation.END}\nbelow\n"
    once = documentation.with_tables(text, "new")
    assert once == f"above\n{documentation.BEGIN}\n\nnew\n\n{documentation.END}\nbelow\n"
    assert documentation.with_tables(once, "new") == once
    with pytest.raises(ValueError, match="has no <!-- benchmarks:begin -->"):
        documentation.with_tables("no markers", "new")


def test_pairs_are_interleaved_and_take_turns() -> None:
    order: list[str] = []
    found = timing.compare(
        lambda: order.append("plain"), {"other": lambda: order.append("other")}, 2
    )
    assert order[2:] == ["plain", "other", "other", "plain"]  # after warming up
    assert found["ratios"]["other"]["cpu"]["pairs"] == 2


def test_the_textbook_draws_what_the_pipeline_draws() -> None:
    draw = speed.Drawing(tiny.sd1(), 32, 2)
    plain = draw()
    with textbook.recording(draw.pipe) as maps:
        recorded = draw()
    torch.testing.assert_close(recorded, plain, atol=1e-4, rtol=1e-4)
    layers = sum(".attn2." in name for name in draw.pipe.unet.attn_processors)
    assert len(maps) == 2 * layers
    sums = maps[0].sum(-1)
    torch.testing.assert_close(sums, torch.ones_like(sums))


def test_the_textbook_edits_as_we_do() -> None:
    draw = speed.Drawing(tiny.sd1(), 32, 4)
    with textbook.replacing(draw.pipe, 4, side=8):
        dense = draw([speed.PROMPT, speed.OTHER])
    options = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 4, "side": 8}
    edit = speed.EDITS["replace"]
    ours = speed.xattn.edit(draw.pipe, speed.PROMPT, edit, **options, **draw.options)
    torch.testing.assert_close(dense[0], ours.source, atol=1e-3, rtol=1e-3)
    torch.testing.assert_close(dense[1], ours.images[0], atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", list(speed.RECORDINGS))
def test_recordings_keep_the_bytes_that_their_options_imply(name: str, tmp_path: Path) -> None:
    draw = speed.Drawing(tiny.sd1(), 32, 2)
    options = dict(speed.RECORDINGS[name])
    if options.get("to") == "folder":
        options["to"] = tmp_path
    with speed.xattn.record(draw.pipe, **options) as trace:
        draw()
    assert trace.nbytes == speed.implied(trace.run)


def test_joint_attention_is_asked_for_every_pair_of_shares() -> None:
    (case,) = joint.cases(1)
    asked = joint.edits_of(case, ((0.0, 0.4), (0.4, 0.0)))
    assert len(asked) == 3 * 2
    assert {kind for kind, _, _ in asked} == set(joint.KINDS)
    swap: Any = asked["swap", 0.4, 0.0]
    assert (swap.swaps, swap.cross_steps, swap.self_steps) == (
        {case.noun: case.new_noun},
        0.4,
        0.0,
    )
    figure = {"mean": 0.5, "low": 0.25, "high": 1.0, "count": 4}
    found = {"swap/all/0.4/0.0": {"done": figure, "kept": {**figure, "mean": 30.0}}}
    result = {"prompts": 4, "scored": 4, "steps": 2, "figures": found}
    part = {"machine": machine.facts(), "result": result}
    text = joint.markdown({"sweep": part, "defaults": part})
    assert "| swap | 0.4 | 0.0 | 30.0 dB (0.2 to 1.0) | 50.0 % (25.0 to 100.0; 4) | 85 % |" in text
    assert "| all | 0.4 | 0.0 | 30.0 dB (0.2 to 1.0) | 50.0 % (25.0 to 100.0; 4) |" in text


def test_nights_of_joint_attention_are_told_by_shares() -> None:
    figures = {
        f"{cross}/{self_}/{what}": {"mean": mean, "low": 0.0, "high": 1.0, "count": 4}
        for cross, self_ in joint.NIGHTS
        for what, mean in (("night", cross), ("object", 1 - self_))
    }
    result = {"prompts": 5, "scored": 4, "steps": 2, "figures": figures}
    text = joint.markdown({"night": {"machine": machine.facts(), "result": result}})
    assert "5 prompts, of which 4 show the object asked for" in text
    assert "| 0.1 | 0.1 | 10.0 % (0.0 to 100.0; 4) | 90.0 % (0.0 to 100.0; 4) |" in text
    assert joint.DEFAULTS[-1] in joint.NIGHTS
