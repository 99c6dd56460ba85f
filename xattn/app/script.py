"""A drawing as a Python script that makes it again."""

from __future__ import annotations

from collections.abc import Sequence

from xattn.app.settings import Settings
from xattn.devices import DTYPE
from xattn.edits.codec import to_python
from xattn.edits.kinds import Edit
from xattn.toyland.bundle import MODELS


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
    lines = [
        *_loading(model, dtype),
        f"prompt = {settings.prompt!r}",
        f"options = dict(\n{options})",
        *_seeing(int(settings.seed), picture, _steering(settings)),
    ]
    if edits:
        lines += _editing(int(settings.seed), edits, picture, _steering(settings))
    return "\n".join(lines) + "\n"


def _loading(model: str | None, dtype: str) -> list[str]:
    if model is None or model in MODELS:
        name = "" if model is None else f"{model!r}, "
        return ["import torch", "", "import xattn", "", f"pipe = xattn.demo({name}dtype={dtype})"]
    return [
        "import torch",
        "from accelerate import PartialState",
        "from diffusers import DiffusionPipeline",
        "",
        "import xattn",
        "",
        f"pipe = DiffusionPipeline.from_pretrained({model!r}, {DTYPE}={dtype})",
        "pipe = pipe.to(PartialState().device)",
    ]


def _steering(settings: Settings) -> str:
    """Return the call that steers to the settings' goals, "" where there are none."""
    goals = [f"xattn.{goal}" for goal in settings.goals()]
    return f"xattn.steer(pipe, {', '.join(goals)})" if goals else ""


def _seeing(seed: int, picture: str | None, steering: str) -> list[str]:
    if picture is None:
        also = f", {steering}" if steering else ""
        lines = [
            "",
            f"with xattn.record(pipe) as trace{also}:",
            f"    generator = torch.Generator().manual_seed({seed})",
            "    image = pipe(prompt, generator=generator, **options).images[0]",
            'image.save("image.png")',
        ]
    else:
        lines = [
            f"picture = {picture!r}",
            "",
            f"trace = xattn.probe(pipe, picture, prompt, seed={seed})",
        ]
    return [*lines, 'trace.grid().save("words.png")', 'trace.report("report.html")']


def _editing(
    seed: int, edits: Sequence[Sequence[Edit]], picture: str | None, steering: str
) -> list[str]:
    siblings = "".join(f"    {_source(each)},\n" for each in edits)
    call = [
        "result = xattn.edit(",
        "    pipe,",
        *f"    prompt,\n{siblings}    generator=generator,".split("\n"),
        *([] if picture is None else ["    image=picture,"]),
        "    **options,",
        ")",
    ]
    if steering:
        call = [f"with {steering}:", *(f"    {line}" for line in call)]
    seeded = f"generator = torch.Generator().manual_seed({seed})"
    return ["", seeded, *call, 'result.strip().save("edits.png")']


def _source(edits: Sequence[Edit]) -> str:
    return "[" + ", ".join(map(to_python, edits)) + "]"
