"""``xattn edit`` and ``xattn sweep``: one noise, the prompt's own image and edited siblings."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from xattn.cli import options as o
from xattn.cli.output import Folder, consoles, print_json, tell
from xattn.cli.photo import Photo, PhotoOption, write_pasted
from xattn.edits import codec
from xattn.edits.kinds import Edit, LocalBlend, Reweight
from xattn.units import number_of

EDIT_EPILOG = """Each of --replace, --refine and --reweight makes an image of its own. A
[bold]+[/bold] before one of them adds it to the edit before, and --blend always belongs to the edit
before it.

Example: [bold]xattn edit "a red car on a green lawn" --replace red=blue --blend car
--refine "a red car on a green lawn at night" --replace car=boat + --reweight red=2[/bold]"""
SWEEP_EPILOG = """Example: [bold]xattn sweep "a red car on a green lawn" red
--weights -1,0,1,3[/bold]"""


BLEND = "blend"  # the one kind of edit that belongs to the edit before it


class EditCommand(TyperCommand):
    """A command that keeps the order of its edits, and the + between them."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the arguments, and note how the edits are grouped."""
        groups, rest = grouped(args)
        parsed: list[str] = super().parse_args(ctx, rest)
        ctx.meta["xattn.edits"] = groups
        return parsed


def grouped(args: Sequence[str]) -> tuple[list[list[str]], list[str]]:
    """Return the kinds of the edits, grouped by sibling, and the arguments without +.

    >>> grouped(["--replace", "a=b", "--blend", "b", "--reweight", "a=2", "+", "--refine", "c"])[0]
    [['replace', 'blend'], ['reweight', 'refine']]
    """
    groups: list[list[str]] = []
    rest: list[str] = []
    joins = is_value = False
    for arg in args:
        if arg == "+" and not is_value:
            if joins or not groups:
                raise typer.BadParameter("a + stands between two edits")
            joins = True
            continue
        rest.append(arg)
        name, equals, _ = arg.partition("=")
        if is_value or name.removeprefix("--") not in codec.KINDS or not name.startswith("--"):
            is_value = False
            continue
        kind, is_value = name.removeprefix("--"), not equals
        if kind == BLEND and not groups:
            raise typer.BadParameter("--blend belongs to the edit before it, and there is none")
        if joins or kind == BLEND:
            groups[-1].append(kind)
        else:
            groups.append([kind])
        joins = False
    if joins:
        raise typer.BadParameter("a + stands between two edits")
    return groups, rest


def register(app: typer.Typer) -> None:
    """Add the commands to the app."""
    app.command(cls=EditCommand, epilog=EDIT_EPILOG)(edit)
    app.command(epilog=SWEEP_EPILOG)(sweep)


def _share(text: str) -> Any:
    try:
        return codec.share_of(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _weights(text: str) -> list[float]:
    try:
        return [number_of(part) for part in text.split(",")]
    except ValueError as error:
        raise typer.BadParameter(f"{error}; write them as -1,0,1,2,4") from None


Many = list[str] | None
EDITS = "Edits"
ReplaceOption = Annotated[
    Many,
    typer.Option(
        "--replace", metavar="OLD=NEW", rich_help_panel=EDITS,
        help="Put a word or phrase in the place of another, and keep the layout.",
    ),
]  # fmt: skip
RefineOption = Annotated[
    Many,
    typer.Option(
        "--refine", metavar="PROMPT", rich_help_panel=EDITS,
        help="A new prompt: what it shares with the old one stays where it was.",
    ),
]  # fmt: skip
ReweightOption = Annotated[
    Many,
    typer.Option(
        "--reweight", metavar="WORD=X", rich_help_panel=EDITS,
        help="Make a word stronger (3), weaker (0.5), remove it (0), push it away (-1).",
    ),
]  # fmt: skip
BlendOption = Annotated[
    Many,
    typer.Option(
        "--blend", metavar="WORD", rich_help_panel=EDITS,
        help="Keep the edit before it to the place of a word. Repeat it for more words.",
    ),
]  # fmt: skip
CrossOption = Annotated[
    Any,
    typer.Option(
        "--cross-steps", parser=_share, metavar="SHARE", rich_help_panel=EDITS,
        help="Share of the run in which words follow the source: 0.8, or 0.2:0.8.",
    ),
]  # fmt: skip
SelfOption = Annotated[
    Any,
    typer.Option(
        "--self-steps", parser=_share, metavar="SHARE", rich_help_panel=EDITS,
        help="Share of the run in which the layout follows the source: 0.4 by default.",
    ),
]  # fmt: skip


def edit(
    ctx: typer.Context,
    prompt: o.PromptArgument,
    replace: ReplaceOption = None,
    refine: RefineOption = None,
    reweight: ReweightOption = None,
    blend: BlendOption = None,
    cross_steps: CrossOption = None,
    self_steps: SelfOption = None,
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=0.99,
            rich_help_panel=EDITS,
            help="How tight --blend is, of the maximum; 0.3 by default.",
        ),
    ] = None,
    image: PhotoOption = None,
    method: o.MethodOption = None,
    out: o.OutOption = Path("xattn-edit"),
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
    """Draw a prompt, and siblings of its image with words replaced, added, stronger or weaker."""
    values = {"replace": replace, "refine": refine, "reweight": reweight, "blend": blend}
    timing = {"cross_steps": cross_steps, "self_steps": self_steps}
    with o.asked():
        edits = read_edits(ctx.meta["xattn.edits"], values, timing, threshold)
    request = o.Request(model, device, dtype, offload, seed, steps, size, guidance, negative)
    draw(request, out, as_json, prompt, edits, photo=Photo.of(image, method))


