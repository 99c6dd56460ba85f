"""PRX: the image attends to the text and to itself in one call, and the text to nothing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from xattn.models.family import NOTHING, Axis, DenoiserCall, Role
from xattn.models.separate import Separate


@dataclass(frozen=True)
class PRX(Separate):
    """The family of PRX (Photoroom 2025): keys are [text, image], padding is masked."""

    classes: tuple[str, ...] = ("PRXTransformer2DModel",)
    roles: tuple[tuple[str, Role], ...] = (("attention", "added"),)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call; its timestep is a thousandth of the scheduler's."""
        call = super().read(arguments, component)
        return replace(call, timestep=call.timestep * 1000)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the tokenizer's positions."""
        how = "basic_clean" if given.get("skip_text_cleaning") else "clean_text"
        clean = getattr(pipe.text_preprocessor, how)

        def convert(text: str, tokenizer: Any) -> str:
            changed: str = clean(text)
            return changed

        return (Axis((pipe.tokenizer,), convert=convert),)
