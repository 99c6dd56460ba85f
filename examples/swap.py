"""Swap an object and keep its surroundings: `python examples/swap.py`.

`LocalBlend("car")` finds where "car" acts in the source and "boat" in the sibling, and lets the
edit through only there.
"""

from __future__ import annotations

from common import PROMPT, arguments, draw, seed

import xattn


def main() -> None:
    options = arguments(__doc__, "swap.png")
    pipe, settings = draw(options)
    edits = [
        # the new object needs its own shape: release the old one's early
        [xattn.Replace("car", new, cross_steps=0.4, self_steps=0.2), xattn.LocalBlend("car")]
        for new in ("boat", "fish", "house")
    ]
    result = xattn.edit(pipe, PROMPT, *edits, generator=seed(options), **settings)
    result = result.labelled("boat", "fish", "house")
    result.strip().save(options.out)


if __name__ == "__main__":
    main()
