"""Output of a command: files in a folder, and the table or JSON that lists them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from xattn.cli import UsageError

OF_A_WORD = re.compile(r"(also-)?\d\d+-.+\.(png|gif)").fullmatch  # what slug names

LEGIBLE = 512  # pixels: pictures with a map on them are at least so large


@dataclass
class Folder:
    """A folder of results, with a line about each of its files."""

    path: Path
    entries: list[tuple[Path, str]] = field(default_factory=list)

    _before: frozenset[Path] = field(init=False, default=frozenset())

    def __post_init__(self) -> None:
        if self.path.exists() and not self.path.is_dir():
            raise UsageError(f"--out {self.path} is a file; give a folder")
        self.path.mkdir(parents=True, exist_ok=True)
        self._before = frozenset(path for path in self.path.iterdir() if OF_A_WORD(path.name))

    @property
    def stale(self) -> list[Path]:
        """Pictures of words that an earlier command left here, and this one didn't write."""
        return sorted(self._before - {path for path, _ in self.entries})

    def new(self, name: str, what: str) -> Path:
        """Return the path of a new file, and note what it shows."""
        path = self.path / name
        self.entries.append((path, what))
        return path

    def picture(self, name: str, image: Any, what: str) -> None:
        """Write a picture."""
        image.save(self.new(name, what), compress_level=3)

    @property
    def files(self) -> dict[str, str]:
        """The path of each file, and what it shows."""
        return {str(path): what for path, what in self.entries}


def consoles(as_json: bool) -> tuple[Console, Console]:
    """Return the consoles of results (stdout) and of progress (stderr)."""
    return Console(soft_wrap=True, quiet=as_json), Console(stderr=True, quiet=as_json)


def tell(folder: Folder, console: Console, title: str = "") -> None:
    """Print each file and what it shows."""
    from rich.text import Text

    if title:
        console.print(Text(title, style="bold"))
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True, style="cyan")
    table.add_column()
    for path, what in folder.entries:
        table.add_row(Text(str(path)), Text(what))
    console.print(table)
    if folder.stale:
        names = ", ".join(path.name for path in folder.stale)
        console.print(Text(f"left from an earlier run: {names}", style="yellow"))


def print_json(data: Any) -> None:
    """Print one JSON object on stdout; facts that JSON can't hold stand in it as text."""
    from xattn.records.format import json_value

    print(json.dumps(json_value(data), indent=2, ensure_ascii=False, allow_nan=False))


def slug(number: int, word: str) -> str:
    """Return a file's name for a word, whatever characters it has."""
    plain = re.sub(r"[^\w-]+", "-", word).strip("-")[:40]
    return f"{number:02d}-{plain or 'word'}"


def enlarged(image: Any) -> Any:
    """Return an image that is large enough to see a map on it."""
    from PIL import Image

    longer = max(image.size)
    if longer >= LEGIBLE:
        return image
    size = tuple(round(side * LEGIBLE / longer) for side in image.size)
    return image.resize(size, Image.Resampling.BICUBIC)


def figures(trace: Any, words: Sequence[str], image: int = 0, **where: Any) -> dict[str, Any]:
    """Return the measures of each word's map by name, as plain JSON values."""
    maps = {word: trace.heatmap(word, image, **where) for word in words}
    return {
        word: {name: _plain(value) for name, value in heat.measure().items()}
        for word, heat in maps.items()
    }


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(each) for each in value]
    return round(float(value), 6)
