"""A given picture in the app: looked at, clicked, edited, explained."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import xattn
from tests import tiny
from tests.app.pages import Page
from xattn.app.changes import Change
from xattn.app.drawing import Service
from xattn.app.script import script
from xattn.app.settings import Settings

PROMPT = "a red car"


def silent(done: int, total: int) -> None:
    """Wait for nothing."""


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "my photo.png"
    pixels = np.random.default_rng(0).integers(0, 255, (40, 72, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def test_a_picture_is_probed_as_by_the_library(service: Service, picture: Path) -> None:
    drawing = service.look(picture, Settings(PROMPT, steps=3))
    own = xattn.probe(tiny.sd1(), picture, PROMPT)
    assert np.array_equal(drawing.trace.heatmap("red"), own.heatmap("red"))
    assert drawing.given == "my photo.png"
    assert (drawing.settings.width, drawing.settings.height) == drawing.image.size
    assert drawing.at((0.5, 0.5)) == own.at((0.5, 0.5))
    ast.parse((drawing.folder / "script.py").read_text(encoding="utf-8"))


def test_a_picture_is_inverted_once_and_edited_often(service: Service, picture: Path) -> None:
    drawing = service.look(picture, Settings(PROMPT, steps=3))
    first = service.edit(drawing, {1: Change("blue")}, silent)
    inverted = drawing.inversion
    second = service.edit(drawing, {2: Change("boat")}, silent)
    assert inverted is not None
    assert drawing.inversion is inverted
    assert first.result is not None
    assert second.result is not None
    assert second.result.prompts == (PROMPT, "a red boat")
    assert np.array_equal(np.asarray(first.result.source), np.asarray(second.result.source))


def test_the_script_of_a_picture_looks_and_edits() -> None:
    text = script(
        Settings(PROMPT), [[xattn.Replace("red", "blue")]], None, "torch.float32", "a.png"
    )
    assert "trace = xattn.probe(pipe, picture, prompt, seed=0)" in text
    assert "    image=picture,\n" in text
    assert "width" not in text
    ast.parse(text)


def test_words_are_explained_as_by_the_library(service: Service, picture: Path) -> None:
    drawing = service.look(picture, Settings(PROMPT, steps=3))
    why = service.explain(drawing, "occlusion")
    own = xattn.attribute(tiny.sd1(), xattn.probe(tiny.sd1(), picture, PROMPT))
    assert why.scores == pytest.approx(own.scores)


def test_a_file_that_is_no_picture_is_told_and_leaves_nothing(
    service: Service, tmp_path: Path
) -> None:
    path = tmp_path / "notes.png"
    path.write_text("no picture")
    before = set(service.root.iterdir())
    with pytest.raises(ValueError, match="notes"):
        service.look(path, Settings(PROMPT, steps=3))
    assert set(service.root.iterdir()) == before


@pytest.mark.browser
@pytest.mark.slow
def test_a_visitor_uploads_clicks_edits_and_asks_why(
    browser: Any, address: str, picture: Path
) -> None:
    page = Page(browser, address)
    page.tab("A picture of yours")
    page.until(lambda: page.all("#given input[type=file]"))
    page.find("#look").click()
    page.until(lambda: any("No picture yet" in text for text in page.toasts()))
    page.find("#given input[type=file]").send_keys(str(picture))
    page.until(lambda: page.all("#given img"))
    page.write("#given-text", PROMPT)
    page.find("#look").click()
    page.until(lambda: [word.text for word in page.words()] == ["a", "red", "car"])
    page.until(lambda: page.all("#map img"))
    page.find("#map img").click()
    page.until(lambda: "(other tokens)" in page.find("#ranked").text)
    page.keep("app-picture")

    page.words()[1].click()
    page.until(lambda: page.value("#becomes") == "red")
    page.write("#becomes", "blue")
    page.until(lambda: page.value("#changes") == "red \N{RIGHTWARDS ARROW} blue")
    page.find("#edit").click()
    page.until(lambda: len(page.all("#compare img")) == 2)
    page.keep("app-picture-edit")

    page.tab("Why")
    page.find("#explain").click()
    page.until(lambda: page.all("#bars img") and page.all("#beside img"))
    shown = page.picture("#beside img")
    page.words()[2].click()
    page.changed(shown, "#beside img")
    page.keep("app-why")
    assert page.complaints() == []
