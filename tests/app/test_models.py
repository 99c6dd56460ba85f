"""Several models on the app's shelf: chosen, loaded once, drawn with, and named in scripts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests import tiny
from tests.app.conftest import served
from tests.app.pages import Page
from tests.tiny import transformers
from xattn.app.drawing import Service
from xattn.app.script import script
from xattn.app.settings import Limits, Settings
from xattn.app.shelf import Shelf

LIMITS = Limits(steps=10, side=128, edits=2)


def test_a_model_is_loaded_once_when_it_is_first_asked_for() -> None:
    loads: list[str] = []

    def load() -> Any:
        loads.append("joint")
        return transformers.sd3()

    shelf = Shelf(tiny.sd1(), None, {"joint": load})
    assert shelf.names == ["unet", "joint"]
    assert not loads
    assert shelf.pipe("joint") is shelf.pipe("joint")
    assert shelf.pipe() is shelf.pipe("unet") is not shelf.pipe("joint")
    assert loads == ["joint"]
    with pytest.raises(ValueError, match=r"no model 'other' here: choose one of unet, joint"):
        shelf.pipe("other")


def test_a_drawing_is_edited_and_explained_by_the_model_that_drew_it(tmp_path: Path) -> None:
    service = Service(tiny.sd1(), "mine", LIMITS, tmp_path, {"joint": transformers.sd3})
    settings = Settings("a red car", steps=2, width=64, height=64, model="joint")
    drawing = service.draw(settings, lambda done, total: None)
    layers = drawing.layers
    assert layers
    assert all(name.startswith("transformer_blocks") for name in layers)
    assert set(service.explain(drawing, "occlusion").words) == {"a", "red", "car"}
    assert "from_pretrained('joint'" in (drawing.folder / "script.py").read_text("utf-8")


@pytest.mark.parametrize(("model", "says"), [(None, "demo("), ("mmdit", "demo('mmdit', ")])
def test_the_script_loads_a_bundled_model_by_its_name(model: str | None, says: str) -> None:
    assert f"xattn.{says}dtype=torch.float32)" in script(Settings("a"), [], model, "torch.float32")


@pytest.mark.browser
def test_a_visitor_chooses_another_model(browser: Any, tmp_path: Path) -> None:
    with served(tmp_path, "--max-steps", "2") as address:
        page = Page(browser, address)
        page.draw("a red car")
        page.choose("#model", "mmdit")
        before = page.picture()
        page.find("#draw").click()
        page.changed(before)
        before = page.picture()
        page.slide("#layer", 1)
        page.changed(before)
        assert "layer 0" in page.value("#shown")
        page.keep("app-models")
        assert page.complaints() == []
