"""A drawing as a Python script that makes it again."""

from __future__ import annotations

from collections.abc import Sequence

from xattn.app.settings import Settings
from xattn.devices import DTYPE
from xattn.edits.codec import to_python
from xattn.edits.kinds import Edit


def script(
    settings: Settings,
    edits: Sequence[Sequence[Edit]],
    model: str | None,
    dtype: str,
    picture: str | None = None,
) -> str:
    """Return a Python program that draws the same, or looks at the same picture."""
    arguments = settings.arguments()
    if picture is not None:
        arguments = {k: v for k, v in arguments.items() if k not in ("width", "height")}
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
    if picture is None:
        lines += [
            "",
            "with xattn.record(pipe) as trace:",
            f"    generator = torch.Generator().manual_seed({int(settings.seed)})",
            "    image = pipe(prompt, generator=generator, **options).images[0]",
            'image.save("image.png")',
        ]
    else:
        lines += [
            f"picture = {picture!r}",
            "",
            f"trace = xattn.probe(pipe, picture, prompt, seed={int(settings.seed)})",
        ]
    lines += [
        'trace.grid().save("words.png")',
        'trace.report("report.html")',
    ]
    if edits:
        siblings = "".join(f"    {_source(each)},\n" for each in edits)
        lines += [
            "",
            f"generator = torch.Generator().manual_seed({int(settings.seed)})",
            "result = xattn.edit(",
            "    pipe,",
            f"    prompt,\n{siblings}    generator=generator,",
            *([] if picture is None else ["    image=picture,"]),
            "    **options,",
            ")",
            'result.strip().save("edits.png")',
        ]
    return "\n".join(lines) + "\n"


def _source(edits: Sequence[Edit]) -> str:
    return "[" + ", ".join(map(to_python, edits)) + "]"
