"""A drawing as a Python script that makes it again."""

from __future__ import annotations

from collections.abc import Sequence

from xattn.app.settings import Settings
from xattn.devices import DTYPE
from xattn.edits.kinds import Edit, Refine, Replace, Reweight

# -- the same in Python


def script(
    settings: Settings, edits: Sequence[Sequence[Edit]], model: str | None, dtype: str
) -> str:
    """Gives a Python program that draws the same."""
    arguments = settings.arguments()
    options = "".join(f"    {name}={value!r},\n" for name, value in arguments.items())
    lines = ["import torch", "", "import xattn", ""]
    if model is None:
        lines += [f"pipe = xattn.demo(dtype={dtype})"]
    else:
        lines[1:2] = [
            "from accelerate import PartialState",
            "from diffusers import DiffusionPipeline",
            "",
        ]
        lines += [
            f"pipe = DiffusionPipeline.from_pretrained({model!r}, {DTYPE}={dtype})",
            "pipe = pipe.to(PartialState().device)",
        ]
    lines += [f"prompt = {settings.prompt!r}", f"options = dict(\n{options})"]
    lines += [
        "",
        "with xattn.record(pipe) as trace:",
        f"    generator = torch.Generator().manual_seed({int(settings.seed)})",
        "    image = pipe(prompt, generator=generator, **options).images[0]",
        'image.save("image.png")',
        'trace.grid(image=image).save("words.png")',
        'trace.report("report.html", image)',
    ]
    if edits:
        siblings = "".join(f"    {_source(each)},\n" for each in edits)
        lines += [
            "",
            f"generator = torch.Generator().manual_seed({int(settings.seed)})",
            "result = xattn.edit(",
            "    pipe,",
            f"    prompt,\n{siblings}    generator=generator,",
            "    **options,",
            ")",
            'result.strip().save("edits.png")',
        ]
    return "\n".join(lines) + "\n"


def _source(edits: Sequence[Edit]) -> str:
    return "[" + ", ".join(f"xattn.{_call(each)}" for each in edits) + "]"


def _call(edit: Edit) -> str:
    timing = [
        f"{name}={value!r}"
        for name in ("occurrence", "cross_steps", "self_steps")
        if (value := getattr(edit, name, None)) is not None
    ]
    if isinstance(edit, Replace):
        swaps = dict(edit.swaps)
        pair = [repr(part) for part in next(iter(swaps.items()))]
        return f"Replace({', '.join((pair if len(swaps) == 1 else [repr(swaps)]) + timing)})"
    if isinstance(edit, Refine):
        return f"Refine({', '.join([repr(edit.prompt), *timing])})"
    if isinstance(edit, Reweight):
        return f"Reweight({', '.join([repr(dict(edit.items)), *timing])})"
    return f"LocalBlend({list(edit.words)!r})"
