"""The report in a real browser: what a reader does, and what they see."""

from __future__ import annotations

import base64
import hashlib
import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from tests.runs import LAYERS, make_run, tensors_of
from xattn.results.trace import Trace

pytestmark = pytest.mark.browser

TEXT = '<script>alert(1)</script> "quotes" & a red car'
ARTIFACTS = Path(__file__).parents[1] / "artifacts"
WIDE, PHONE = (1280, 900), (390, 844)


class Page:
    """A report that is open."""

    def __init__(self, browser: Any, path: Path, *, dark: bool = False, size: Any = WIDE) -> None:
        self.browser = browser
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": scheme})
        browser.execute_cdp_cmd(
            "Emulation.setDeviceMetricsOverride",
            {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False},
        )
        browser.get_log("browser")
        browser.get(path.as_uri())
        self.settle()

    def find(self, css: str) -> Any:
        return self.browser.find_element("css selector", css)

    def words(self) -> list[Any]:
        return self.browser.find_elements("css selector", "#prompt button")

    def settle(self) -> None:
        self.browser.execute_async_script(
            "const done = arguments[0];"
            "requestAnimationFrame(() => requestAnimationFrame(() => setTimeout(done, 30)))"
        )

    def slide(self, name: str, value: float) -> None:
        self.browser.execute_script(
            "const i = document.getElementById(arguments[0]); i.value = arguments[1];"
            "i.dispatchEvent(new Event('input', {bubbles: true}))",
            name,
            str(value),
        )
        self.settle()

    def pixels(self) -> np.ndarray:
        url = self.browser.execute_script(
            "return document.getElementById('view').toDataURL('image/png')"
        )
        return np.asarray(
            Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert("RGB")
        )

    def digest(self) -> str:
        return hashlib.sha256(self.pixels().tobytes()).hexdigest()

    def keep(self, name: str) -> None:
        ARTIFACTS.mkdir(exist_ok=True)
        (ARTIFACTS / ".gitignore").write_text("*\n")
        height = self.browser.execute_script("return document.documentElement.scrollHeight")
        shot = self.browser.execute_cdp_cmd(
            "Page.captureScreenshot",
            {
                "captureBeyondViewport": True,
                "clip": {
                    "x": 0, "y": 0, "scale": 1, "height": height,
                    "width": self.browser.execute_script("return innerWidth"),
                },
            },
        )  # fmt: skip
        (ARTIFACTS / f"{name}.png").write_bytes(base64.b64decode(shot["data"]))

    def complaints(self) -> list[str]:
        return [entry["message"] for entry in self.browser.get_log("browser")]


@pytest.fixture
def trace() -> Trace:
    run = make_run([TEXT], steps=6)
    heat = torch.full_like(tensors_of(run)[0], 0.001)
    for step in range(6):
        heat[step, :, :, :, 2, step * 2] = 0.5  # a spot that wanders to the right
    tensors_of(run)[0].copy_(heat)
    return Trace([run])


@pytest.fixture
def report(trace: Trace, tmp_path: Path) -> Path:
    path = tmp_path / "report.html"
    trace.report(path, on=Image.new("RGB", (384, 256), (40, 70, 40)))
    return path


def test_a_reader_clicks_a_word_and_moves_the_step(browser: Any, report: Any) -> None:
    page = Page(browser, report)
    assert [w.text for w in page.words()][-2:] == ["red", "car"]
    seen = [page.digest()]
    page.words()[-2].click()
    page.settle()
    assert page.words()[-2].get_attribute("aria-pressed") == "true"
    assert "red" in page.find("#shown").text
    seen.append(page.digest())
    for step in (1, 3, 6):
        page.slide("step", step)
        assert f"step {step - 1}" in page.find("#shown").text
        seen.append(page.digest())
    page.slide("layer", 2)
    seen.append(page.digest())
    assert len(set(seen)) == len(seen)
    assert page.complaints() == []


