"""The app: draw a prompt, click its words, edit it in place, compare, take the results along.

``serve`` listens on this machine alone unless told otherwise, and loads nothing from elsewhere.
Everything that isn't a button is in ``xattn.app.drawing``.
"""

from __future__ import annotations

import html
import os
import signal
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")

import gradio as gr

from xattn.app.changes import Change
from xattn.app.drawing import Drawing, Studio, enlarged
from xattn.app.settings import Limits, Settings
from xattn.views import sheets

__all__ = ["Limits", "Studio", "build", "opened", "serve"]

STARTER = "a red car on a green lawn"
IDLE = 3600  # seconds after which a visitor's drawing is forgotten
SWEEP = 600  # seconds between looks for old files
# a wrong wish, attention that can't be seen, a pipeline that fails, no memory, a full disk
TOLD = (ValueError, TypeError, RuntimeError, MemoryError, OSError)
CSS = """
#words .wrap { gap: 6px; } #words label { cursor: pointer; }
#map img, #compare img { image-rendering: auto; }
footer { display: none !important; }
"""


@dataclass
class Visit:
    """What one visitor has: a drawing, and what they changed since."""

    drawing: Drawing | None = None
    edited: Drawing | None = None
    changes: dict[int, Change] = field(default_factory=dict)

    def leave(self) -> None:
        """Removes the visitor's files."""
        for drawing in (self.drawing, self.edited):
            if drawing is not None:
                drawing.discard()


def serve(
    pipe: Any,
    *,
    model: str | None = None,
    limits: Limits | None = None,
    host: str = "127.0.0.1",
    port: int = 7860,
) -> None:
    """Serves the app until it is interrupted, and removes its files.

    Args:
        pipe: a Stable Diffusion or SDXL pipeline.
        model: where the pipeline came from, for the scripts; None for the bundled model.
        limits: what a visitor can ask for.
        host: the address to listen on.
        port: the port.
    """
    with opened(pipe, model=model, limits=limits, host=host, port=port) as address:
        print(f"xattn: {address} (interrupt to stop)", flush=True)
        block_until_interrupted()


def block_until_interrupted() -> None:
    """Waits for control-C, or to be told to end, and lets files be removed in both cases."""
    over = threading.Event()
    before = {
        number: signal.signal(number, lambda *_: over.set())
        for number in (signal.SIGINT, signal.SIGTERM)
    }
    try:
        over.wait()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def opened(
    pipe: Any,
    *,
    model: str | None = None,
    limits: Limits | None = None,
    host: str = "127.0.0.1",
    port: int | None = None,
) -> Iterator[str]:
    """Serves the app while the block runs; gives its address.

    Raises:
        OSError: the port is taken.
    """
    before = os.environ.get("GRADIO_TEMP_DIR")
    with tempfile.TemporaryDirectory(prefix="xattn-app-") as root:
        os.environ["GRADIO_TEMP_DIR"] = str(Path(root, "gradio"))
        studio = Studio(pipe, model, limits, Path(root))
        page = build(studio)
        try:
            _, address, _ = page.queue(max_size=16, default_concurrency_limit=4).launch(
                server_name=host,
                server_port=port,
                prevent_thread_lock=True,
                share=False,
                quiet=True,
                inbrowser=False,
                ssr_mode=False,
                footer_links=[],
                run_history=False,
                enable_monitoring=False,
                state_session_capacity=64,
                allowed_paths=[root],
                max_file_size="1mb",  # there is nothing to upload
                theme=gr.themes.Base(),
                css=CSS,
            )
            yield address
        finally:
            page.close()
            if before is None:
                del os.environ["GRADIO_TEMP_DIR"]
            else:
                os.environ["GRADIO_TEMP_DIR"] = before


def build(studio: Studio) -> Any:
    """Builds the page."""
    with gr.Blocks(
        title="xattn", analytics_enabled=False, delete_cache=(SWEEP, IDLE), fill_width=True
    ) as page:
        visit = gr.State(Visit(), time_to_live=IDLE, delete_callback=Visit.leave)
        gr.Markdown(
            "## xattn\nDraw a prompt, click a word to see where it acts, change it, and compare."
        )
        with gr.Row():
            with gr.Column(scale=1, min_width=300):
                asked = _asking(studio)
                button = gr.Button("Draw", variant="primary", elem_id="draw")
                files = _downloads()
            with gr.Column(scale=2, min_width=320):
                seen = _seeing(studio.limits)
                changing = _changing(studio.limits)
        _wire(studio, visit, asked, button, seen, changing, files)
    return page


