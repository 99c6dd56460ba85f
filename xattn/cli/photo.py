"""A photograph on the command line: the option, what its inversion costs, what is written of it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer

from xattn.cli import UsageError
from xattn.cli.options import asked
from xattn.cli.output import Folder

PhotoOption = Annotated[
    Path | None,
    typer.Option(
        "--image",
        help="A photograph that the prompt describes, or an inversion of one, as xattn invert "
        "writes it.",
        rich_help_panel="Edits",
    ),
]


@dataclass(frozen=True)
class Photo:
    """A photograph to edit, from the command line.

    Attributes:
        path: a picture, or an inversion.
        method: how to invert a picture.
    """

    path: Path
    method: str | None

    @classmethod
    def of(cls, path: Path | None, method: str | None) -> Photo | None:
        """Return what was given, or None.

        Raises:
            UsageError: there is a method and no picture.
        """
        if path is None and method is not None:
            raise UsageError(f"--method {method} is for --image, and there is none")
        return None if path is None else cls(path, method)

    def cost(self, pipe: Any, steps: int | None) -> str:
        """Return what its inversion takes, as the beginning of a sentence; nothing once inverted.

        Raises:
            UsageError: the method is not one, or not for this model.
        """
        import xattn
        from xattn.inversion.methods import DEFAULT

        if self.path.suffix == ".safetensors":
            return ""
        with asked():
            found = xattn.inversion_cost(pipe, method=self.method or DEFAULT, steps=steps or 50)
        return f"{found}, then "

    def arguments(self, arguments: dict[str, Any]) -> dict[str, Any]:
        """Return the arguments of ``xattn.edit``."""
        import xattn

        found = dict(arguments)
        size = found.pop("height", None), found.pop("width", None)
        if self.path.suffix == ".safetensors":
            found["source"] = xattn.load_inversion(self.path)
            return found
        found |= {"image": self.path, "method": self.method}
        return found if size[0] is None else {**found, "size": size}


def write_pasted(folder: Folder, result: Any) -> None:
    """Write each blended edit, put back into the photograph at its full size."""
    if result.inversion is None or result.inversion.original is None:
        return
    for number, (mask, label) in enumerate(zip(result.masks, result.labels, strict=True), 1):
        if mask is not None:
            name, text = f"photo-{number:02d}.png", f"{label}, in the photograph"
            folder.picture(name, result.paste(number - 1), text)
