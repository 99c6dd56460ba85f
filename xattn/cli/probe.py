"""``xattn probe``: where the words of a text act in a given picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xattn.cli import UsageError
from xattn.cli import options as o
from xattn.cli.output import Folder, consoles, figures, print_json, tell
from xattn.cli.record import extent, write_pictures

EPILOG = 'Example: [bold]xattn probe photo.jpg "a red car on a lawn" --out photo[/bold]'


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(epilog=EPILOG)(probe)


def probe(
    image: Annotated[Path, typer.Argument(help="The picture, a file.", show_default=False)],
    prompt: o.PromptArgument,
    out: o.OutOption = Path("xattn-probe"),
    levels: Annotated[
        list[float] | None,
        typer.Option(
            "--level", help="A share of the noise schedule, between 0 and 1; several by default."
        ),
    ] = None,
    seeds: Annotated[
        int, typer.Option(min=1, max=1000, help="How many noises to average at each level.")
    ] = 1,
    words: Annotated[
        list[str] | None,
        typer.Option("--word", help="A word or phrase to keep; every word by default."),
    ] = None,
    keep: Annotated[
        str, typer.Option(help="Axes of the maps that stay apart: step, layer, head, by commas.")
    ] = "step,layer",
    layers: Annotated[
        list[str] | None, typer.Option(help="Names or globs of the layers to record.")
    ] = None,
    refined: o.RefinedOption = False,
    model: o.ModelOption = None,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
    offload: o.OffloadOption = None,
    seed: o.SeedOption = 0,
    size: o.SizeOption = None,
    as_json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Show where the words of a text act in a given picture: a map of each word, and a report."""
    import xattn
    from xattn.api.probe import LEVELS

    if image.is_dir():
        raise UsageError(f"{image} is a folder; probe one picture, or many by xattn batch")
    console, progress = consoles(as_json)
    folder = Folder(out)
    request = o.Request(model, device, dtype, offload, seed, size=size)
    pipe = request.pipeline(progress)
    with o.asked(), progress.status("looking"):
        trace = xattn.probe(
            pipe, image, prompt, levels=levels or LEVELS, seeds=seeds, seed=seed, size=size,
            keep=o.axes_of([keep]), words=words, layers=layers, affinity=refined,
        )  # fmt: skip
    with progress.status("writing"):
        write(folder, trace, list(words or trace.words), refined=refined)
    if as_json:
        facts: dict[str, Any] = {"prompt": prompt, **request.facts(pipe), **extent(trace)}
        facts |= {name: trace.run.info[name] for name in ("picture", "levels", "noises")}
        shown = list(words or trace.words)
        print_json(
            {**facts, "files": folder.files, "words": figures(trace, shown, refined=refined)}
        )
    tell(folder, console, trace.run.info["picture"])


def write(folder: Folder, trace: Any, words: list[str], *, refined: bool) -> None:
    """Write the picture as the model took it, the recording, the report and the maps."""
    picture = trace.run.images[0]
    folder.picture("image.png", picture, "the picture, as the model took it")
    trace.save(folder.new("trace.safetensors", "the recording, for xattn show and xattn.load"))
    trace.report(folder.new("report.html", "the report: open it in a browser"), 0)
    write_pictures(folder, trace, picture, words, refined=refined)
