"""One group of a batch's items: drawn together, recorded, and divided into an item's own parts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from PIL import Image

from xattn.api.edit import edit
from xattn.api.probe import probe
from xattn.api.record import record
from xattn.api.steer import steer
from xattn.batch.items import Numbered, positions_of
from xattn.batch.settings import Settings
from xattn.records.run import MemoryStore, Run


@dataclass
class Drawn:
    """The images and maps of a group of items.

    Attributes:
        images: of each item: its image, then those of its edits.
        runs: of each item: the maps of all its images.
        labels: of each item: "source", then a label for each edit.
    """

    images: list[list[Image.Image]]
    runs: list[Run]
    labels: list[list[str]] = field(default_factory=list)


def draw(pipe: Any, group: Sequence[Numbered], settings: Settings) -> Drawn:
    """Draw and record items in one call of the pipeline: items of equal settings, or one edited."""
    items = [numbered.item for numbered in group]
    first = items[0]
    options: dict[str, Any] = {"output_type": "pil"}
    if first.steps is not None:
        options["num_inference_steps"] = first.steps
    if first.guidance_scale is not None:
        options["guidance_scale"] = first.guidance_scale
    if first.size is not None:
        options["height"], options["width"] = first.size
    positions = [positions_of(item, pipe) for item in items]
    named = any(item.words is not None for item in items)
    recording: dict[str, Any] = {
        "keep": settings.keep,
        "layers": settings.layers,
        "dtype": settings.dtype,
        "words": sorted({p for own in positions for p in own}) if named else None,
    }
    if first.image is not None and not first.edits:
        return _probed(pipe, group, positions, recording)
    seeds = [torch.Generator().manual_seed(item.seed or 0) for item in items]
    if first.edits:
        options["negative_prompt"] = first.negative_prompt
        if first.image is not None:  # a photograph, inverted first; its size is the picture's
            sides = [options.pop(name, None) for name in ("height", "width")]
            options |= {"image": first.image, **({} if None in sides else {"size": tuple(sides)})}
        with steer(pipe, *first.goals):
            result = edit(
                pipe, first.prompt, *first.edits, generator=seeds[0], trace=recording, **options
            )
        assert result.trace is not None
        whole = _part(result.trace.run, range(len(result.prompts)), positions[0])
        return Drawn([[result.source, *result.images]], [whole], [["source", *result.labels]])
    if first.negative_prompt is not None:
        options["negative_prompt"] = [item.negative_prompt for item in items]
    with record(pipe, **recording) as trace, steer(pipe, *first.goals):
        images = pipe(prompt=[item.prompt for item in items], generator=seeds, **options).images
    parts = [_part(trace.run, [i], own) for i, own in enumerate(positions)]
    return Drawn([[image] for image in images], parts, [["source"] for _ in items])


def _probed(
    pipe: Any,
    group: Sequence[Numbered],
    positions: Sequence[tuple[int, ...]],
    recording: dict[str, Any],
) -> Drawn:
    """Probe the pictures of a group's items."""
    items = [numbered.item for numbered in group]
    trace = probe(
        pipe,
        [item.image for item in items],
        [item.prompt for item in items],
        seed=[item.seed or 0 for item in items],
        size=items[0].size,
        batch=len(items),
        **recording,
    )
    parts = [_part(one.run, [0], own) for one, own in zip(trace, positions, strict=True)]
    return Drawn([one.run.images for one in trace], parts, [["source"] for _ in items])


def _part(run: Run, images: Sequence[int], positions: Sequence[int]) -> Run:
    """Return some images of a run as a run of its own, with some of its positions."""
    steps = range(run.done if "step" in run.keep else 1)
    kept = [run.positions.index(p) for p in positions]
    tensors = tuple(
        run.store.read(n, steps)[:, list(images)][:, :, :, kept] for n in range(len(run.layers))
    )
    prompts = sorted({run.prompt_of[i] for i in images})
    return replace(
        run,
        prompts=tuple(run.prompts[p] for p in prompts),
        prompt_of=tuple(prompts.index(run.prompt_of[i]) for i in images),
        positions=tuple(positions),
        store=MemoryStore(tensors),
        info=dict(run.info),
        images=[],
    )
