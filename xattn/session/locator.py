"""Where text and image stand in a layer's call, asked of the family when it is needed."""

from __future__ import annotations

from typing import Any

from xattn.models.family import AttentionLayer, DenoiserCall, Family


class Locator:
    """Finder of the places of text and image in one layer's call, once per pair of lengths."""

    def __init__(self, family: Family, call: DenoiserCall, layer: AttentionLayer) -> None:
        self.family = family
        self.call = call
        self.layer = layer
        self._known: tuple[int, int, Any] | None = None

    def __call__(self, queries: int, keys: int) -> Any:
        """Return each row's place, or None; see ``Family.places``."""
        if self._known is None or self._known[:2] != (queries, keys):
            found = self.family.places(self.call, self.layer, queries, keys)
            self._known = (queries, keys, found)
        return self._known[2]
