"""Add words to a prompt and keep the rest of the picture: `python examples/refine.py`."""

from __future__ import annotations

from common import arguments, draw, seed

import xattn

PROMPT = "a red car on a lawn"


def main() -> None:
    options = arguments(__doc__, "refine.png")
    pipe, settings = draw(options)
    night = f"{PROMPT} at night"
    result = xattn.edit(
        pipe,
        PROMPT,
        xattn.Refine(night),
        # the new words alone, stronger
        [xattn.Refine(night), xattn.Reweight("at night", 2.0)],
        xattn.Refine("a red car on a yellow lawn"),
        generator=seed(options),
        **settings,
    )
    print(result.plan)
    result = result.labelled("at night", "night x 2", "a yellow lawn")
    result.strip().save(options.out)


if __name__ == "__main__":
    main()
