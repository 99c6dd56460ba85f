"""Say where a thing stands: `python examples/place.py`.

One noise, drawn plainly and with the star placed on the left and on the right; under each picture
where the word acts.
"""

from __future__ import annotations

from common import arguments, draw, seed

import xattn
from xattn.views.sheets import table

PROMPT = "a yellow star on a blue sea"


def main() -> None:
    options = arguments(__doc__, "place.png")
    pipe, settings = draw(options)
    ways = {
        "plain": [],
        "on the left": [xattn.Place("star", "left")],
        "on the right": [xattn.Place("star", "right")],
    }
    pictures, maps = [], []
    for goals in ways.values():
        with xattn.record(pipe) as trace, xattn.steer(pipe, *goals):
            image = pipe(PROMPT, generator=seed(options), **settings).images[0]
        pictures.append(image)
        maps.append(trace.heatmap("star").overlay(image))
    table([pictures, maps], ["drawn", "where star acts"], list(ways)).save(options.out)


if __name__ == "__main__":
    main()
