"""``attribute(..., of="inputs")``: scores of a call's inputs, by drawing without them."""

from __future__ import annotations

import os
from typing import Any

import torch
from PIL import Image

from xattn.api.arguments import refuse_unknown
from xattn.attribution.inputs import Drawing, inputs_of
from xattn.attribution.methods import method_of
from xattn.attribution.outcome import outcome
from xattn.attribution.store import Answers
from xattn.attribution.targets import target_of
from xattn.results.attribution import Attribution

DRAWS = ("occlusion", "shapley", "surrogate")


def of_inputs(
    pipe: Any,
    what: Any,
    *,
    how: Any,
    target: Any,
    seed: int,
    cache: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Attribution:
    """Return which of a call's inputs decided its picture.

    Args:
        pipe: the pipeline.
        what: the prompt.
        how: "occlusion", "shapley" or "surrogate".
        target: what is explained.
        seed: of the noise, where there is no ``generator``.
        cache: a folder that keeps every picture.
        **options: of the call.

    Raises:
        ValueError: it is not a prompt, or not one of these methods.
    """
    method = method_of(how)
    if not isinstance(what, str) or method.name not in DRAWS:
        raise ValueError(
            "of='inputs' draws a prompt, one text, without each of its inputs, by how='occlusion', "
            "'shapley' or 'surrogate'"
        )
    refuse_unknown(pipe, options)
    given = {"generator": torch.Generator().manual_seed(seed), **options}
    inputs = inputs_of(pipe, what, given)
    store = None if cache is None else Answers(cache)
    ask = Drawing(pipe, inputs, {**given, "prompt": what}, store)
    aim = target_of(target, pipe, decodes=False)
    found = method.find(ask, aim)
    pixels = (ask.full[0].permute(1, 2, 0) * 255).round().to(torch.uint8).numpy()
    names = tuple(each.name for each in inputs)
    said = "the call without the input"
    return outcome(method, ask, aim, found, names, said, what, None, Image.fromarray(pixels))
