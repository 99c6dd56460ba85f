"""Where words act in a given picture: `python examples/own_picture.py`.

The words of a text, and concepts beside it that nobody prompted. The picture is a scene of Toyland
here; a path of a photograph does as well.
"""

from __future__ import annotations

from pathlib import Path

from common import PROMPT, arguments, draw

from xattn import probe
from xattn.toyland import scene


def main() -> None:
    options = arguments(__doc__, "own_picture.png")
    pipe, _ = draw(options)
    picture = scene(options.seed).image
    trace = probe(pipe, picture, PROMPT, also=["house", "boat", "sea"], seed=options.seed)
    trace.grid().save(options.out)
    segmentation = trace.concepts().segmentation()
    out = Path(options.out)
    segmentation.overlay().save(out.with_stem(f"{out.stem}-concepts"))


if __name__ == "__main__":
    main()
