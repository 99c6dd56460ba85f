"""OmniGen: text, a time token, then the image, in one causal sequence that the model embeds."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor, nn

from xattn.models.family import NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.joint import Joint, Layout, patched_call
from xattn.models.noise import clean_of_flow
from xattn.models.separate import layers_named
from xattn.text.tokenize import Template

_MARK = re.compile(r"<\|image_\d+\|>")
_BEGIN = 1
"""The token that begins a text, which stands once in front of all its pieces."""


@dataclass(frozen=True)
class OmniGen(Joint):
    """The family of OmniGen (Xiao et al. 2024), from text and with pictures.

    The pipeline has no text encoder: the transformer embeds the ids that a processor makes, and
    those are the states here. Padding stands in front, and is masked. Rows of guidance come behind
    the prompts'. Only the image reads all of the sequence; text reads what stands before it.
    """

    classes: tuple[str, ...] = ("OmniGenTransformer2DModel",)
    encoders: tuple[str, ...] = ("multimodal_processor",)

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the blocks' attention: all joint."""
        found = layers_named(denoiser, component, {"self_attn": "joint"}, within="layers.")
        return tuple(replace(layer, text_reads=False) for layer in found)

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, timestep, input_ids, ...)``."""

        def lay(text: int, own: int) -> Layout:
            image = slice(text + 1, text + 1 + own)
            return Layout(text + 1 + own, slice(0, text), image, image)

        patch = int(arguments["self"].config.patch_size)
        return patched_call(arguments, component, arguments["input_ids"], patch, lay=lay)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the tokenizer's positions, and those of given pictures between them."""
        before, _, after = pipe.multimodal_processor.add_prefix_instruction("{}").partition("{}")
        pictures = {
            f"{before}{text}{after}": sizes for text, sizes in given.get("pictures", {}).items()
        }
        return (
            Axis((Pieces(pipe.tokenizer, pictures),), template=Template(before, after, 0, True)),
        )

    def encoded(self, result: Any) -> Encoded:
        """Read (the prompts' ids, the negative prompt's)."""
        return Encoded(result[0], result[1])

    def as_encoded(self, given: dict[str, Any], result: Any) -> tuple[dict[str, Any], Any]:
        """Return prompts with their pictures' sizes, and the rows of ids of each kind.

        Raises:
            ValueError: one prompt has pictures of several sizes.
        """
        texts, count = given["instructions"], int(given["num_images_per_prompt"])
        pictures: dict[str, list[int]] = {}
        for number, text in enumerate(texts):
            spans = result["input_image_sizes"].get(number * count, ())
            sizes = [end - start for start, end in spans]
            if pictures.setdefault(text, sizes) != sizes:
                raise ValueError(
                    f"the prompt {text!r} is given with pictures of several sizes, so that its "
                    "words stand at several places: draw them one by one"
                )
        rows = result["input_ids"].split(len(texts) * count)  # a third has the pictures alone
        return {**given, "prompt": list(texts), "pictures": pictures}, rows

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Return the clean latents that a velocity means."""
        return clean_of_flow(scheduler, sample, output, timestep)


class Pieces:
    """A tokenizer of texts that are cut where pictures stand, as OmniGen's processor cuts them.

    Args:
        tokenizer: reads each piece.
        pictures: how many positions each picture of a text has.
    """

    def __init__(self, tokenizer: Any, pictures: Mapping[str, Sequence[int]]) -> None:
        self.tokenizer = tokenizer
        self.pictures = pictures
        self.model_max_length: int = tokenizer.model_max_length

    def __call__(self, text: str, **how: Any) -> dict[str, list[Any]]:
        """Return ids, spans in the text, and which tokens are special."""
        sizes, begin = self.pictures.get(text, ()), 0
        found: dict[str, list[Any]] = {}
        marks = list(_MARK.finditer(text)) if sizes else []
        for mark, size in zip([*marks, None], [*sizes, 0], strict=True):
            end = len(text) if mark is None else mark.start()
            read = self.tokenizer(text[begin:end], **how)
            first = int(bool(begin) and read["input_ids"][0] == _BEGIN)
            spans = [(start + begin, stop + begin) for start, stop in read["offset_mapping"]]
            _extend(found, "input_ids", read["input_ids"][first:], 0, size)
            _extend(found, "offset_mapping", spans[first:], (end, end), size)
            _extend(found, "special_tokens_mask", read["special_tokens_mask"][first:], 0, size)
            begin = end if mark is None else mark.end()
        return found


def _extend(
    found: dict[str, list[Any]], name: str, piece: Sequence[Any], picture: Any, size: int
) -> None:
    """Add what was read of a piece, and a picture's positions behind it."""
    found.setdefault(name, []).extend([*piece, *[picture] * size])
