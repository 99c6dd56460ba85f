"""Edits inside a custom mask: `python examples/local_mask.py`.

The mask can be drawn by hand, (height, width) of the image, or come from a word's heat map, like
the second one here.
"""

from __future__ import annotations

import torch
from common import PROMPT, arguments, draw, seed

import xattn


def main() -> None:
    options = arguments(__doc__, "local_mask.png")
    pipe, settings = draw(options)
    with xattn.record(pipe) as trace:
        image = pipe(PROMPT, generator=seed(options), **settings).images[0]
    car = trace.heatmap("car").mask(0.4)
    right = torch.zeros(image.height, image.width, dtype=torch.bool)
    right[:, image.width // 2 :] = True
    recolour = xattn.Replace("red", "blue")
    result = xattn.edit(
        pipe,
        PROMPT,
        recolour,
        [recolour, xattn.LocalBlend(mask=right)],
        [recolour, xattn.LocalBlend(mask=car)],
        generator=seed(options),
        **settings,
    )
    result = result.labelled("everywhere", "in the right half", "where 'car' was seen")
    result.strip().save(options.out)


if __name__ == "__main__":
    main()
