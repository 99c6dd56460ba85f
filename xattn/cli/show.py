"""``xattn show``: a saved recording as pictures, a report, or figures."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from xattn.cli import UsageError
from xattn.cli import options as o
from xattn.cli.output import Folder, consoles, figures, print_json, slug, tell
from xattn.cli.record import extent, write_pictures

EPILOG = """Examples: [bold]xattn show trace.safetensors --out shown[/bold],
[bold]xattn show trace.safetensors --word red --steps 0:10 --json[/bold]"""


def _steps(text: str) -> Any:
    try:
        numbers = [int(part) if part else None for part in text.split(":")]
    except ValueError:
        numbers = []
    if len(numbers) == 1 and numbers[0] is not None:
        return numbers[0]
    if len(numbers) == 2:
        return slice(*numbers)
    raise typer.BadParameter(f"{text!r} are no steps: give 3, 0:10 or 10:")


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command(epilog=EPILOG)(show)


def show(
    trace: Annotated[
        Path, typer.Argument(help="A file of Trace.save, or a folder of streamed maps.")
    ],
    words: Annotated[
        list[str] | None,
        typer.Option("--word", help="A word or phrase; every word by default. Repeat it for more."),
    ] = None,
    steps: Annotated[
        Any,
        typer.Option(
            parser=_steps,
            metavar="STEPS",
            help="Of the words' maps and figures, only some: 3, 0:10, 10:. What runs over the "
            "steps (entropy, animation, report) shows them all.",
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(
            help="Names or globs of layers, 'all' or 'daam': of maps, figures, entropy and "
            "animation. The report shows them all."
        ),
    ] = None,
    run: Annotated[int, typer.Option(help="Which run of several; the latest by default.")] = -1,
    image: Annotated[int, typer.Option(min=0, help="Which image of a batch.")] = 0,
    animate: Annotated[
        str | None, typer.Option(metavar="WORD", help="Write a GIF of a word over the steps.")
    ] = None,
    on: Annotated[
        Path | None,
        typer.Option(
            exists=True, dir_okay=False, help="A picture to draw maps on; the recorded image else."
        ),
    ] = None,
    refined: o.RefinedOption = False,
    entropy: Annotated[
        bool,
        typer.Option(
            "--entropy", help="Print how undecided each layer is between the words; no pictures."
        ),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            help="The folder for results; xattn-show by default, none with --json.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    as_json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Make pictures, a report or figures of a saved recording."""
    console, progress = consoles(as_json)
    with progress.status("reading"):
        chosen = one_run(trace, run)
        canvas = None if on is None else opened(on)
    layout: Any = layers[0] if layers and len(layers) == 1 else layers
    if entropy:
        with o.asked():
            table = chosen.layer_entropies(image, layers=layout or "all")
        console.print(str(table), highlight=False)
        if as_json:
            print_json({"prompt": chosen.run.prompt(image).text, "entropy": table.to_json()})
        return
    where = {"steps": steps, "layers": layout, "refined": refined}
    folder = None if out is None and as_json else Folder(out or Path("xattn-show"))
    with o.asked():  # the recording is sound: what can't be shown isn't in it
        shown = list(words or kept_words(chosen, image))
        numbers = figures(chosen, shown, image, **where)
        if folder is not None:
            with progress.status("writing"):
                write(folder, chosen, shown, image, where, animate=animate, on=canvas)
    if as_json:
        data = {"prompt": chosen.run.prompt(image).text, "image": image, **extent(chosen)}
        files = folder.files if folder else {}
        print_json({**data, "info": chosen.run.info, "files": files, "words": numbers})
    elif folder is not None:
        tell(folder, console)


def one_run(path: Path, run: int) -> Any:
    """Load one run of a recording.

    Raises:
        UsageError: there is no such recording, or it has no such run.
        FileError: the recording is damaged.
    """
    if not path.exists():  # said at once: what follows imports torch
        raise UsageError(f"there is no recording at {path}")
    import xattn

    loaded = xattn.load(path)
    if not -len(loaded) <= run < len(loaded):
        raise UsageError(f"--run {run}: the recording has {len(loaded)} runs, counted from 0")
    return loaded[run]


def kept_words(trace: Any, image: int) -> list[str]:
    """Return the words of an image's prompt that were kept."""
    from xattn.maps import select

    return list(select.kept_words(trace.run, select.image_index(trace.run, image)))


def opened(path: Path) -> Any:
    """Read the picture of ``--on``.

    Raises:
        BadParameter: the file is not a picture.
    """
    from PIL import Image

    try:
        return Image.open(path).convert("RGB")
    except OSError as error:
        raise typer.BadParameter(f"--on {path}: the file is not a picture") from error


def write(
    folder: Folder,
    trace: Any,
    words: list[str],
    image: int,
    where: dict[str, Any],
    *,
    animate: str | None = None,
    on: Any = None,
) -> None:
    """Write pictures and report of one image of a recording, drawn on it or on ``on``."""
    known = trace.run.images[image] if image < len(trace.run.images) else None
    if known is not None:
        folder.picture("image.png", known, "the image")
    write_pictures(folder, trace, on or known or blank(trace), words, image, **where)
    if "step" in trace.run.keep and words:
        about = f"how focused {words[0]!r} is, by layer and {trace.run.axis}"
        path = folder.new("entropy.png", about)
        trace.evolution(words[0], image, layers=where["layers"] or "all").plot().save(path)
    if animate is not None:
        path = folder.new(f"{slug(0, animate)}.gif", f"{animate!r} over the steps")
        trace.animate(animate, path, image, on=on, layers=where["layers"])
    report = folder.new("report.html", "the report: open it in a browser")
    trace.report(report, None if on is None else image, on=on)


def blank(trace: Any) -> Any:
    """Return grey of a run's size, for a recording without images."""
    from xattn.views import colours

    return colours.picture(None, trace.run.latent)
