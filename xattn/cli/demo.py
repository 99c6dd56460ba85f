"""``xattn demo``: everything once, on the bundled model, in less than a minute."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import typer

from xattn.cli import options as o
from xattn.cli.edit import write_edit
from xattn.cli.output import Folder, consoles, enlarged, figures, print_json, tell

PROMPT = "a red car on a green lawn"
WORDS = ("red", "car", "lawn")
STEPS = 30
GUIDANCE = 5.0  # leaves an amplified word room to act
EPILOG = "Example: [bold]xattn demo --seed 3[/bold]"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(epilog=EPILOG)(demo)


def demo(
    out: o.OutOption = Path("xattn-demo"),
    seed: o.SeedOption = 1,
    steps: o.StepsOption = STEPS,
    device: o.DeviceOption = None,
    as_json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Draw, record, recolour and amplify with the bundled model: pictures and two reports."""
    import xattn

    begun = time.monotonic()
    console, progress = consoles(as_json)
    folder = Folder(out)
    request = o.Request(device=device, seed=seed, steps=steps, guidance=GUIDANCE)
    pipe = request.pipeline(progress)
    with (
        o.watched(progress, "drawing") as watch,
        xattn.record(pipe, previews=True) as trace,
    ):
        image = pipe(PROMPT, callback_on_step_end=watch, **request.arguments(pipe)).images[0]
    with progress.status("writing"):
        folder.picture("image.png", enlarged(image), f"{PROMPT!r}, as the model draws it")
        folder.picture("words.png", trace.grid(WORDS), "where each word acts, step by step")
        trace.animate("car", folder.new("car.gif", "'car' while the image forms"))
        trace.report(folder.new("report.html", "every word, step and layer: open it"))
        trace.save(folder.new("trace.safetensors", "the recording: xattn show reads it"), [image])
    edits: list[Any] = [
        [xattn.Replace("red", "blue"), xattn.LocalBlend("car")],
        xattn.Refine(f"{PROMPT} at night"),
        xattn.Reweight({"red": 2.0}),
    ]
    with o.watched(progress, "editing") as watch:
        arguments = request.arguments(pipe)
        result = xattn.edit(pipe, PROMPT, *edits, callback_on_step_end=watch, **arguments)
    result = result.labelled("red -> blue", "at night", "red x 2")
    with progress.status("writing"):
        edited = Folder(out / "edit")
        write_edit(edited, result)
        folder.entries += [entry for entry in edited.entries if entry[0].suffix != ".safetensors"]
    if as_json:
        facts = {"prompt": PROMPT, **request.facts(pipe), "steps": trace.run.done}
        print_json({**facts, "files": folder.files, "words": figures(trace, WORDS)})
    tell(folder, console, f"{PROMPT!r}, seed {seed}: {time.monotonic() - begun:.0f} seconds")
    console.print('next: [bold]xattn record "a blue boat on a sea at night"[/bold], xattn --help')
