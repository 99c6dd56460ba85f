"""The app: what it does without its buttons, and then with them, in a real browser."""

from __future__ import annotations

import ast
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import xattn
from tests import tiny
from tests.app.pages import Page
from xattn import LocalBlend, Refine, Replace, Reweight
from xattn.app.changes import Change, make_edits
from xattn.app.drawing import Drawing, Service
from xattn.app.script import script
from xattn.app.settings import Settings
from xattn.devices import DTYPE

PROMPT = "a red car on a red lawn"
FAST: dict[str, Any] = {"steps": 3, "width": 32, "height": 32}
NASTY = '<script>alert(1)</script> "a" & red car'


def silent(done: int, total: int) -> None:
    """Waits for nothing."""


def spans(text: str) -> list[tuple[str, int, int]]:
    found, at = [], 0
    for word in text.split():
        start = text.index(word, at)
        at = start + len(word)
        found.append((word, start, at))
    return found


# -- from changes to edits


def test_changed_words_become_a_replace() -> None:
    one = make_edits("a red car", spans("a red car"), {1: Change("blue")})
    assert [str(each) for each in one] == ["Replace red -> blue"]
    two = make_edits("a red car", spans("a red car"), {1: Change("blue"), 2: Change("boat", 2.0)})
    assert [str(each) for each in two] == ["Replace red -> blue, car -> boat", "Reweight boat x 2"]


def test_a_repeated_word_is_changed_where_it_was_clicked() -> None:
    (first,) = make_edits(PROMPT, spans(PROMPT), {1: Change("blue")})
    assert isinstance(first, Replace)
    assert first.occurrence == 0
    second, weight = make_edits(PROMPT, spans(PROMPT), {5: Change("red", 0.0), 2: Change("boat")})
    assert isinstance(second, Replace)
    assert isinstance(weight, Reweight)
    assert (weight.occurrence, dict(weight.items)) == (1, {"red": 0.0})


@pytest.mark.parametrize(
    ("changes", "added", "prompt"),
    [
        ({1: Change("dark blue")}, "", "a dark blue car on a red lawn"),
        ({1: Change("")}, "", "a car on a red lawn"),
        ({}, "at night", f"{PROMPT} at night"),
        ({1: Change("blue")}, "at night", "a blue car on a red lawn at night"),
    ],
)
def test_another_number_of_words_becomes_a_refine(changes: Any, added: Any, prompt: Any) -> None:
    (edit,) = make_edits(PROMPT, spans(PROMPT), changes, added)
    assert isinstance(edit, Refine)
    assert edit.prompt == prompt


def test_nothing_changed_is_no_edit() -> None:
    assert make_edits(PROMPT, spans(PROMPT), {}) == []
    assert make_edits(PROMPT, spans(PROMPT), {1: Change("red", 1.0)}) == []


# -- the service


def test_a_drawing_is_the_pipelines_own_image(service: Any, generator: Any) -> None:
    drawing = service.draw(Settings(PROMPT, seed=3, **FAST), silent)
    plain = tiny.sd1()(
        PROMPT, num_inference_steps=3, height=32, width=32, generator=generator(3)
    ).images[0]
    assert np.array_equal(np.asarray(drawing.image), np.asarray(plain))
    assert {path.name for path in drawing.folder.iterdir()} == {
        "trace.safetensors", "report.html", "script.py",
    }  # fmt: skip
    assert xattn.load(drawing.folder / "trace.safetensors").prompts == (PROMPT,)
    steps = {np.asarray(drawing.overlay(1, step)).tobytes() for step in range(4)}
    layers = {np.asarray(drawing.overlay(1, 1, layer)).tobytes() for layer in range(3)}
    assert (len(steps), len(layers)) == (4, 3)


@pytest.mark.parametrize("edited", [False, True], ids=["drawing", "edit"])
def test_the_script_draws_the_same(service: Any, tmp_path: Path, edited: Any) -> None:
    asked = Settings(PROMPT, negative='"no"', seed=3, place="car=left; red=0,0,.5,1", **FAST)
    drawing = service.draw(asked, silent)
    if edited:
        changes = {1: Change("blue"), 2: Change("boat", 2.0)}
        drawing = service.edit(drawing, changes, silent, places=[2], added="")
    text = (drawing.folder / "script.py").read_text(encoding="utf-8")
    ast.parse(text)
    names = {"pipe": tiny.sd1()}
    body = text.replace("pipe = xattn.demo(dtype=torch.float32)", "")
    for name in ("image.png", "words.png", "report.html", "edits.png"):
        body = body.replace(f'"{name}"', repr(str(tmp_path / name)))
    exec(body, names)
    assert np.array_equal(np.asarray(names["image"]), np.asarray(drawing.image))
    if drawing.result is not None:
        for ours, theirs in zip(drawing.result.images, names["result"].images, strict=True):
            assert np.array_equal(np.asarray(ours), np.asarray(theirs))


