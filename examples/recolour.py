"""Recolour an object by swapping one word: `python examples/recolour.py`.

The same seed, drawn three times: the prompt; the changed prompt without attention control, which
moves the whole picture; and the word swapped under the source's attention.
"""

from __future__ import annotations

from common import PROMPT, arguments, draw, seed

import xattn


def main() -> None:
    options = arguments(__doc__, "recolour.png")
    pipe, settings = draw(options)
    free = xattn.Replace("red", "blue", cross_steps=0.0, self_steps=0.0)
    held = xattn.Replace("red", "blue")
    local = [xattn.Replace("red", "blue"), xattn.LocalBlend("car")]
    result = xattn.edit(pipe, PROMPT, free, held, local, generator=seed(options), **settings)
    print(result.plan)
    result = result.labelled("new prompt, same seed", "attention held", "and blended at the car")
    result.strip().save(options.out)


if __name__ == "__main__":
    main()
