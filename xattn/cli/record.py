"""``xattn record``: draw a prompt, and see what each of its words attends to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xattn.cli import options as o
from xattn.cli.output import Folder, consoles, enlarged, figures, print_json, slug, tell

EPILOG = 'Example: [bold]xattn record "a red car on a green lawn" --seed 1 --out car[/bold]'


def register(app: typer.Typer) -> None:
    """Adds the command."""
    app.command(epilog=EPILOG)(record)


def record(
    prompt: o.PromptArgument,
    out: o.OutOption = Path("xattn-record"),
    words: Annotated[
        list[str] | None,
        typer.Option("--word", help="A word or phrase to keep; every word by default."),
    ] = None,
    keep: Annotated[
        str, typer.Option(help="Axes that stay apart: step, layer, head, by commas.")
    ] = "step,layer",
    layers: Annotated[
        list[str] | None, typer.Option(help="Names or globs of the layers to record.")
    ] = None,
    animate: Annotated[
        str | None, typer.Option(metavar="WORD", help="Write a GIF of a word over the steps.")
    ] = None,
    model: o.ModelOption = None,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
    offload: o.OffloadOption = None,
    seed: o.SeedOption = 0,
    steps: o.StepsOption = None,
    size: o.SizeOption = None,
    guidance: o.GuidanceOption = None,
    negative: o.NegativeOption = None,
    as_json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Draw a prompt and record its words: image, a map of each word, trace and report."""
    import xattn

    console, progress = consoles(as_json)
    folder = Folder(out)
    request = o.Request(model, device, dtype, offload, seed, steps, size, guidance, negative)
    pipe = request.pipeline(progress)
    arguments = request.arguments(pipe)
    axes = [axis.strip() for axis in keep.split(",") if axis.strip()]
    with (
        xattn.record(pipe, keep=axes, words=words, layers=layers) as trace,
        o.watched(pipe, progress, "drawing", keeps=animate is not None) as watch,
    ):
        image = pipe(prompt, callback_on_step_end=watch, **arguments).images[0]
    with progress.status("writing"):
        shown = list(words or trace.words)
        folder.picture("image.png", image, "the image, as the model alone would draw it")
        write_pictures(folder, trace, image, shown)
        if animate is not None:
            path = folder.new(f"{slug(0, animate)}.gif", f"{animate!r} over the steps")
            trace.animate(animate, image, path, previews=watch.previews())
        trace.report(folder.new("report.html", "the report: open it in a browser"), image)
        trace.save(
            folder.new("trace.safetensors", "the recording, for xattn show and xattn.load"), [image]
        )
    if as_json:
        facts = {"prompt": prompt, **request.facts(pipe), **extent(trace)}
        print_json({**facts, "files": folder.files, "words": figures(trace, shown)})
    tell(folder, console)


def write_pictures(
    folder: Folder, trace: Any, image: Any, words: list[str], index: int = 0, **where: Any
) -> None:
    """Writes an overlay of each word, and a grid of words and steps."""
    canvas = enlarged(image)
    for number, word in enumerate(words, start=1):
        heat = trace.heatmap(word, index, **where)
        folder.picture(f"{slug(number, word)}.png", heat.overlay(canvas), f"where {word!r} acts")
    if words and not where.get("steps"):
        known = image if index == 0 else index
        picture = trace.grid(words, known, layers=where.get("layers"))
        folder.picture("grid.png", picture, "words x steps")


def extent(trace: Any) -> dict[str, Any]:
    """Gives a run's axes as plain JSON values."""
    run = trace.run
    return {
        "steps": run.done,
        "latent": list(run.latent),
        "layers": [layer.name for layer in run.layers],
        "keep": sorted(run.keep),
        "nbytes": trace.nbytes,
    }
