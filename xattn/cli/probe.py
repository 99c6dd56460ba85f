"""``xattn probe``: where the words of a text act in a given picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xattn.cli import UsageError
from xattn.cli import options as o
from xattn.cli.output import Folder, consoles, enlarged, figures, print_json, slug, tell
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
    also: Annotated[
        list[str] | None,
        typer.Option(help="A word to look for that the text does not have. Repeat it for more."),
    ] = None,
    presence: Annotated[
        bool,
        typer.Option(
            "--presence",
            help="Say of each word how likely it is in the picture: a pass more for each of them "
            "at every level and noise.",
        ),
    ] = False,
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
            keep=o.axes_of([keep]), words=words, layers=layers, affinity=refined, also=also,
            presence=presence,
        )  # fmt: skip
    with progress.status("writing"):
        write(folder, trace, list(words or trace.words), refined=refined)
    if presence:
        if trace.run.info["presence"]["text"]:
            console.print(str(trace.verdict()), highlight=False)
        for word in also or []:
            console.print(f"{word}: {trace.presence(word)}", highlight=False)
    if as_json:
        facts: dict[str, Any] = {"prompt": prompt, **request.facts(pipe), **extent(trace)}
        facts |= {name: trace.run.info[name] for name in ("picture", "levels", "noises")}
        shown = list(words or trace.words)
        if presence:
            facts |= told(trace)
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
    if trace.run.concepts:
        for number, (name, heat) in enumerate(trace.concepts().items(), start=1):
            path = f"also-{slug(number, name)}.png"
            folder.picture(path, heat.overlay(enlarged(picture)), f"where {name!r} would act")


def told(trace: Any) -> dict[str, Any]:
    """Return what a trace says about presence, as plain JSON values."""
    found = trace.run.info["presence"]
    each = {word: trace.presence(word) for word in found["words"]}
    first = next(iter(each.values()))
    return {
        "verdict": trace.verdict().kind if found["text"] else None,
        "presence": {word: round(float(value), 4) for word, value in each.items()},
        "calibrated": first.calibrated,
    }
