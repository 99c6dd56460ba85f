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
    from xattn.guidance.apart import Apart
    from xattn.guidance.bind import Bind
    from xattn.guidance.place import Place
    from xattn.guidance.present import Present

    try:
        found: list[Any] = [Present(*present)] if present else []
        found += [Bind(*_pair("--bind", text, "pink=fish")) for text in bind or ()]
        for text in place or ():
            word, where = _pair("--place", text, "star=left")
            found.append(Place(word, _box(where)))
        found += [Apart(*_pair("--apart", text, "cat=dog")) for text in apart or ()]
    except UsageError:
        raise
    except ValueError as error:
        raise UsageError(str(error)) from error
    return found


def _pair(option: str, text: str, example: str) -> tuple[str, str]:
    word, equals, other = text.partition("=")
    if not equals or not word.strip() or not other.strip():
        raise UsageError(f"{option} {text!r} must be two words with = between them: {example}")
    return word.strip(), other.strip()


def _box(where: str) -> str | tuple[float, ...]:
    if "," not in where:
        return where
    return tuple(float(number) for number in where.split(","))