# -- the parts of the page


def _asking(studio: Studio) -> list[Any]:
    """Lays out the prompt and what it is drawn with."""
    limits = studio.limits
    height, width = studio.sides
    prompt = gr.Textbox(
        STARTER, label="Prompt", lines=2, max_length=limits.prompt, elem_id="prompt-text"
    )
    with gr.Accordion("Sampling", open=False):
        negative = gr.Textbox("", label="Negative prompt", max_length=limits.prompt)
        seed = gr.Number(0, label="Seed", precision=0, minimum=0)
        steps = gr.Slider(
            1, limits.steps, min(30, limits.steps), step=1, label="Steps", elem_id="steps"
        )
        sides = [
            gr.Slider(studio.factor, limits.side, side, step=studio.factor, label=label)
            for label, side in (("Width", width), ("Height", height))
        ]
        guidance = gr.Slider(0, 30, 7.5, step=0.5, label="Guidance (1 is off)")
    return [prompt, negative, seed, steps, *sides, guidance]


def _downloads() -> list[Any]:
    """Lays out the files to take along."""
    kinds = (("Trace", "trace"), ("Report", "report"), ("Python script", "script"))
    with gr.Row():
        return [
            gr.DownloadButton(
                label, interactive=False, size="sm", min_width=80, elem_id=f"get-{name}"
            )
            for label, name in kinds
        ]


@dataclass(frozen=True)
class Seeing:
    """Where words are seen."""

    words: Any
    map: Any
    step: Any
    layer: Any
    opacity: Any
    about: Any

    @property
    def inputs(self) -> list[Any]:
        """What a map depends on."""
        return [self.words, self.step, self.layer, self.opacity]


def _seeing(limits: Limits) -> Seeing:
    """Lays out the words, the map and its sliders."""
    words = gr.Radio(
        [], label="Words: click one to see where it acts", elem_id="words", interactive=True
    )
    with gr.Row():
        with gr.Column(scale=3, min_width=280):
            picture = gr.Image(
                label="Where the word acts", type="pil", format="png", interactive=False,
                buttons=["download", "fullscreen"], elem_id="map", height=460,
                placeholder="Nothing drawn yet: press Draw",
            )  # fmt: skip
        with gr.Column(scale=2, min_width=240):
            step = gr.Slider(0, limits.steps, 0, step=1, label="Step (0: all)", elem_id="step")
            layer = gr.Slider(0, 1, 0, step=1, label="Layer (0: mean)", elem_id="layer")
            opacity = gr.Slider(0, 1, 0.65, step=0.05, label="Opacity", elem_id="opacity")
            about = gr.Textbox(
                label="Shown", interactive=False, lines=2, max_lines=4, elem_id="shown"
            )
    return Seeing(words, picture, step, layer, opacity, about)


@dataclass(frozen=True)
class Changing:
    """Where words are changed, and what came of it is compared."""

    becomes: Any
    weight: Any
    added: Any
    places: Any
    apart: Any
    cross: Any
    own: Any
    changes: Any
    forget: Any
    button: Any
    which: Any
    compare: Any


def _changing(limits: Limits) -> Changing:
    """Lays out the edit."""
    gr.Markdown("### Edit\nClick a word above, then change its text or its strength.")
    with gr.Row():
        becomes = gr.Textbox("", label="The word becomes", elem_id="becomes", max_length=100)
        weight = gr.Slider(
            -2, 5, 1, step=0.1, label="Strength (1: as it is, 0: removed)", elem_id="weight"
        )
    with gr.Row():
        added = gr.Textbox(
            "", label="Words to add at the end", placeholder="at night", elem_id="added",
            max_length=limits.prompt,
        )  # fmt: skip
        places = gr.Dropdown(
            [], value=[], multiselect=True, label="Only in the places of (anywhere if empty)",
            elem_id="places",
        )  # fmt: skip
    with gr.Accordion("Timing", open=False):
        cross = gr.Slider(0, 1, 0.8, step=0.05, label="Words follow the source: share of the run")
        own = gr.Slider(0, 1, 0.4, step=0.05, label="Layout follows the source: share of the run")
        apart = gr.Checkbox(
            False, label=f"An image for each change (at most {limits.edits})", elem_id="apart"
        )
    changes = gr.Textbox(label="Changes", interactive=False, lines=1, elem_id="changes")
    with gr.Row():
        forget = gr.Button("Forget changes", size="sm", elem_id="forget")
        button = gr.Button("Draw the edit", variant="primary", size="sm", elem_id="edit")
    which = gr.Radio([], label="Compare with", visible=False, elem_id="which")
    compare = gr.ImageSlider(
        label="Before | after", type="pil", format="png", interactive=False, elem_id="compare",
        buttons=["download", "fullscreen"], visible=False, max_height=520,
    )  # fmt: skip
    return Changing(
        becomes, weight, added, places, apart, cross, own, changes, forget, button, which, compare
    )