def test_goals_steer_a_drawing(service: Any) -> None:
    goals = {"present": "car; lawn", "bind": "red=car", "apart": "car=lawn\n"}
    assert [str(goal) for goal in Settings(PROMPT, **goals).goals()] == [
        "Present('car', 'lawn')", "Bind('red', 'car')", "Apart('car', 'lawn')",
    ]  # fmt: skip
    plain = service.draw(Settings(PROMPT, seed=3, **FAST), silent)
    moved = service.draw(Settings(PROMPT, seed=3, place="car=left", **FAST), silent)
    assert not np.array_equal(np.asarray(plain.image), np.asarray(moved.image))


def test_the_script_names_the_model_and_quotes_what_it_is_given() -> None:
    edits: list[Any] = [[Reweight({'"""': 2.0}), LocalBlend(["x'y"])]]
    text = script(Settings(NASTY + "\n'''"), edits, "some/model", "torch.float16")
    assert f"DiffusionPipeline.from_pretrained('some/model', {DTYPE}=torch.float16)" in text
    constants = [node.value for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Constant)]
    assert NASTY + "\n'''" in constants
    assert {'"""', "x'y"} <= set(constants)


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"steps": 11}, "steps 11 is out of bounds: 1 to 10"),
        ({"width": 136}, "width 136 is out of bounds: 8 to 128"),
        ({"height": 68}, "height 68 must be a multiple of 8"),
        ({"prompt": " "}, "the prompt is empty"),
        ({"prompt": "a" * 1001}, "longer than 1000 characters"),
        ({"guidance": float("nan")}, "guidance nan is out of bounds"),
        ({"seed": 2**63}, f"seed {2**63} is out of bounds: 0 to {2**63 - 1}"),
        ({"bind": "red; car"}, "bind 'red' must be two words with = between them: pink=fish"),
        ({"place": "boat=left"}, "'boat' is not in the prompt"),
        ({"prompt": "a \ud800"}, "the prompt is .*: character 2 is a lone surrogate"),
        ({"negative": "\udcff"}, "the negative is .*: character 0 is a lone surrogate"),
    ],
)
def test_what_is_out_of_bounds_is_refused(service: Any, asked: Any, says: Any) -> None:
    with pytest.raises(ValueError, match=says):
        service.draw(Settings(**{"prompt": PROMPT, **FAST, **asked}), silent)


def test_edits_are_bounded_and_must_change_something(service: Any) -> None:
    drawing = service.draw(Settings(PROMPT, **FAST), silent)
    with pytest.raises(ValueError, match="nothing is changed"):
        service.edit(drawing, {}, silent)
    many = {n: Change("x") for n in (1, 2, 3)}
    with pytest.raises(ValueError, match="3 edits: at most 2"):
        service.edit(drawing, many, silent, apart=True)
    both = service.edit(drawing, {1: Change("blue")}, silent, added="at night", apart=True)
    assert both.result is not None
    assert both.result.prompts[1:] == ("a blue car on a red lawn", f"{PROMPT} at night")


