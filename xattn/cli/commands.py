"""The commands, each in a module of its own, under one name: ``xattn``."""

from __future__ import annotations

from importlib import import_module
from importlib.util import find_spec
from typing import Annotated

import typer

from xattn import __version__
from xattn.cli import demo, edit, invert, probe, record, show, why
from xattn.cli.app import register

app = typer.Typer(
    name="xattn",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help="See and steer what the words of a prompt do inside a text-to-image diffusion model.",
    epilog="Start with: [bold]xattn demo[/bold]",
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"xattn {__version__}")
        raise typer.Exit


@app.callback()
def top(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """See and steer what the words of a prompt do inside a text-to-image diffusion model."""


for module in (demo, record, probe, why, edit, invert, show):
    module.register(app)
if find_spec("xattn.cli.batch") is not None:
    import_module("xattn.cli.batch").register(app)
register(app)