# -- what they do


def _wire(
    studio: Studio,
    visit: Any,
    asked: list[Any],
    button: Any,
    seen: Seeing,
    changing: Changing,
    files: list[Any],
) -> None:
    drawn = [
        visit, seen.words, seen.step, seen.layer, seen.map, seen.about, changing.becomes,
        changing.weight, changing.places, changing.changes, changing.which, changing.compare,
        *files,
    ]  # fmt: skip
    one = {"concurrency_limit": 1, "concurrency_id": "pipeline", "api_visibility": "private"}
    quick = {"show_progress": "hidden", "api_visibility": "private"}
    for trigger in (button.click, asked[0].submit):
        trigger(_drawer(studio), [visit, *asked], drawn, show_progress_on=[seen.map], **one)

    shown = [seen.map, seen.about]
    word = [changing.becomes, changing.weight]
    seen.words.change(_select, [visit, *seen.inputs], [*shown, *word], **quick)
    for slider in (seen.step, seen.layer, seen.opacity):
        slider.input(_look, [visit, *seen.inputs], shown, trigger_mode="always_last", **quick)

    for field_ in word:
        field_.input(
            _note, [visit, seen.words, *word, changing.added], [visit, changing.changes],
            trigger_mode="always_last", **quick,
        )  # fmt: skip
    changing.added.input(_list, [visit, changing.added], changing.changes, **quick)
    changing.forget.click(
        _forget, [visit, seen.words], [visit, *word, changing.added, changing.changes], **quick
    )
    changing.button.click(
        _editor(studio),
        [visit, seen.words, *word, changing.added, changing.places, changing.apart,
         changing.cross, changing.own],
        [visit, changing.changes, changing.which, changing.compare, *files],
        show_progress_on=[changing.button], **one,
    )  # fmt: skip
    changing.which.change(_compare, [visit, changing.which], changing.compare, **quick)


def _drawer(studio: Studio) -> Callable[..., Any]:
    def draw(
        visit: Visit, prompt: str, negative: str, seed: float, steps: float, width: float,
        height: float, guidance: float, progress: Any = gr.Progress(),  # noqa: B008
    ) -> list[Any]:  # fmt: skip
        settings = Settings(
            prompt or "", negative or "", int(seed or 0), int(steps), int(width), int(height),
            float(guidance),
        )  # fmt: skip
        drawing = _told(lambda: studio.draw(settings, _stepper(progress, "drawing")))
        visit.leave()
        visit = Visit(drawing)
        words = [(text, n) for n, (text, _, _) in enumerate(drawing.spans)]
        first = max(words, key=lambda pair: (len(pair[0]), -pair[1]))[1] if words else None
        picture, about = _look(visit, first, 0, 0, 0.65)
        return [
            visit,
            gr.Radio(words, value=first),
            gr.Slider(0, drawing.trace.run.done, 0, step=1),
            gr.Slider(0, len(drawing.layers), 0, step=1),
            picture,
            about,
            _text(visit, first),
            1,
            gr.Dropdown(words, value=[], multiselect=True),
            "",
            gr.Radio([], visible=False),
            gr.ImageSlider(None, visible=False),
            *_files(drawing),
        ]

    return draw


