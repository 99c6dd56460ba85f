"""How undecided each layer is between the words of a prompt."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from xattn.views import sheets


@dataclass(frozen=True)
class LayerEntropies:
    """The entropy over words of each layer, the lowest first; in [0, 1].

    Near 0 one word takes each place, near 1 all words share it evenly.

    Attributes:
        layers: (name, entropy) pairs.
        words: the words that shared the places.
    """

    layers: tuple[tuple[str, float], ...]
    words: tuple[str, ...]

    def __iter__(self) -> Iterator[tuple[str, float]]:
        return iter(self.layers)

    def __str__(self) -> str:
        names = sheets.shortened([name for name, _ in self.layers])
        room = max(map(len, names))
        return "\n".join(
            f"{name:<{room}}  {entropy:.3f}"
            for name, (_, entropy) in zip(names, self.layers, strict=True)
        )

    def to_json(self) -> list[dict[str, str | float]]:
        """Return the table as plain JSON values."""
        return [{"layer": name, "entropy": round(value, 6)} for name, value in self.layers]
