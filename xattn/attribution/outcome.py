"""An attribution, made of what a method found."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from xattn.attribution.method import Asked, Found, Method
from xattn.attribution.targets import Target
from xattn.results.attribution import Attribution


def outcome(
    method: Method,
    ask: Asked,
    target: Target,
    found: Found,
    names: tuple[str, ...],
    absent: str,
    prompt: str,
    attention: NDArray[np.float64] | None,
    picture: Image.Image,
) -> Attribution:
    """Return the result that users hold, which asks again for its faithfulness."""

    @torch.no_grad()
    def values(present: NDArray[np.bool_]) -> NDArray[np.float64]:
        estimates = ask.estimates(torch.from_numpy(np.ascontiguousarray(present)))
        return target.values(estimates, ask.full).double().numpy()

    return Attribution(
        words=names,
        values=found.scores.detach().double().numpy(),
        maps=None if found.maps is None else found.maps.float().numpy(),
        intervals=None if found.intervals is None else found.intervals.double().numpy(),
        attention=attention,
        prompt=prompt,
        how=method.name,
        target=target.name,
        absent=absent,
        calls=ask.asked,
        facts=found.facts,
        picture=picture,
        ask=values,
    )
