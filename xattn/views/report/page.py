"""One self-contained page of a recording or an edit: words to point at, steps and layers to slide.

The page loads nothing: style, script, pictures and maps stand in it, and its policy allows no
more. Prompts are untrusted: they stand in JSON without ``<``, and reach the page as text.

Maps are bytes, each scaled to its own maximum, whose value is kept beside it. A page holds, for
each word, the whole, each layer, each step, and each layer at each step; the maps are shrunk
until all of that fits ``BUDGET``, and where that isn't enough fewer steps are shown: the page says
so. A picture stands in it once, however often it is shown.
"""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from PIL import Image

from xattn import units
from xattn.maps import select
from xattn.maps.measures import MEASURES
from xattn.records.run import Run
from xattn.text.pairs import leading
from xattn.views import colours, sheets
from xattn.views.report.packing import (
    BUDGET,
    MOST_STEPS,
    fitting_grids,
    map_blocks,
    measures_of,
    share_block,
)

COLORS = ("inferno", "viridis", "magma", "turbo", "gray")


_SIDE = 1024  # of pictures
_PNG = 550_000  # letters of one's address


@dataclass(frozen=True)
class Subject:
    """An image of a run, as the page shows it.

    Attributes:
        run: what was recorded.
        image: which of the run's images.
        picture: the image itself, grey where it is not known.
        title: its name among several.
    """

    run: Run
    image: int = 0
    picture: Image.Image | None = None
    title: str = "image"


@dataclass(frozen=True)
class Card:
    """An image of an edit, as the page shows it beside the others.

    Attributes:
        title: its name.
        text: its prompt.
        picture: the image itself.
        mask: the image with what the edit was kept out of paled; None where there is no mask.
    """

    title: str
    text: str
    picture: Image.Image
    mask: Image.Image | None = None


class _Pictures:
    """The pictures of a page, each once.

    Attributes:
        urls: their addresses, and the number of each.
    """

    def __init__(self) -> None:
        self.urls: dict[str, int] = {}

    def number(self, picture: Image.Image | None) -> int | None:
        """Return the number of a picture on the page."""
        return None if picture is None else self.urls.setdefault(_url(picture), len(self.urls))


def write(
    path: str | os.PathLike[str],
    subjects: Sequence[Subject],
    cards: Sequence[Card] = (),
    heading: str = "",
) -> None:
    """Write the page of a recording, with cards above it under a heading.

    Raises:
        ValueError: there is nothing to show, as when no step is complete.
    """
    Path(path).write_text(page(subjects, cards, heading=heading), encoding="utf-8")


def write_edit(path: str | os.PathLike[str], result: Any) -> None:
    """Write the page of an edit: source and edits side by side, masks, plan, and the words.

    Args:
        path: where to.
        result: an ``EditResult``, or what has its ``source`` and ``images`` (pictures),
            ``prompts`` (texts, the source's first), ``plan`` (shown by ``str``), ``masks`` (for
            each edit (steps, height, width), of which the last is shown, or ``None``), ``trace``,
            and, where there are, ``labels``, and which ``seed`` it is ``of`` how many.

    Raises:
        ValueError: the images are no pictures.
    """
    pictures = [result.source, *result.images]
    if not all(isinstance(picture, Image.Image) for picture in pictures):
        raise ValueError("a report needs pictures: edit with output_type='pil', the default")
    labels = getattr(result, "labels", None) or [f"edit {n}" for n in range(1, len(pictures))]
    titles = ["source", *map(str, labels)]
    masks = [None, *(result.masks or [None] * len(result.images))]
    cards = [
        Card(title, str(text), picture, None if mask is None else sheets.masked(picture, mask))
        for title, text, picture, mask in zip(titles, result.prompts, pictures, masks, strict=True)
    ]
    plan = "" if result.plan is None else str(result.plan)
    Path(path).write_text(page(_subjects(result, titles), cards, plan), encoding="utf-8")


def _subjects(result: Any, titles: Sequence[str]) -> list[Subject]:
    """Return the recorded images of an edit; with several seeds, those of the result's own."""
    if result.trace is None or not result.trace.runs or not result.trace.runs[-1].done:
        return []
    run = result.trace.runs[-1]
    rows = range(getattr(result, "seed", 0), len(run.prompt_of), getattr(result, "of", 1))
    pictures = [result.source, *result.images]
    return [
        Subject(run, row, picture, title)
        for row, picture, title in zip(rows, pictures, titles, strict=False)
    ]


def page(
    subjects: Sequence[Subject],
    cards: Sequence[Card] = (),
    plan: str = "",
    heading: str = "Source and edits",
) -> str:
    """Return the page as HTML."""
    room = BUDGET // max(1, len(subjects))
    pictures = _Pictures()
    data = {
        "subjects": [_subject(subject, room, pictures) for subject in subjects],
        "colors": {name: _base64(table.tobytes()) for name, table in _tables()},
        "cards": [
            {
                "title": card.title,
                "text": card.text,
                "picture": pictures.number(card.picture),
                "mask": pictures.number(card.mask),
            }
            for card in cards
        ],
        "plan": plan,
        "heading": heading,
        "measures": [name.replace("_", " ") for name in MEASURES],
        "pictures": list(pictures.urls),
    }
    style, script = _asset("report.css"), _asset("report.js")
    policy = "; ".join(
        [
            "default-src 'none'",
            "img-src data:",
            f"style-src '{_fingerprint(style)}'",
            f"script-src '{_fingerprint(script)}'",
            "base-uri 'none'",
            "form-action 'none'",
        ]
    )
    text = _asset("report.html")
    parts = {"policy": html.escape(policy), "style": style, "script": script, "data": _json(data)}
    for name, part in parts.items():  # the data last: nothing in it is taken for a placeholder
        before, _, after = text.partition(f"{{{{{name}}}}}")
        text = before + part + after
    return text