def sweep(
    prompt: o.PromptArgument,
    word: Annotated[str, typer.Argument(help="The word or phrase.", show_default=False)],
    weights: Annotated[
        Any,
        typer.Option(parser=_weights, metavar="NUMBERS", help="Its weights, by commas."),
    ] = "-1,0,1,2,4",
    cross_steps: CrossOption = None,
    self_steps: SelfOption = None,
    image: PhotoOption = None,
    method: o.MethodOption = None,
    out: o.OutOption = Path("xattn-sweep"),
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
    """Draw a prompt with one of its words weaker and stronger, side by side."""
    timing = {"cross_steps": cross_steps, "self_steps": self_steps}
    with o.asked():
        edits = [[Reweight({word: weight}, **timing)] for weight in weights]
    request = o.Request(model, device, dtype, offload, seed, steps, size, guidance, negative)
    labels = [f"{word} x {weight:g}" for weight in weights]
    draw(request, out, as_json, prompt, edits, labels, Photo.of(image, method))


def read_edits(
    groups: Sequence[Sequence[str]],
    values: dict[str, Many],
    timing: dict[str, Any],
    threshold: float | None,
) -> list[list[Edit]]:
    """Make edits of the options' texts, in the order in which they were given."""
    if not groups:
        raise typer.BadParameter("nothing to edit: give --replace, --refine or --reweight")
    if threshold is not None and not values["blend"]:
        raise typer.BadParameter("--threshold is that of --blend, and there is none")
    tight = LocalBlend.threshold if threshold is None else threshold
    left = {kind: iter(given or ()) for kind, given in values.items()}
    siblings = []
    for group in groups:
        texts = [(kind, next(left[kind])) for kind in group]
        parts = [codec.from_option(*one, **timing) for one in texts if one[0] != BLEND]
        places = [text for kind, text in texts if kind == BLEND]
        if places:
            parts.append(LocalBlend(places, threshold=tight))
        siblings.append(parts)
    return siblings


def draw(
    request: o.Request,
    out: Path,
    as_json: bool,
    prompt: str,
    edits: Sequence[Sequence[Any]],
    labels: Sequence[str] | None = None,
    photo: Photo | None = None,
) -> None:
    """Draw the source and its siblings, and write pictures, report and trace."""
    import xattn

    console, progress = consoles(as_json)
    folder = Folder(out)
    pipe = request.pipeline(progress)
    arguments = request.arguments(pipe)
    if photo is not None:
        with o.asked():
            arguments = photo.arguments(arguments)
    first = "" if photo is None else photo.cost(pipe, request.steps)
    with o.watched(progress, f"{first}drawing {len(edits) + 1} images") as watch:
        result = xattn.edit(pipe, prompt, *edits, callback_on_step_end=watch, **arguments)
    with progress.status("writing"):
        if labels is not None:
            result = result.labelled(*labels)
        write_edit(folder, result)
        if photo is not None:
            write_pasted(folder, result)
    if as_json:
        done = result.trace.run.done if result.trace is not None else request.steps
        facts = {"prompt": prompt, **request.facts(pipe), "steps": done}
        siblings = [
            {"label": label, "prompt": text}
            for label, text in zip(result.labels, result.prompts[1:], strict=True)
        ]
        print_json({**facts, "edits": siblings, "files": folder.files})
    tell(folder, console, "" if result.fidelity is None else f"the source: {result.fidelity}")


def write_edit(folder: Folder, result: Any) -> None:
    """Write an edit's trace, its images, the sheet of them side by side, and the report."""
    if result.trace is not None:  # first what the others can be made of again
        images = [result.source, *result.images]
        path = folder.new("trace.safetensors", "what each image attends to, for xattn show")
        result.trace.save(path, images)
    text = "the source, its edits, and where blends let them act"
    folder.picture("edits.png", result.sheet(), text)
    folder.picture("source.png", result.source, "the source, as the model alone would draw it")
    for number, (image, label) in enumerate(zip(result.images, result.labels, strict=True), 1):
        folder.picture(f"edit-{number:02d}.png", image, label)
    result.report(folder.new("report.html", "the report: open it in a browser"))
