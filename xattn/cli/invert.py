"""``xattn invert``: a photograph's latents at every level, for edits."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from xattn.cli import options as o
from xattn.cli.output import Folder, consoles, print_json, tell
from xattn.units import size_text

EPILOG = """Example: [bold]xattn invert photo.jpg "a red car on a lawn" --out photo[/bold], then
[bold]xattn edit "a red car on a lawn" --image photo/inversion.safetensors
--replace red=blue[/bold]"""


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(epilog=EPILOG)(invert)


def invert(
    image: Annotated[Path, typer.Argument(help="The photograph, a file.", show_default=False)],
    prompt: o.PromptArgument,
    method: o.MethodOption = None,
    out: o.OutOption = Path("xattn-invert"),
    model: o.ModelOption = None,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
    offload: o.OffloadOption = None,
    seed: o.SeedOption = 0,
    steps: o.StepsOption = None,
    size: o.SizeOption = None,
    guidance: o.GuidanceOption = None,
    as_json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Find a photograph's latents at every level, to edit it as often as you like."""
    import torch

    import xattn
    from xattn.inversion.methods import DEFAULT

    console, progress = consoles(as_json)
    folder = Folder(out)
    request = o.Request(model, device, dtype, offload, seed, steps, size, guidance)
    pipe = request.pipeline(progress)
    chosen, count = method or DEFAULT, steps or 50
    with o.asked():
        cost = xattn.inversion_cost(pipe, method=chosen, steps=count, size=size)
    with o.watched(progress, str(cost)) as watch:
        inversion = xattn.invert(
            pipe, image, prompt, method=chosen, steps=count, guidance_scale=guidance, size=size,
            generator=torch.Generator().manual_seed(seed), callback_on_step_end=watch,
        )  # fmt: skip
    inversion.save(folder.new("inversion.safetensors", "the inversion, for xattn edit --image"))
    folder.picture("photo.png", inversion.photo, "the photograph, as the model took it")
    folder.picture(
        "reconstruction.png", inversion.reconstruction, "the most that an edit can keep of it"
    )
    if inversion.replay is not None:
        folder.picture("source.png", inversion.replay, "the source, as edits will draw it")
    if as_json:
        found = inversion.fidelity
        figures = {} if found is None else {
            "to_reconstruction": str(found.to_reconstruction), "to_photo": found.to_photo,
            "ceiling": found.ceiling,
        }  # fmt: skip
        facts = {"prompt": prompt, **request.facts(pipe), "method": chosen, "steps": count}
        facts |= {"calls": inversion.calls, "bytes": inversion.nbytes, "fidelity": figures}
        print_json({**facts, "files": folder.files})
    tell(folder, console, f"{size_text(inversion.nbytes)}; {inversion.fidelity}")
