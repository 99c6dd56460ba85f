"""One self-contained page of a recording or an edit."""

from __future__ import annotations

import os

from PIL import Image

from xattn.runs import Run


def write(
    path: str | os.PathLike[str], run: Run, image: int = 0, picture: Image.Image | None = None
) -> None:
    """Writes the page of one image of a run."""
    raise NotImplementedError("the page is still to come")