def _editor(studio: Studio) -> Callable[..., Any]:
    def edit(
        visit: Visit, word: int | None, becomes: str, weight: float, added: str,
        places: list[int], apart: bool, cross: float, own: float,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> list[Any]:  # fmt: skip
        if visit.drawing is None:
            raise gr.Error("Nothing drawn yet: press Draw first.", print_exception=False)
        source = visit.drawing
        visit, _ = _note(visit, word, becomes, weight, added)  # what was typed last
        edited = _told(
            lambda: studio.edit(
                source, visit.changes, _stepper(progress, "editing"), added=added or "",
                apart=apart, places=places or (), cross_steps=cross, self_steps=own,
            )
        )  # fmt: skip
        if visit.edited is not None:
            visit.edited.discard()
        visit = Visit(source, edited, visit.changes)
        assert edited.result is not None
        names = [(label, n) for n, label in enumerate(edited.result.labels)]
        return [
            visit,
            _list(visit, added),
            gr.Radio(names, value=0, visible=len(names) > 1),
            gr.ImageSlider(_compare(visit, 0), visible=True),
            *_files(edited),
        ]

    return edit


def _look(
    visit: Visit, word: int | None, step: float, layer: float, opacity: float
) -> tuple[Any, str]:
    """Gives the map of a word and what it is of."""
    drawing = visit.drawing
    if drawing is None:
        return None, ""
    step, layer = min(int(step), drawing.trace.run.done), min(int(layer), len(drawing.layers))
    if word is None or not 0 <= word < len(drawing.spans):
        return enlarged(drawing.image), "the image"
    picture = _told(lambda: drawing.overlay(word, step, layer, float(opacity)))
    names = sheets.shortened(drawing.layers)
    where = "mean of the layers" if layer == 0 else f"layer {names[layer - 1]}"
    when = f"sum of {drawing.trace.run.done} steps" if step == 0 else f"step {step}"
    return picture, f"{drawing.spans[word][0]}: {when}, {where}"


def _select(
    visit: Visit, word: int | None, step: float, layer: float, opacity: float
) -> tuple[Any, ...]:
    """Shows another word, and what becomes of it."""
    change = visit.changes.get(-1 if word is None else word)
    becomes = _text(visit, word) if change is None else change.text
    return *_look(visit, word, step, layer, opacity), becomes, change.weight if change else 1


def _text(visit: Visit, word: int | None) -> str:
    spans = visit.drawing.spans if visit.drawing else []
    return spans[word][0] if word is not None and 0 <= word < len(spans) else ""


def _note(
    visit: Visit, word: int | None, becomes: str, weight: float, added: str
) -> tuple[Visit, str]:
    """Keeps what becomes of the selected word."""
    if visit.drawing is not None and word is not None and word < len(visit.drawing.spans):
        text, value = (becomes or "").strip(), float(1 if weight is None else weight)
        changes = dict(visit.changes)
        if text == visit.drawing.spans[word][0] and value == 1:
            changes.pop(word, None)
        else:
            changes[word] = Change(text, value)
        visit = Visit(visit.drawing, visit.edited, changes)
    return visit, _list(visit, added)


def _list(visit: Visit, added: str) -> str:
    """Says what is changed."""
    said = []
    for n, change in sorted(visit.changes.items()):
        old = _text(visit, n)
        text = old if change.text == old else f"{old} \N{RIGHTWARDS ARROW} {change.text or 'none'}"
        strength = f" \N{MULTIPLICATION SIGN} {change.weight:g}" if change.weight != 1 else ""
        said.append(text + strength)
    if added and added.strip():
        said.append(f"+ {added.strip()}")
    return ", ".join(said)


def _forget(visit: Visit, word: int | None) -> tuple[Any, ...]:
    """Forgets every change."""
    return Visit(visit.drawing, visit.edited), _text(visit, word), 1, "", ""


def _compare(visit: Visit, which: int | None) -> Any:
    """Gives the source and one of its edits."""
    result = visit.edited.result if visit.edited else None
    if result is None or which is None or not 0 <= which < len(result.images):
        return None
    return enlarged(result.source), enlarged(result.images[which])


def _files(drawing: Drawing) -> list[Any]:
    names = ("trace.safetensors", "report.html", "script.py")
    return [gr.DownloadButton(value=str(drawing.folder / n), interactive=True) for n in names]


def _stepper(progress: Any, what: str) -> Callable[[int, int], None]:
    return lambda done, total: progress((done, total), desc=what, unit="steps")


def _told(work: Callable[[], Any]) -> Any:
    """Does something; what goes wrong is told to the visitor, as text."""
    try:
        return work()
    except TOLD as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise gr.Error(html.escape(text, quote=False), print_exception=False) from error
