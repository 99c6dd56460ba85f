"""Where a denoiser attends to text: the layers, their heads, and the grid of their queries."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal

from torch import nn

Kind = Literal["cross", "self", "added"]


@dataclass(frozen=True)
class Site:
    """One attention layer of a denoiser.

    Attributes:
        name: the module's name, for example ``mid_block.attentions.0.transformer_blocks.0.attn2``;
            with ``controlnet.`` before it for a ControlNet's.
        module: the attention module that holds the processor.
        heads: its number of heads.
        depth: how often the latent grid was halved on the way to it.
        kind: "cross" where keys are text, "self" where they are the image's, "added" where the
            keys are text first and the image's own after it (DeepFloyd IF, Kandinsky 2).
    """

    name: str
    module: nn.Module
    heads: int
    depth: int
    kind: Kind

    def grid(self, latent: tuple[int, int]) -> tuple[int, int]:
        """Gives (height, width) of the queries for latents of (height, width)."""
        height, width = latent
        for _ in range(self.depth):
            # a stride-2 convolution with padding 1 rounds up
            height, width = -(-height // 2), -(-width // 2)
        return height, width


def find_sites(denoiser: nn.Module, prefix: str = "") -> tuple[Site, ...]:
    """Lists every attention layer of a UNet or a ControlNet, in the order of its definition.

    Raises:
        TypeError: the model isn't of a family whose layout is known.
    """
    model: Any = getattr(denoiser, "_orig_mod", denoiser)
    # asked of the class: on the instance the property would walk the whole model
    if not hasattr(type(model), "attn_processors") or not hasattr(model, "down_blocks"):
        raise TypeError(
            f"{type(model).__name__} has no layers of text cross-attention that xattn knows; "
            "expected a UNet2DConditionModel or a ControlNetModel"
        )
    sites = []
    for path in model.attn_processors:
        name = path.removesuffix(".processor")
        module = model.get_submodule(name)
        kind = _kind(module)
        if kind is not None:
            depth = _depth(model, name)
            sites.append(Site(prefix + name, module, int(module.heads), depth, kind))
    return tuple(sites)


def text_sites(sites: Sequence[Site], wanted: str | Sequence[str] | None = None) -> list[Site]:
    """Picks the layers that attend to text, and of those the ones whose names fit the globs.

    Raises:
        ValueError: a glob fits none; the error lists the layers there are.
    """
    text = [s for s in sites if s.kind != "self"]
    if not text:
        raise ValueError("this model has no layer that attends to text: nothing can be recorded")
    if wanted is None:
        return text
    globs = [wanted] if isinstance(wanted, str) else list(wanted)
    idle = [glob for glob in globs if not any(_fits(s.name, glob) for s in text)]
    if idle or not globs:
        names, asked = ", ".join(s.name for s in text), idle[0] if idle else wanted
        raise ValueError(f"layers={asked!r} fits none of the layers that attend to text: {names}")
    return [s for s in text if any(_fits(s.name, glob) for glob in globs)]


def _fits(name: str, glob: str) -> bool:
    return fnmatchcase(name, glob) or name.startswith(f"{glob}.")


def _kind(module: Any) -> Kind | None:
    if getattr(module, "added_kv_proj_dim", None) is not None:
        return "added"
    is_cross = getattr(module, "is_cross_attention", None)
    if is_cross is None:
        return None
    # "only_cross_attention" layers are built as attn1 and say so themselves
    return "cross" if is_cross else "self"


def _depth(model: Any, name: str) -> int:
    """Counts the samplers that stand before a layer: down blocks add one, up blocks take one."""
    place, _, rest = name.partition(".")
    downs = [getattr(block, "downsamplers", None) is not None for block in model.down_blocks]
    if place == "down_blocks":
        return sum(downs[: int(rest.split(".")[0])])
    if place == "up_blocks":
        before = model.up_blocks[: int(rest.split(".")[0])]
        ups = sum(getattr(block, "upsamplers", None) is not None for block in before)
        return sum(downs) - ups
    return sum(downs)
