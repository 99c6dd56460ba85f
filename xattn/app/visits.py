"""A visit: one visitor's drawing and changes, and what each control of the page does to them."""

from __future__ import annotations

import html
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import gradio as gr

from xattn.app.changes import Change
from xattn.app.drawing import Drawing, Service, enlarged
from xattn.app.settings import Settings
from xattn.results.attribution import Attribution
from xattn.views import sheets

# a wrong wish, attention that can't be seen, a pipeline that fails, no memory, a full disk
TOLD = (ValueError, TypeError, RuntimeError, MemoryError, OSError)


@dataclass
class Visit:
    """A visitor's drawing, its edit, the changes since, and what its words were found to cause."""

    drawing: Drawing | None = None
    edited: Drawing | None = None
    changes: dict[int, Change] = field(default_factory=dict)
    why: Attribution | None = None

    def leave(self) -> None:
        """Remove the visitor's files."""
        for drawing in (self.drawing, self.edited):
            if drawing is not None:
                drawing.discard()


def drawer(service: Service) -> Callable[..., Any]:
    """Return the handler that draws the prompt."""

    def draw(
        visit: Visit, model: str, prompt: str, negative: str, seed: float, steps: float,
        width: float, height: float, guidance: float, present: str = "", bind: str = "",
        place: str = "", apart: str = "", progress: Any = gr.Progress(),  # noqa: B008
    ) -> list[Any]:  # fmt: skip
        settings = Settings(
            prompt or "", negative or "", int(seed or 0), int(steps), int(width), int(height),
            float(guidance), model, present or "", bind or "", place or "", apart or "",
        )  # fmt: skip
        drawing = _told(lambda: service.draw(settings, _stepper(progress, "drawing")))
        return _arrived(visit, drawing)

    return draw


def looker(service: Service) -> Callable[..., Any]:
    """Return the handler that looks at a given picture."""

    def look_at(
        visit: Visit, model: str, picture: str | None, text: str, steps: float, guidance: float
    ) -> list[Any]:
        if not picture:
            raise gr.Error("No picture yet: upload one, or paste it.", print_exception=False)
        settings = Settings(text or "", steps=int(steps), guidance=float(guidance), model=model)
        return _arrived(visit, _told(lambda: service.look(picture, settings)))

    return look_at


def _arrived(visit: Visit, drawing: Drawing) -> list[Any]:
    """Return what each component shows of a new drawing; the one before is forgotten."""
    visit.leave()
    visit = Visit(drawing)
    words = [(text, n) for n, (text, _, _) in enumerate(drawing.spans)]
    first = drawing.leading
    picture, about = look(visit, first, 0, 0, 0.65)
    return [
        visit,
        gr.Radio(words, value=first),
        gr.Slider(0, drawing.trace.run.done, 0, step=1),
        gr.Slider(0, len(drawing.layers), 0, step=1),
        picture,
        about,
        gr.Dataframe([]),
        _text(visit, first),
        1,
        gr.Dropdown(words, value=[], multiselect=True),
        "",
        gr.Radio([], visible=False),
        gr.ImageSlider(None, visible=False),
        gr.Image(None, visible=False),
        gr.Image(None, visible=False),
        *_files(drawing),
    ]


def rank(visit: Visit, step: float, layer: float, event: gr.SelectData) -> Any:
    """Return the words that act where the picture was clicked, with their shares."""
    drawing = visit.drawing
    if drawing is None:
        return gr.Dataframe([])
    width, height = enlarged(drawing.image).size
    x, y = event.index
    place = (min(1.0, (x + 0.5) / width), min(1.0, (y + 0.5) / height))
    found = _told(lambda: drawing.at(place, int(step), int(layer)))
    rows = [*found, ("(other tokens)", found.rest)]
    return gr.Dataframe([[word, f"{100 * share:.1f} %"] for word, share in rows])


def explainer(service: Service) -> Callable[..., Any]:
    """Return the handler that measures what each word causes."""

    def explain(visit: Visit, how: str, word: int | None) -> list[Any]:
        if visit.drawing is None:
            raise gr.Error(
                "Nothing to explain yet: draw or look at a picture first.", print_exception=False
            )
        drawing = visit.drawing
        visit = replace(visit, why=_told(lambda: service.explain(drawing, how)))
        assert visit.why is not None
        return [visit, gr.Image(visit.why.bar(), visible=True), beside(visit, word)]

    return explain


