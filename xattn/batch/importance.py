"""Which input decided, over the items of a batch."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from xattn.attribution.importance import Pictures, shuffled
from xattn.models.sizes import denoiser_of
from xattn.results.attribution import Attribution

if TYPE_CHECKING:
    from xattn.batch.index import StoredRun

ALIKE = 4 / 255
"""Mean difference up to which a picture is the stored one: another device's rounding."""


def importance_of(
    runs: Sequence[StoredRun],
    pipe: Any,
    *,
    shuffles: int,
    seed: int,
    cache: str | os.PathLike[str] | None,
    options: dict[str, Any],
) -> Attribution:
    """Return what each input of a batch's items decides; see ``Runs.importance``."""
    if len(runs) < 2:
        raise ValueError(f"importance needs two items or more to shuffle among; got {len(runs)}")
    rows, common = inputs_of_items(runs)
    pictures = Pictures(pipe, {**_size(runs, pipe), **common, **options}, cache)
    plain = [pictures(row) for row in rows]
    for run, picture in zip(runs, plain, strict=True):
        _check_same(run, picture)
    return shuffled(pictures, rows, shuffles=shuffles, seed=seed, plain=plain)


def inputs_of_items(runs: Sequence[StoredRun]) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    """Return each item's inputs, and the options that all have in common.

    An input is what differs among the items; prompt and seed always are inputs.
    """
    every = [_inputs(run) for run in runs]
    names = [
        name
        for name in every[0]
        if name in ("prompt", "seed") or any(row[name] != every[0][name] for row in every)
    ]
    common = {name: value for name, value in every[0].items() if name not in names}
    rows = [{name: row[name] for name in names} for row in every]
    return rows, {name: value for name, value in common.items() if value is not None}


def _inputs(run: StoredRun) -> dict[str, Any]:
    record = run.recording
    return {
        "prompt": run.prompt,
        "seed": run.rows[0]["seed"] or 0,
        "negative_prompt": run.rows[0].get("negative_prompt"),
        "num_inference_steps": len(record.timesteps),
        "guidance_scale": record.info.get("guidance_scale"),
    }


def _size(runs: Sequence[StoredRun], pipe: Any) -> dict[str, int]:
    sizes = {run.recording.latent for run in runs}
    if len(sizes) > 1:
        raise ValueError(
            f"the items' pictures have {len(sizes)} sizes, and can't be compared: filter those of "
            "one size first"
        )
    (height, width), scale = sizes.pop(), int(getattr(pipe, "vae_scale_factor", 8))
    _ = denoiser_of(pipe)  # refuses what is not a pipeline
    return {"height": height * scale, "width": width * scale}


def _check_same(run: StoredRun, drawn: Tensor) -> None:
    """Raise ValueError if the pipeline draws an item differently from what is stored."""
    stored = run.image
    if stored is None:
        return
    pixels = np.asarray(stored.convert("RGB"), dtype=np.float32).transpose(2, 0, 1) / 255
    own = drawn[0].numpy()
    if own.shape != pixels.shape or np.abs(own - pixels).mean() > ALIKE:
        raise ValueError(
            f"item {run.name!r}: the pipeline does not draw the picture of the batch; give the "
            "pipeline and scheduler that drew it; items that were steered, probed, or drawn from "
            "a picture can't be shuffled"
        )
