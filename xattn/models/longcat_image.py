"""LongCat-Image: FLUX.1's blocks, words of Qwen2.5-VL, quoted text letter by letter."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from xattn.models.family import NOTHING, Axis
from xattn.models.flux import Flux
from xattn.text.tokenize import Template


@dataclass(frozen=True)
class LongCatImage(Flux):
    """The family of LongCat-Image and its Edit.

    The prompt is tokenized by itself, each letter of what stands in quotation marks alone. In an
    edit the image's positions stand in front of it.
    """

    classes: tuple[str, ...] = ("LongCatImageTransformer2DModel",)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the prompt's positions, behind those of an image."""
        length = int(pipe.tokenizer_max_length)
        before = 0 if states is None else int(states.shape[1]) - length
        split = sys.modules[type(pipe).__module__].split_quotation
        spelling = Spelling(pipe.tokenizer, split)
        return (Axis((spelling,), template=Template(dropped=-before)),)


class Spelling:
    """A tokenizer that reads quoted text letter by letter, as the pipeline does.

    Args:
        tokenizer: the pipeline's.
        split: its division of a text into (part, whether it is quoted).
    """

    is_fast = True

    def __init__(self, tokenizer: Any, split: Any) -> None:
        self.tokenizer = tokenizer
        self.split = split
        self.model_max_length = int(tokenizer.model_max_length)

    def __call__(self, text: str, **options: Any) -> dict[str, list[Any]]:
        """Return ids, offsets and marks of a text; it has no marks of its own.

        Raises:
            ValueError: the parts are not the text.
        """
        parts = [
            piece for part, quoted in self.split(text) for piece in (part if quoted else [part])
        ]
        if "".join(parts) != text:
            raise ValueError(f"the pipeline divides {text!r} into {parts!r}, which is another text")
        ids: list[int] = []
        offsets: list[tuple[int, int]] = []
        at = 0
        for piece in parts:
            read = self.tokenizer(piece, add_special_tokens=False, return_offsets_mapping=True)
            ids += read["input_ids"]
            offsets += [(start + at, end + at) for start, end in read["offset_mapping"]]
            at += len(piece)
        return {"input_ids": ids, "offset_mapping": offsets, "special_tokens_mask": [0] * len(ids)}
