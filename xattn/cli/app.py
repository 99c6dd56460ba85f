"""``xattn app``: the app in a browser."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated, Any

import typer

from xattn.cli import options as o

EPILOG = "Example: [bold]xattn app --port 7861[/bold], then open http://127.0.0.1:7861"
LIMITS = "Limits"


def register(app: typer.Typer) -> None:
    """Add the command to the app."""
    app.command("app", epilog=EPILOG)(launch)


def launch(
    model: o.ModelOption = None,
    device: o.DeviceOption = None,
    dtype: o.DtypeOption = None,
    offload: o.OffloadOption = None,
    host: Annotated[
        str, typer.Option(help="The address to listen on; others than this can be reached.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535)] = 7860,
    max_steps: Annotated[int, typer.Option(min=1, max=1000, rich_help_panel=LIMITS)] = 50,
    max_side: Annotated[
        int, typer.Option(min=64, help="Of an image, in pixels.", rich_help_panel=LIMITS)
    ] = 1024,
    max_edits: Annotated[
        int, typer.Option(min=1, max=16, help="Edits in one run.", rich_help_panel=LIMITS)
    ] = 4,
    debug: o.DebugOption = False,
) -> None:
    """Serve the app to a browser: draw, click a word, edit, compare. Its address is printed."""
    try:
        from xattn.app import page
    except ModuleNotFoundError as missing:
        if missing.name != "gradio":
            raise
        raise ValueError(
            'the app needs gradio, which isn\'t installed; run: pip install "xattn[app]"'
        ) from None
    from rich.console import Console

    from xattn.toyland.bundle import MODELS

    console = Console(stderr=True)
    pipe = o.Request(model, device, dtype, offload).pipeline(console)
    others: dict[str, Callable[[], Any]] = {
        name: partial(o.Request(name, device, dtype, offload).pipeline, console)
        for name in MODELS
        if model in (None, *MODELS) and name != (model or "unet")
    }
    limits = page.Limits(steps=max_steps, side=max_side, edits=max_edits)
    page.serve(pipe, model=model, limits=limits, host=host, port=port, others=others)
