"""A self-contained page of what went wrong in many images: counts, and cases with their maps."""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from xattn.views import sheets

SIDE = 256  # of pictures
_STYLE = """
body { margin: 2rem auto; max-width: 70rem; padding: 0 1rem; font: 16px/1.5 system-ui, sans-serif;
  color: #1d1c22; background: #fbfaf8; }
table { border-collapse: collapse; margin: 1rem 0 2rem; }
td, th { padding: .2rem 1.5rem .2rem 0; text-align: left; border-bottom: 1px solid #dedbe3; }
section { border-top: 1px solid #dedbe3; padding: 1rem 0; }
h2 { font-size: 1.1rem; margin: 0 0 .5rem; overflow-wrap: anywhere; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; }
figure { margin: 0; max-width: 16rem; }
img { display: block; width: 16rem; max-width: 100%; border-radius: .4rem; }
figcaption { font-size: .85rem; color: #5d5a66; overflow-wrap: anywhere; }
"""


@dataclass(frozen=True)
class Case:
    """One image with what was found in it.

    Attributes:
        title: the image's name.
        prompt: its prompt.
        picture: the image; None where it was not kept.
        findings: for each finding its sentence, and its map on the picture.
    """

    title: str
    prompt: str
    picture: Image.Image | None
    findings: tuple[tuple[str, Image.Image], ...]


def write(
    path: str | os.PathLike[str], title: str, counts: Mapping[str, int], cases: Iterable[Case]
) -> None:
    """Write the page; it loads nothing and runs no script, and texts are shown as they are."""
    rows = "".join(f"<tr><td>{_text(name)}</td><td>{n}</td></tr>" for name, n in counts.items())
    table = f"<table><tr><th>finding</th><th>images</th></tr>{rows}</table>" if rows else ""
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'"
    Path(path).write_text(
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">'
        f"<title>{_text(title)}</title><style>{_STYLE}</style><h1>{_text(title)}</h1>"
        f"{table}{''.join(map(_section, cases))}</html>\n",
        encoding="utf-8",
    )


def _section(case: Case) -> str:
    figures = [] if case.picture is None else [_figure(case.picture, "the image")]
    figures += [_figure(shown, sentence) for sentence, shown in case.findings]
    heading = f"{_text(case.title)}: {_text(case.prompt)}"
    return f'<section><h2>{heading}</h2><div class="row">{"".join(figures)}</div></section>'


def _figure(picture: Image.Image, caption: str) -> str:
    fitted = sheets.sized(picture, sheets.fitted_size(picture.size, SIDE), smooth=True)
    said = _text(caption)
    return (
        f'<figure><img src="{sheets.data_url(fitted)}" alt="{said}">'
        f"<figcaption>{said}</figcaption></figure>"
    )


def _text(text: str) -> str:
    return html.escape(text)
