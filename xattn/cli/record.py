"""``xattn record``: draw a prompt, and see what each of its words attends to."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xattn.cli import goals as g
from xattn.cli import options as o
from xattn.cli.output import Folder, consoles, enlarged, figures, print_json, slug, tell

EPILOG = 'Example: [bold]xattn record "a red car on a green lawn" --seed 1 --out car[/bold]'


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(epilog=EPILOG)(record)


def record(
    prompt: o.PromptArgument,
    out: o.OutOption = Path("xattn-record"),
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
    animate: Annotated[
        str | None, typer.Option(metavar="WORD", help="Write a GIF of a word over the steps.")
    ] = None,
    refined: o.RefinedOption = False,
    present: g.PresentOption = None,
    bind: g.BindOption = None,
    place: g.PlaceOption = None,
    apart: g.ApartOption = None,
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
    goals = g.goals_of(present, bind, place, apart)
    request = o.Request(model, device, dtype, offload, seed, steps, size, guidance, negative)
    pipe = request.pipeline(progress)
    arguments = request.arguments(pipe)
    axes = o.axes_of([keep])
    if animate is not None:
        with o.asked():
            check_animation(pipe, prompt, animate, words, axes)
    # with a scheduler that has none of these, nobody knows what the image is going to be
    forms = animate is not None and getattr(pipe.scheduler, "alphas_cumprod", None) is not None
    with (
        o.watched(progress, "drawing") as watch,
        xattn.record(
            pipe, keep=axes, words=words, layers=layers, previews=forms, affinity=refined
        ) as trace,
        xattn.steer(pipe, *goals) as steering,
    ):
        image = pipe(prompt, callback_on_step_end=watch, **arguments).images[0]
    shown = list(words or trace.words)
    with progress.status("writing"):
        about = "the image, steered" if goals else "the image, as the model alone would draw it"
        folder.picture("image.png", image, about)
        write_recording(folder, trace, image, shown, animate, refined=refined)
    if as_json:
        facts = {"prompt": prompt, **request.facts(pipe), **extent(trace), **steered(steering)}
        print_json(
            {**facts, "files": folder.files, "words": figures(trace, shown, refined=refined)}
        )
    tell(folder, console)


def write_recording(
    folder: Folder, trace: Any, image: Any, words: list[str], animate: str | None, *, refined: bool
) -> None:
    """Write a recording, then what can be made of it again: report, pictures, animation."""
    trace.save(
        folder.new("trace.safetensors", "the recording, for xattn show and xattn.load"), [image]
    )
    trace.report(folder.new("report.html", "the report: open it in a browser"))
    write_pictures(folder, trace, image, words, refined=refined)
    if animate is not None:
        path = folder.new(f"{slug(0, animate)}.gif", f"{animate!r} over the steps")
        trace.animate(animate, path)


def check_animation(
    pipe: Any, prompt: str, word: str, words: list[str] | None, axes: list[str]
) -> None:
    """Check before sampling that a word can be animated afterwards.

    Raises:
        BadParameter: the steps aren't kept apart, or the word isn't among those that are kept.
        ValueError: a word isn't in the prompt.
    """
    from xattn.batch.items import Item, positions_of

    if "step" not in axes:
        raise typer.BadParameter(
            f"--animate {word!r} needs the steps apart: add step to --keep {','.join(axes)}"
        )
    kept = positions_of(Item(prompt, words=tuple(words) if words else None), pipe)
    if not set(kept).issuperset(positions_of(Item(prompt, words=(word,)), pipe)):
        raise typer.BadParameter(
            f"--animate {word!r} is none of the words to keep; give --word {word!r} too"
        )


def write_pictures(
    folder: Folder, trace: Any, image: Any, words: list[str], index: int = 0, **where: Any
) -> None:
    """Write an overlay of each word, and a grid of words and steps."""
    canvas = enlarged(image)
    for number, word in enumerate(words, start=1):
        heat = trace.heatmap(word, index, **where)
        folder.picture(f"{slug(number, word)}.png", heat.overlay(canvas), f"where {word!r} acts")
    if words and not where.get("steps"):
        picture = trace.grid(words, index, on=image, layers=where.get("layers"))
        columns = "layers" if where.get("layers") else f"{trace.run.axis}s"
        folder.picture("grid.png", picture, f"words x {columns}")


def steered(steering: Any) -> dict[str, Any]:
    """Return what steering did as plain JSON values; nothing where there was no goal."""
    if not steering.goals:
        return {}
    losses = {goal: [values[0] for values in steps] for goal, steps in steering.losses.items()}
    return {"steering": {"gradient_steps": steering.gradient_steps, "losses": losses}}


def extent(trace: Any) -> dict[str, Any]:
    """Return a run's axes as plain JSON values."""
    run = trace.run
    return {
        "steps": run.done,
        "latent": list(run.latent),
        "layers": [layer.name for layer in run.layers],
        "keep": sorted(run.keep),
        "nbytes": trace.nbytes,
    }
