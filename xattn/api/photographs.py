"""Edits of a photograph: the source starts from its inversion, and is held to it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from xattn.api.arguments import Batch, options_of, refuse_unknown
from xattn.api.editing import TraceOptions, planned, session_of
from xattn.api.invert import FIXED, as_held, default_guidance, invert, native_pivots
from xattn.api.photos import Pictures
from xattn.edits.kinds import Edits, LocalBlend, composed
from xattn.edits.plan import EditPlan
from xattn.instruments.pivots import Pivots
from xattn.inversion.inversion import Inversion
from xattn.inversion.methods import DEFAULT, METHODS
from xattn.models.packing import sides_of
from xattn.results.edit import EditResult
from xattn.session.generators import Given


def has_picture(pipe: Any, options: Mapping[str, Any]) -> bool:
    """Return whether ``image`` is a pipeline's own option, not a photograph to invert.

    A ControlNet's own is, unless its picture is among the options as ``control_image``.

    Raises:
        ValueError: pictures of the pipeline's own have another name.
    """
    known = options_of(type(pipe))
    for name in ("images", "input_images"):
        if name in known and "image" not in known:
            raise ValueError(
                f"image= is a photograph to invert, which {type(pipe).__name__} can't: its own "
                f"pictures are {name}=[...], and edits of the prompt go with them"
            )
    return "image" in known and ("control_image" in known or "control_image" not in options)


OF_INVERT = ("size", "control_image")


def inverted(
    pipe: Any,
    prompt: str,
    edits: Sequence[Edits],
    image: Pictures,
    method: str | None,
    generator: Given,
    options: dict[str, Any],
) -> Inversion:
    """Return a photograph's inversion for one edit; its own options are taken out of ``options``.

    Raises:
        ValueError: there is no prompt to start from, or, before the inversion runs, an edit does
            not fit it or an option is not the pipeline's.
    """
    if not isinstance(prompt, str) or not prompt.strip():
        raise ValueError(
            f"prompt={prompt!r}: edits of a photograph start from the words that say what it "
            "shows; pass them, or let a captioning model write them"
        )
    planned(pipe, prompt, narrowed(edits), alone=True)
    known = {name: options.pop(name) for name in OF_INVERT if name in options}
    refuse_unknown(pipe, options)
    steps = options.pop("num_inference_steps", None) or 50
    passed = {name: each for name, each in options.items() if name not in _OF_EDITS}
    return invert(
        pipe, image, prompt, method=method or DEFAULT, steps=int(steps), measure=False,
        guidance_scale=options.get("guidance_scale"),
        generator=generator if isinstance(generator, torch.Generator) else None,
        **known, **passed,
    )  # fmt: skip


NARROWED = 0.3
"""What ``LocalBlend.changed`` is for photographs by default; the benchmarks chose it."""


def narrowed(edits: Sequence[Edits]) -> list[Edits]:
    """Return edits whose LocalBlends leave out what hardly changed, unless they say otherwise."""
    return [
        [
            replace(part, changed=NARROWED)
            if isinstance(part, LocalBlend) and part.changed is None
            else part
            for part in composed(each)
        ]
        for each in edits
    ]


_OF_EDITS = (
    "guidance_scale", "negative_prompt", "negative_prompt_2", "guidance_rescale",
    "num_images_per_prompt", "output_type", "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
)  # fmt: skip
"""Options of the edits alone: the inversion itself has no guidance, or its own."""


def edit_photo(
    pipe: Any,
    prompt: str,
    edits: Sequence[Edits],
    inversion: Inversion,
    *,
    reach: dict[str, Any],
    trace: TraceOptions | None,
    generator: Given,
    start: float | None,
    options: dict[str, Any],
) -> tuple[Any, Any, Batch]:
    """Draw a photograph's source and its siblings; return the session, the images, the batch.

    Raises:
        ValueError: the inversion is of another prompt, model, schedule or guidance.
    """
    _check(pipe, prompt, inversion, options)
    method = METHODS[inversion.method]
    if method.edits is not None and len(edits) != method.edits:
        raise ValueError(
            f"method={method.name!r} makes {method.edits} edit at a time, got {len(edits)}: its "
            "source is predicted at the edited image; pass one, and source=result for the next"
        )
    drawn = {"guidance_scale": _guidance(pipe, inversion), **inversion.options, **options}
    records = True if trace is None else trace
    held = method.start if start is None else _share(start)
    refuse_unknown(pipe, drawn)
    drawn |= sides_of(pipe, inversion.pivots)
    held_latents = as_held(pipe, inversion)
    with method.replayed(pipe, held_latents, drawn):
        first, *after = native_pivots(pipe, held_latents)

        def holding(plan: EditPlan) -> Pivots:
            return Pivots(plan, after, start=held, pinned=method.pinned)

        blended = narrowed(edits)
        with session_of(pipe, prompt, blended, trace=records, holding=holding, **reach) as session:
            drawn.update(latents=first, num_inference_steps=inversion.steps)
            rows = Batch.of(pipe, session.prompts, generator, drawn)
            output = pipe(**rows.arguments(pipe, session, drawn))
            rows.generators.leave()
    return session, output, rows


def photographed(result: EditResult, inversion: Inversion) -> EditResult:
    """Return a result that knows its photograph, for each of its seeds."""
    others = tuple(replace(other, inversion=inversion) for other in result.others)
    return replace(result, inversion=inversion, others=others)


def _guidance(pipe: Any, inversion: Inversion) -> float:
    found = inversion.guidance_scale
    return default_guidance(pipe) if found is None else found


def _share(start: Any) -> float:
    if isinstance(start, bool) or not isinstance(start, int | float) or not 0 <= start < 1:
        raise ValueError(f"start={start!r} must be a share of the run in [0, 1)")
    return float(start)


def _check(pipe: Any, prompt: str, inversion: Inversion, options: dict[str, Any]) -> None:
    if prompt != inversion.prompt:
        raise ValueError(
            f"the photograph was inverted with the prompt {inversion.prompt!r}, not with {prompt!r}"
        )
    for name in (*FIXED, "num_inference_steps"):
        if options.get(name) is not None and name not in ("num_images_per_prompt", "output_type"):
            raise ValueError(
                f"{name}= cannot be had with an inverted photograph, whose inversion decides it; "
                "leave it out"
            )
    wanted, scale = options.get("guidance_scale"), inversion.guidance_scale
    if scale is not None and wanted is not None and float(wanted) != scale:
        raise ValueError(
            f"the photograph was inverted for guidance_scale={scale:g}, not for {wanted:g}: "
            f"{inversion.method} inversion depends on it; leave it out, or invert again with it"
        )
    inversion.maker.check(pipe)
