"""Goals of ``xattn.steer`` as the command line writes them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any

import typer

from xattn.cli import UsageError

GOALS = "Steering"

PresentOption = Annotated[
    list[str] | None,
    typer.Option(
        "--present", metavar="WORD", help="Steer: a word that should be there.",
        rich_help_panel=GOALS,
    ),
]  # fmt: skip
BindOption = Annotated[
    list[str] | None,
    typer.Option(
        "--bind", metavar="WORD=NOUN", help="Steer: an attribute and its noun, pink=fish.",
        rich_help_panel=GOALS,
    ),
]  # fmt: skip
PlaceOption = Annotated[
    list[str] | None,
    typer.Option(
        "--place", metavar="WORD=PLACE",
        help="Steer: star=left, right, top, bottom, centre, or star=0,0,0.5,1 "
        "(left, top, right, bottom).",
        rich_help_panel=GOALS,
    ),
]  # fmt: skip
ApartOption = Annotated[
    list[str] | None,
    typer.Option(
        "--apart", metavar="WORD=WORD", help="Steer: two words in different places, cat=dog.",
        rich_help_panel=GOALS,
    ),
]  # fmt: skip


def goals_of(
    present: Sequence[str] | None,
    bind: Sequence[str] | None,
    place: Sequence[str] | None,
    apart: Sequence[str] | None,
) -> list[Any]:
    """Return the goals that the options ask for; all words of ``--present`` in one.

    Raises:
        UsageError: an option is not of its form, or a place is not one.
    """
    if not (present or bind or place or apart):
        return []
    from xattn.guidance import spelled

    try:
        return list(spelled.goals_of(present, bind, place, apart, name="--{}"))
    except ValueError as error:
        raise UsageError(str(error)) from error
