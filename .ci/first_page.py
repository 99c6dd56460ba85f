"""A hook of mkdocs: the first page is the README, its links as seen from ``docs/``."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

README = Path(__file__).parent.parent / "README.md"
LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)]+)\)")


def on_page_markdown(markdown: str, page: Any, **others: Any) -> str:
    """Return a page's text: the README's for the first page, its own for every other."""
    if page.file.src_uri != "index.md":
        return markdown
    return LINK.sub(_from_docs, README.read_text(encoding="utf-8"))


def _from_docs(link: re.Match[str]) -> str:
    """Return a link as seen from the pages' folder; one that leads out of it as plain text."""
    picture, text, target = link.groups()
    if target.startswith(("http://", "https://")):
        return link[0]
    if target.startswith("docs/"):
        return f"{picture}[{text}]({target.removeprefix('docs/')})"
    return text
