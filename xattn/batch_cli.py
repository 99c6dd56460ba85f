"""``xattn batch``: a set of prompts from the command line."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

DTYPES = ("float32", "float16", "bfloat16")


def register(app: typer.Typer) -> None:
    """Adds the command ``batch``."""
    app.command()(batch)


def batch(
    prompts: Annotated[
        Path,
        typer.Argument(
            help="JSON Lines: an object a line with prompt and, if wanted, seed, negative_prompt, "
            "words, edits, steps, size, guidance_scale, name.",
            exists=True,
            dir_okay=False,
        ),
    ],
    out: Annotated[Path, typer.Option(help="The folder for results.")],
    model: Annotated[
        str | None, typer.Option(help="A hub id or a folder; the bundled model by default.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Items that are drawn together.")] = 8,
    keep: Annotated[
        list[str], typer.Option(help="Axes of the maps that stay apart: step, layer, head.")
    ] = ["layer"],  # noqa: B006
    layers: Annotated[
        list[str] | None, typer.Option(help="Names or globs of the layers to record.")
    ] = None,
    images: Annotated[str, typer.Option(help="png, webp or none.")] = "png",
    torch_dtype: Annotated[
        str | None, typer.Option(help=f"{', '.join(DTYPES)}; float16 on a GPU by default.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with an earlier run.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", help="Show no progress.")] = False,
) -> None:
    """Draw and record a set of prompts; on many GPUs with ``accelerate launch -m xattn.cli batch``.

    Exits with 1 when anything failed; failed lines are listed, and in OUT/failures.jsonl.
    """
    from xattn import batch as batches

    if torch_dtype is not None and torch_dtype not in DTYPES:
        raise typer.BadParameter(f"{torch_dtype!r} is none of {', '.join(DTYPES)}")
    crew = batches.Crew()
    pipe = _pipeline(model, crew.state.device, torch_dtype)
    try:
        report = batches.run(
            pipe,
            prompts,
            out,
            batch_size=batch_size,
            keep=keep,
            layers=layers,
            images=None if images == "none" else images,
            resume=resume,
            progress=None if quiet else progress_bar,
        )
    except (OSError, ValueError) as error:
        if crew.is_main:
            typer.echo(f"xattn batch: {error}", err=True)
        raise typer.Exit(2) from error
    finally:
        crew.close()
    if crew.is_main:
        for failure in report.failures:
            typer.echo(str(failure), err=True)
        typer.echo(f"{report}: {out}")
    if not report.ok:
        raise typer.Exit(1)


def _pipeline(model: str | None, device: Any, dtype: str | None) -> Any:
    import torch

    wanted = dtype or ("float16" if device.type == "cuda" else "float32")
    kind: torch.dtype = getattr(torch, wanted)
    if model is None:
        from xattn.toyland import demo

        return demo(device, kind)
    from diffusers import AutoPipelineForText2Image

    with warnings.catch_warnings():
        # newer versions call it dtype, older ones know only this name
        warnings.filterwarnings("ignore", "`torch_dtype`", FutureWarning)
        pipe = AutoPipelineForText2Image.from_pretrained(model, torch_dtype=kind)
    return pipe.to(device)


@contextmanager
def progress_bar(writer: Any, sizes: Mapping[str, int]) -> Iterator[None]:
    """Shows how many items of all processes are done, by the files that there are."""
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
