"""``xattn batch``: a set of prompts from the command line."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from xattn.cli import options as o
from xattn.cli.output import print_json

STDIN = Path("-")
EPILOG = "Example: [bold]xattn batch prompts.jsonl --out runs[/bold]"


class Images(str, Enum):
    """How images are kept: WebP without loss."""

    PNG = "png"
    WEBP = "webp"
    NONE = "none"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("batch", epilog=EPILOG)(batch)


def there_is(prompts: Path) -> Path:
    """Return the name of a file that there is, or of standard input.

    Raises:
        typer.BadParameter: there is no such file.
    """
    if prompts != STDIN and not prompts.is_file():
        wrong = "is a folder" if prompts.is_dir() else "does not exist"
        raise typer.BadParameter(f"file '{prompts}' {wrong}")
    return prompts


def batch(
    prompts: Annotated[
        Path,
        typer.Argument(
            help="JSON Lines: on each line an object with prompt and, if wanted, seed, "
            "negative_prompt, words, edits, steps, size ([height, width] or WxH), guidance_scale, "
            "name; - reads the lines from standard input.",
            callback=there_is,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder for results.", rich_help_panel=o.OUTPUT)],
    model: o.ModelOption = None,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
    offload: o.OffloadOption = None,
    batch_size: Annotated[
        int, typer.Option(min=1, help="Items drawn together.", rich_help_panel=o.RUN)
    ] = 8,
    keep: Annotated[
        list[str] | None,
        typer.Option(
            help="Axes of the maps that stay apart: step, layer, head, by commas; layer by "
            "default.",
            rich_help_panel=o.OUTPUT,
        ),
    ] = None,
    layers: Annotated[
        list[str] | None,
        typer.Option(help="Names or globs of the layers to record.", rich_help_panel=o.OUTPUT),
    ] = None,
    images: Annotated[
        Images, typer.Option(help="How images are kept.", rich_help_panel=o.OUTPUT)
    ] = Images.PNG,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an earlier run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
    as_json: o.JsonOption = False,
    debug: o.DebugOption = False,
) -> None:
    """Draw and record a set of prompts; on many GPUs with accelerate launch -m xattn.cli batch.

    Exits with 1 when a line failed: those are listed, and in OUT/failures.jsonl.
    """
    from xattn import batch as batches
    from xattn.batch import processes
    from xattn.models.loading import load_pipeline

    with processes.Crew() as crew:
        with o.asked():  # what a line asks for wrongly is that line's failure
            lines = typed_lines(crew.size) if prompts == STDIN else prompts
            pipe = load_pipeline(
                model,
                device=device,
                dtype=dtype.value if dtype else None,
                offload=offload.value if offload else None,
            )
            report = batches.run(
                pipe,
                lines,
                out,
                batch_size=batch_size,
                keep=["layer"] if keep is None else o.axes_of(keep),
                layers=layers,
                images=None if images is Images.NONE else images.value,
                resume=resume,
                progress=None if quiet or as_json else progress_bar,
            )
        if crew.is_main and as_json:
            failures = [asdict(failure) for failure in report.failures]
            ended = {"drawn": report.drawn, "before": report.before, "failures": failures}
            print_json({**ended, "out": str(out)})
        elif crew.is_main:
            for failure in report.failures:
                typer.echo(str(failure), err=True)
            typer.echo(f"{report}: {out}")
    if not report.ok:
        raise typer.Exit(1)


def typed_lines(processes: int) -> list[bytes]:
    """Read lines from standard input.

    Raises:
        ValueError: several processes draw, and only one of them could read it.
    """
    if processes > 1:
        raise ValueError(f"standard input can't be shared by {processes} processes: name a file")
    return sys.stdin.buffer.readlines()


@contextmanager
def progress_bar(writer: Any, sizes: Mapping[str, int]) -> Iterator[None]:
    """Show how many items of all processes are done, by the files that there are."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn
    except ModuleNotFoundError:
        yield
        return
    over = threading.Event()
    columns = (BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress("drawing", *columns, console=Console(stderr=True)) as bar:
        task = bar.add_task("items", total=sum(sizes.values()))

        def look() -> None:
            bar.update(task, completed=sum(sizes.get(group, 0) for group in writer.done()))

        def watch() -> None:
            while not over.wait(0.5):
                look()

        thread = threading.Thread(target=watch, name="xattn-progress", daemon=True)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
            look()