# -- one image


def _subject(subject: Subject, room: int, pictures: _Pictures) -> dict[str, Any]:
    run, image = subject.run, select.image_index(subject.run, subject.image)
    words = _words(run, image)
    done = select.completed(run)
    most = min(done, MOST_STEPS) if "step" in run.keep else 0
    count, grids = fitting_grids(run, len(words), most, room)
    steps = sheets.spread(done, count) if count else []
    blocks, scales = map_blocks(run, image, [places for _, places in words], steps, grids)
    shares = share_block(run, image, [places for _, places in words], room)
    picture = subject.picture
    size = (run.latent[1] * 8, run.latent[0] * 8) if picture is None else picture.size
    shrink = min(1.0, _SIDE / max(size))
    labels = [text for text, _ in words]
    chosen = len(select.layers_of(run)[0])
    return {
        "title": subject.title,
        "text": run.prompt(image).text,
        "parts": list(_parts(run, image, words)),
        "words": labels,
        "start": _start(run, image, words),
        "layers": sheets.shortened([layer.name for layer in run.layers]),
        "mean": "mean of all layers" if chosen == len(run.layers) else f"mean of {chosen} layers",
        "axis": run.axis,
        "whole": f"sum of {run.done} {run.axis}s",
        "steps": [
            {"index": s, "name": run.step_name(s), "timestep": run.timesteps[s]} for s in steps
        ],
        "grids": grids,
        "shares": _base64(shares),
        "latent": list(run.latent),
        "data": [_base64(block) for block in blocks],
        "scales": scales,
        "measures": measures_of(run, image, [places for _, places in words]),
        "picture": pictures.number(picture),
        "size": [round(size[0] * shrink), round(size[1] * shrink)],
        "facts": list(_facts(run, image, len(steps))),
    }


def _words(run: Run, image: int) -> list[tuple[str, tuple[int, ...]]]:
    """Return the words of an image's prompt that were kept whole, in order, with positions."""
    prompt = run.prompt(image)
    if prompt.is_anonymous:
        return [(f"token {position}", (position,)) for position in run.positions]
    kept = set(run.positions)
    return [(w.text, tuple(w.positions)) for w in prompt.words if kept.issuperset(w.positions)]


def _start(run: Run, image: int, words: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    """Return the number of the word that is shown first."""
    first = None if run.prompt(image).is_anonymous else leading(run.prompt(image))
    places = None if first is None else tuple(first.positions)
    found = (n for n, (_, positions) in enumerate(words) if positions == places)
    return next(found, max(range(len(words)), key=lambda n: (len(words[n][0]), -n), default=0))


def _parts(
    run: Run, image: int, words: Sequence[tuple[str, tuple[int, ...]]]
) -> Iterator[dict[str, Any]]:
    """Yield the prompt's text in pieces, each with the word that it is, or none."""
    prompt = run.prompt(image)
    if prompt.is_anonymous:
        for n, (text, _) in enumerate(words):
            yield {"text": text, "word": n}
            yield {"text": " ", "word": None}
        return
    at, numbers = 0, {places: n for n, (_, places) in enumerate(words)}
    for word in prompt.words:
        if word.start < at:
            continue
        if word.start > at:
            yield {"text": prompt.text[at : word.start], "word": None}
        yield {"text": word.text, "word": numbers.get(tuple(word.positions))}
        at = word.end
    if at < len(prompt.text):
        yield {"text": prompt.text[at:], "word": None}


def _facts(run: Run, image: int, shown: int) -> Iterator[tuple[str, str]]:
    yield "prompt", run.prompt(image).text or "(embeddings)"
    yield f"{run.axis}s", f"{run.done} of {len(run.timesteps)}"
    if 0 < shown < run.done:
        yield f"{run.axis}s shown", f"{shown} of {run.done}, evenly spread, to keep this page small"
    yield "latent", f"{run.latent[0]} x {run.latent[1]} (height x width)"
    yield "layers", str(sum(len(layer.members) for layer in run.layers))
    yield "axes kept", ", ".join(sorted(run.keep)) or "none"
    yield "maps", units.size_text(run.nbytes)
    for name, value in run.info.items():
        if isinstance(value, dict):
            value = ", ".join(f"{k} {v}" for k, v in value.items())
        yield str(name).replace("_", " "), str(value)


# -- the page


def _tables() -> Iterator[tuple[str, Any]]:
    for name in COLORS:
        with suppress(ValueError):  # without matplotlib there are fewer
            yield name, colours.color_table(name)


def _url(picture: Image.Image) -> str:
    """Return a picture as a ``data:`` address: PNG, or JPEG where that would be large."""
    small = picture.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    if small.width * small.height <= 512 * 512:
        url = sheets.data_url(small)
        if len(url) <= _PNG:
            return url
    buffer = io.BytesIO()
    small.save(buffer, format="JPEG", quality=92)
    return f"data:image/jpeg;base64,{_base64(buffer.getvalue())}"


def _json(data: Any) -> str:
    """Return JSON that can stand in a script element, whatever its strings hold."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    for char in "<>&":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return text


def _asset(name: str) -> str:
    return (files("xattn.views.report") / name).read_text(encoding="utf-8")


def _fingerprint(text: str) -> str:
    return f"sha256-{_base64(hashlib.sha256(text.encode()).digest())}"


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()