def test_two_visitors_at_once_get_their_own(service: Any) -> None:
    prompts = ("a red car", "a blue boat on the sea")
    drawn: dict[str, Drawing] = {}

    def visit(prompt: str) -> None:
        drawn[prompt] = service.draw(Settings(prompt, **FAST), silent)

    threads = [threading.Thread(target=visit, args=(prompt,)) for prompt in prompts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for prompt in prompts:
        alone = Service(tiny.sd1()).draw(Settings(prompt, **FAST), silent)
        assert drawn[prompt].trace.prompts == (prompt,)
        assert np.array_equal(np.asarray(drawn[prompt].image), np.asarray(alone.image))
        assert torch.equal(drawn[prompt].trace.run.maps(0), alone.trace.run.maps(0))


def test_files_go_when_the_visitor_goes(service: Any) -> None:
    pytest.importorskip("gradio")
    from xattn.app.visits import Visit

    drawing = service.draw(Settings(PROMPT, **FAST), silent)
    edited = service.edit(drawing, {1: Change("blue")}, silent)
    Visit(drawing, edited).leave()
    assert list(service.root.iterdir()) == []


def test_what_the_library_refuses_is_told_in_a_sentence(service: Any) -> None:
    gradio = pytest.importorskip("gradio")
    from xattn.app import visits

    drawing = service.draw(Settings(PROMPT, **FAST), silent)
    service.shelf.pipe().enable_attention_slicing(1)
    visit = visits.Visit(drawing, None, {1: Change("blue")})
    edit = visits.editor(service)
    with pytest.raises(gradio.Error, match=r"pipe\.disable_attention_slicing\(\) first"):
        edit(visit, 1, "blue", 1, "", [], False, 0.8, 0.4, progress=lambda *_, **__: None)


def test_a_full_disk_is_told_and_leaves_no_files(
    service: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    gradio = pytest.importorskip("gradio")
    from xattn.app import visits

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(service, "_write_script", full)
    draw = visits.drawer(service)
    with pytest.raises(gradio.Error, match="No space left on device"):
        draw(visits.Visit(), "", PROMPT, "", 0, 2, 64, 64, 5.0, progress=lambda *_, **__: None)
    assert list(service.root.iterdir()) == []


def test_the_command_says_what_to_install_without_gradio() -> None:
    code = (
        "import sys; sys.modules['gradio'] = None\n"
        "from xattn.cli import main; main(['app', '--device', 'cpu'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.strip().endswith('run: pip install "xattn[app]"')


# -- in a browser


@pytest.mark.browser
@pytest.mark.slow
def test_a_visitor_draws_clicks_slides_edits_and_compares(
    browser: Any, address: Any, tmp_path: Path
) -> None:
    page = Page(browser, address)
    page.keep("app-empty")
    page.draw("a red car on a lawn")
    assert [word.text for word in page.words()] == ["a", "red", "car", "on", "a", "lawn"]
    shown = page.picture()
    page.words()[1].click()
    shown = page.changed(shown)
    assert page.value("#becomes") == "red"
    page.slide("#step", 2)
    shown = page.changed(shown)
    page.until(lambda: page.value("#shown").startswith("red: step 2"))
    page.slide("#layer", 3)
    shown = page.changed(shown)
    page.slide("#opacity", 0.2)
    page.changed(shown)
    page.keep("app-word")

    page.write("#becomes", "blue")
    page.until(lambda: page.value("#changes") == "red \N{RIGHTWARDS ARROW} blue")
    page.words()[2].click()
    page.until(lambda: page.value("#becomes") == "car")
    page.slide("#weight", 2)
    page.until(lambda: "car \N{MULTIPLICATION SIGN} 2" in page.value("#changes"))
    page.find("#edit").click()
    page.until(lambda: len(page.all("#compare img")) == 2)
    page.keep("app-edit")
    browser.execute_cdp_cmd(
        "Browser.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)}
    )
    for name in ("trace", "report", "script"):
        page.find(f"#get-{name}").click()
    wanted = [tmp_path / name for name in ("trace.safetensors", "report.html", "script.py")]
    page.until(lambda: all(path.exists() for path in wanted))
    assert len(xattn.load(wanted[0]).run.prompt_of) == 2
    script_text = wanted[2].read_text(encoding="utf-8")
    assert "xattn.Replace('red', 'blue'" in script_text
    assert "xattn.Reweight({'car': 2.0}" in script_text
    assert page.complaints() == []


@pytest.mark.browser
@pytest.mark.slow
def test_a_nasty_prompt_is_text_and_an_error_is_told(browser: Any, address: Any) -> None:
    page = Page(browser, address)
    page.draw(NASTY)
    assert [word.text for word in page.words()][-2:] == ["red", "car"]
    assert "<script>" in " ".join(word.text for word in page.words())
    page.words()[0].click()
    page.write("#becomes", "<img src=x onerror=alert(2)>")
    page.until(lambda: "<img" in page.value("#changes"))
    page.find("#forget").click()
    page.until(lambda: page.value("#changes") == "")
    page.find("#edit").click()
    page.until(lambda: any("nothing is changed" in text for text in page.toasts()))
    page.browser.execute_script("return 1")  # an alert would make this fail
    page.keep("app-nasty")
    assert page.complaints() == []


@pytest.mark.browser
@pytest.mark.slow
def test_a_second_visitor_does_not_mix_with_the_first(browser: Any, address: Any) -> None:
    first = Page(browser, address)
    first.draw("a red car")
    browser.switch_to.new_window("tab")
    second = Page(browser, address)
    assert second.words() == []
    second.draw("a blue boat")
    browser.close()
    browser.switch_to.window(browser.window_handles[0])
    shown = first.picture()
    first.words()[0].click()
    first.changed(shown)
    assert [word.text for word in first.words()] == ["a", "red", "car"]
    first.words()[1].click()
    first.until(lambda: first.value("#shown").startswith("red:"))


@pytest.mark.browser
@pytest.mark.slow
def test_it_fits_a_phone_and_loads_nothing_from_elsewhere(browser: Any, address: Any) -> None:
    import json

    browser.get_log("performance")
    page = Page(browser, address, size=(390, 844))
    page.draw("a red car on a lawn")
    page.keep("app-phone")
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in events if "request" in e["params"]]
    assert any(u.startswith(address) for u in urls)
    foreign = [u for u in urls if not u.startswith((address, "data:", "blob:", "chrome"))]
    assert foreign == []


def test_it_listens_on_this_machine_alone(address: str) -> None:
    port = int(address.rstrip("/").rpartition(":")[2])
    socket.create_connection(("127.0.0.1", port), timeout=10).close()
    with pytest.raises(OSError, match="refused"):  # another address of this machine
        socket.create_connection(("127.0.0.2", port), timeout=10)