def beside(visit: Visit, word: int | None) -> Any:
    """Return what a word causes beside where it is read; hidden where nothing was measured."""
    why, drawing = visit.why, visit.drawing
    if why is None or why.maps is None or drawing is None or word is None:
        return gr.Image(None, visible=False)
    under = enlarged(drawing.image)
    causes = why.map(why.words[word]).overlay(under)
    return gr.Image(sheets.side_by_side(causes, drawing.overlay(word)), visible=True)


def editor(service: Service) -> Callable[..., Any]:
    """Return the handler that draws the edit."""

    def edit(
        visit: Visit, word: int | None, becomes: str, weight: float, added: str,
        places: list[int], apart: bool, cross: float, own: float,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> list[Any]:  # fmt: skip
        if visit.drawing is None:
            raise gr.Error("Nothing drawn yet: press Draw first.", print_exception=False)
        source = visit.drawing
        visit, _ = note(visit, word, becomes, weight, added)  # what was typed last
        edited = _told(
            lambda: service.edit(
                source, visit.changes, _stepper(progress, "editing"), added=added or "",
                apart=apart, places=places or (), cross_steps=cross, self_steps=own,
            )
        )  # fmt: skip
        if visit.edited is not None:
            visit.edited.discard()
        visit = replace(visit, edited=edited)
        assert edited.result is not None
        names = [(label, n) for n, label in enumerate(edited.result.labels)]
        return [
            visit,
            listed(visit, added),
            gr.Radio(names, value=0, visible=len(names) > 1),
            gr.ImageSlider(compare(visit, 0), visible=True),
            *_files(edited),
        ]

    return edit


def look(
    visit: Visit, word: int | None, step: float, layer: float, opacity: float
) -> tuple[Any, str]:
    """Return the map of a word, and a line about it."""
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


def select(
    visit: Visit, word: int | None, step: float, layer: float, opacity: float
) -> tuple[Any, ...]:
    """Show another word, with its text and strength as changed."""
    change = visit.changes.get(-1 if word is None else word)
    becomes = _text(visit, word) if change is None else change.text
    return *look(visit, word, step, layer, opacity), becomes, change.weight if change else 1


def _text(visit: Visit, word: int | None) -> str:
    spans = visit.drawing.spans if visit.drawing else []
    return spans[word][0] if word is not None and 0 <= word < len(spans) else ""


def note(
    visit: Visit, word: int | None, becomes: str, weight: float, added: str
) -> tuple[Visit, str]:
    """Keep the selected word's new text and strength."""
    if visit.drawing is not None and word is not None and word < len(visit.drawing.spans):
        text, value = (becomes or "").strip(), float(1 if weight is None else weight)
        changes = dict(visit.changes)
        if text == visit.drawing.spans[word][0] and value == 1:
            changes.pop(word, None)
        else:
            changes[word] = Change(text, value)
        visit = replace(visit, changes=changes)
    return visit, listed(visit, added)


def listed(visit: Visit, added: str) -> str:
    """Return the changes as a line of text."""
    said = []
    for n, change in sorted(visit.changes.items()):
        old = _text(visit, n)
        text = old if change.text == old else f"{old} \N{RIGHTWARDS ARROW} {change.text or 'none'}"
        strength = f" \N{MULTIPLICATION SIGN} {change.weight:g}" if change.weight != 1 else ""
        said.append(text + strength)
    if added and added.strip():
        said.append(f"+ {added.strip()}")
    return ", ".join(said)


def forget(visit: Visit, word: int | None) -> tuple[Any, ...]:
    """Forget every change."""
    return replace(visit, changes={}), _text(visit, word), 1, "", ""


def compare(visit: Visit, which: int | None) -> Any:
    """Return the source and one of its edits."""
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
    """Call a function; show the visitor its error as text."""
    try:
        return work()
    except TOLD as error:
        text = " ".join(str(error).split()) or type(error).__name__
        raise gr.Error(html.escape(text, quote=False), print_exception=False) from error
