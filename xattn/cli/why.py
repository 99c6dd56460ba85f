"""``xattn why``: what each word of a prompt causes in its picture."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xattn.cli import UsageError
from xattn.cli import options as o
from xattn.cli.output import Folder, consoles, enlarged, print_json, slug, tell

EPILOG = 'Example: [bold]xattn why "a red car on a green lawn" --seed 1 --out why[/bold]'


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(epilog=EPILOG)(why)


def why(
    prompt: o.PromptArgument,
    out: o.OutOption = Path("xattn-why"),
    how: Annotated[
        str,
        typer.Option(help="occlusion, shapley, information, surrogate or gradient."),
    ] = "occlusion",
    words: Annotated[
        list[str] | None,
        typer.Option("--word", help="A phrase that can be absent; every word by default."),
    ] = None,
    image: Annotated[
        Path | None,
        typer.Option("--image", help="Explain this picture in place of drawing one."),
    ] = None,
    target: Annotated[
        str, typer.Option(help="What is explained: image, or a concept that may be in it.")
    ] = "image",
    absent: Annotated[
        str, typer.Option(help="What an absent word is: removed, padding or mean.")
    ] = "removed",
    levels: Annotated[
        list[float] | None,
        typer.Option("--level", help="A share of the noise schedule; the method's by default."),
    ] = None,
    noises: Annotated[int, typer.Option(min=1, max=1000, help="How many to average.")] = 1,
    faithful: Annotated[
        bool, typer.Option("--faithfulness", help="Take words away in this order and in others.")
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="A folder that keeps the answers, to go on later.")
    ] = None,
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
    """Show what each word causes: the picture without it, in numbers, bars and maps."""
    import xattn

    if image is not None and (steps is not None or guidance is not None):
        raise UsageError("--steps and --guidance draw a picture, and --image gives one; leave out")
    console, progress = consoles(as_json)
    folder = Folder(out)
    request = o.Request(model, device, dtype, offload, seed, steps, size, guidance)
    pipe = request.pipeline(progress)
    asked: dict[str, Any] = {"of": words or "words", "how": how, "levels": levels, "noises": noises}
    with o.asked():
        cost = xattn.attribution_cost(pipe, prompt, **asked)
        progress.print(str(cost))
        with progress.status("asking"):
            what: Any = prompt
            given = request.arguments(pipe)
            if image is not None:
                what, given = xattn.probe(pipe, image, prompt, size=size, seed=seed), {}
            found = xattn.attribute(
                pipe, what, **asked, target=target, absent=absent, seed=seed, cache=cache, **given
            )
            curves = found.faithfulness() if faithful else None
    write(folder, found, curves)
    if as_json:
        facts = {**request.facts(pipe), **found.to_json(), "files": folder.files}
        print_json(facts | ({"areas": curves.areas} if curves else {}))
    console.print(found.table(), highlight=False, markup=False)
    if curves is not None:
        console.print(curves.table(), highlight=False, markup=False)
    tell(folder, console, prompt)


def write(folder: Folder, found: Any, curves: Any) -> None:
    """Write the picture, the chart, a map of each word where there are any, and the curves."""
    folder.picture("image.png", found.picture, "the picture that is explained")
    found.report(folder.new("report.html", "attention beside causes: open it in a browser"))
    folder.picture("words.png", found.bar(), f"{found.how}: a bar for each word")
    if curves is not None:
        folder.picture("faithfulness.png", curves.plot(), "what is lost as words go")
    if found.maps is None:
        return
    folder.picture("maps.png", found.grid(), "where each word acts, each on its own scale")
    for number, word in enumerate(found.words):
        drawn = enlarged(found.map(word).overlay())
        folder.picture(f"{slug(number, word)}.png", drawn, f"where {word!r} acts")