def test_the_canvas_is_brightest_where_the_map_is_highest(browser: Any, report: Any) -> None:
    page = Page(browser, report)
    page.words()[-1].click()
    page.slide("layer", 1)
    for step in (2, 5):
        page.slide("step", step)
        light = page.pixels().astype(int).sum(2)
        row, column = np.unravel_index(light.argmax(), light.shape)
        assert (row // 32, column // 32) == (2, 2 * (step - 1))
    page.slide("threshold", 80)  # what is below lets the image through
    away = page.pixels()[250, 10]
    assert tuple(away) == (40, 70, 40)
    page.slide("opacity", 0)
    assert (page.pixels() == (40, 70, 40)).all()


def test_the_keyboard_is_enough(browser: Any, report: Any) -> None:
    from selenium.webdriver.common.keys import Keys

    page = Page(browser, report)
    page.words()[0].send_keys(Keys.ENTER)
    page.settle()
    before = page.digest()
    browser.switch_to.active_element.send_keys(Keys.ARROW_RIGHT)
    page.settle()
    assert browser.switch_to.active_element == page.words()[1]
    assert page.words()[1].get_attribute("aria-pressed") == "true"
    assert page.digest() != before
    page.find("#step").send_keys(Keys.ARROW_RIGHT)
    page.settle()
    assert "step 0" in page.find("#shown").text
    page.find("#play").send_keys(Keys.ENTER)
    assert page.find("#play").get_attribute("aria-pressed") == "true"
    page.find("#play").send_keys(Keys.ENTER)
    names = browser.execute_script(
        "return [...document.querySelectorAll('input, select, button')].filter("
        "n => !(n.labels?.length || n.textContent.trim() || n.ariaLabel)).length"
    )
    assert names == 0


def test_pointing_at_a_word_shows_it_until_the_pointer_leaves(browser: Any, report: Any) -> None:
    from selenium.webdriver import ActionChains

    page = Page(browser, report)
    kept = page.digest()
    ActionChains(browser).move_to_element(page.words()[-1]).perform()
    page.settle()
    assert page.digest() != kept
    ActionChains(browser).move_to_element(page.find("#facts-title")).perform()
    page.settle()
    assert page.digest() == kept


def test_single_heads_can_be_seen(browser: Any, report: Any) -> None:
    page = Page(browser, report)
    page.find("#heads").click()
    assert "Choose a layer" in page.find("#head-hint").text
    page.slide("layer", 2)
    seen = set()
    for head in (0, 1):
        page.slide("head", head)
        assert f"head {head}" in page.find("#shown").text
        seen.add(page.digest())
    assert len(seen) == 2
    assert not page.find("#step").is_enabled()
    assert page.complaints() == []


def test_a_click_ranks_the_words_as_at_does(browser: Any, trace: Trace, report: Any) -> None:
    from selenium.webdriver import ActionChains
    from selenium.webdriver.common.keys import Keys

    page = Page(browser, report)
    view = page.find("#view")
    assert not page.find("#at").is_displayed()
    before = page.digest()
    for x, y in ((0.21, 0.3), (0.8, 0.9)):
        size = view.size
        offset = (round((x - 0.5) * size["width"]), round((y - 0.5) * size["height"]))
        ActionChains(browser).move_to_element_with_offset(view, *offset).click().perform()
        page.settle()
        place = page.find("#at caption").text
        told = trace.at(((int(x * 12) + 0.5) / 12, (int(y * 8) + 0.5) / 8))
        assert f"({told.place[0]:.4g}, {told.place[1]:.4g})" in place
        rows = [row.text for row in page.browser.find_elements("css selector", "#at tr")]
        want = [f"{word} {100 * share:.1f} %" for word, share in told]
        assert sorted(rows[:-1]) == sorted(want)
        shares = [float(row.split()[-2]) for row in rows[:-1]]
        assert shares == sorted(shares, reverse=True)
        assert rows[-1] == f"(other tokens) {100 * told.rest:.1f} %"
    assert page.digest() != before
    view.send_keys(Keys.ARROW_LEFT)
    moved = trace.at(((int(0.8 * 12) - 0.5) / 12, (int(0.9 * 8) + 0.5) / 8))
    assert f"({moved.place[0]:.4g}, " in page.find("#at caption").text
    assert page.complaints() == []


def test_a_prompt_is_text_and_nothing_else(browser: Any, report: Any) -> None:
    page = Page(browser, report)
    assert page.find("#prompt").text == TEXT
    assert browser.execute_script("return document.querySelectorAll('script').length") == 2
    assert page.find("#facts").text.count("<script>alert(1)</script>") == 1
    page.browser.execute_script("return 1")  # an alert would make this fail
    assert page.complaints() == []


def test_the_policy_stops_what_is_foreign(browser: Any, report: Any) -> None:
    page = Page(browser, report)
    page.browser.execute_script(
        "const i = new Image(); i.src = 'https://example.org/x.png'; document.body.append(i);"
        "const s = document.createElement('script'); s.textContent = 'window.evil = 1';"
        "document.body.append(s);"
    )
    page.settle()
    assert browser.execute_script("return window.evil") is None
    assert any("Content Security Policy" in line for line in page.complaints())


@pytest.mark.parametrize("size", [WIDE, PHONE], ids=["wide", "phone"])
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_it_fits_the_screen_in_light_and_dark(
    browser: Any, report: Any, size: Any, dark: Any
) -> None:
    page = Page(browser, report, dark=dark, size=size)
    page.words()[-2].click()
    page.slide("step", 3)
    across = browser.execute_script("return document.documentElement.scrollWidth")
    assert across <= size[0]
    paper = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
    levels = [int(x) for x in paper[4:-1].split(",")]
    assert (max(levels) < 80) == dark
    page.keep(f"report-{'dark' if dark else 'light'}-{'phone' if size == PHONE else 'wide'}")
    assert page.complaints() == []


def test_an_edit_shows_source_edits_masks_and_plan(browser: Any, tmp_path: Path) -> None:
    from xattn.views.report import page as report

    mask = np.zeros((8, 12), dtype=bool)
    mask[2:6, 3:9] = True
    result = SimpleNamespace(
        source=Image.new("RGB", (384, 256), (160, 30, 30)),
        images=[Image.new("RGB", (384, 256), (30, 30, 160)), Image.new("RGB", (384, 256))],
        prompts=["a red car", "a blue car", TEXT],
        plan="Replace('red', 'blue')\n  cross_steps 0.8 <b>bold</b>",
        masks=[mask, None],
        trace=Trace([make_run(["a red car", "a blue car", TEXT], steps=3)]),
    )
    path = tmp_path / "edit.html"
    report.write_edit(path, result)
    page = Page(browser, path)
    cards = page.browser.find_elements("css selector", "#cards figure")
    assert [c.text for c in cards] == ["source\na red car", "edit 1\na blue car", f"edit 2\n{TEXT}"]
    assert [len(c.find_elements("css selector", "img")) for c in cards] == [1, 2, 1]
    assert page.find("#plan").text == result.plan
    page.slide("subject", 1)
    assert [w.text for w in page.words()] == ["a", "blue", "car"]
    page.slide("subject", 2)
    assert page.find("#prompt").text == TEXT
    page.keep("report-edit")
    assert page.complaints() == []
    report.write_edit(path, SimpleNamespace(**{**vars(result), "trace": None}))
    page = Page(browser, path)
    assert page.find("#cards").is_displayed()
    assert not page.find("main").is_displayed()
    assert page.complaints() == []


@pytest.mark.parametrize("keep", [[], ["step"], ["layer"], ["layer", "head"]])
def test_axes_that_were_not_kept_have_no_control(browser: Any, tmp_path: Path, keep: Any) -> None:
    path = tmp_path / "report.html"
    Trace([make_run(keep=keep, layers=LAYERS[:2])]).report(path)
    page = Page(browser, path)
    assert page.find("#step-field").is_displayed() == ("step" in keep)
    assert page.find("#head-field").is_displayed() == ("head" in keep)
    assert len(set(map(tuple, page.pixels().reshape(-1, 3)))) > 10
    assert page.complaints() == []
