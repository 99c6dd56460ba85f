"""Say what went wrong, and mend it: `python examples/mend.py`.

A prompt is drawn and diagnosed; from the same noise it is drawn again, steered to the goals of the
first finding. Under each picture where the finding's word acts.
"""

from __future__ import annotations

from common import arguments, draw, seed

import xattn
from xattn.views.sheets import table

PROMPT = "a yellow star on the left of a blue sea"


def main() -> None:
    options = arguments(__doc__, "mend.png")
    pipe, settings = draw(options)
    with xattn.record(pipe) as trace:
        plain = pipe(PROMPT, generator=seed(options), **settings).images[0]
    findings = trace.diagnose()
    for each in findings:
        print(each)
    words = [each.about[0].positions for each in findings[:1]] or ["star"]
    goals = [goal for each in findings[:1] for goal in each.goals]
    with xattn.record(pipe) as after, xattn.steer(pipe, *goals):
        mended = pipe(PROMPT, generator=seed(options), **settings).images[0]
    maps = [each.heatmap(words[0]).overlay(of) for each, of in ((trace, plain), (after, mended))]
    table([[plain, mended], maps], ["drawn", "the map"], ["plain", "steered"]).save(options.out)


if __name__ == "__main__":
    main()
