"""Turn one word up and down: `python examples/amplify.py`."""

from __future__ import annotations

from common import PROMPT, arguments, draw, seed

import xattn


def main() -> None:
    options = arguments(__doc__, "amplify.png")
    pipe, settings = draw(options)
    weights = [-1.0, 0.0, 0.5, 1.0, 1.5, 2.0]
    result = xattn.sweep(pipe, PROMPT, "red", weights, generator=seed(options), **settings)
    result.strip().save(options.out)


if __name__ == "__main__":
    main()
