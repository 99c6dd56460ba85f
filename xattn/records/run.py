"""What one call of a pipeline left behind: its axes, and the maps along them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import metadata
from typing import Any, Protocol

import torch

from xattn.text.prompt import Prompt

AXES = ("step", "layer", "head")


@dataclass(frozen=True)
class Layer:
    """A place where the denoiser attends to text, or the mean of several of one grid.

    Attributes:
        name: the module's name in the denoiser, for example
            ``down_blocks.0.attentions.0.transformer_blocks.0.attn2``; ``controlnet.`` stands
            before it for a ControlNet's layer. Where the layer axis was dropped, ``mean@HxW``, or
            ``mean@HxW.middle`` for those in the middle.
        grid: (height, width) of its queries.
        heads: how many heads the layer has.
        members: the names of the layers whose mean this is; its own name alone otherwise.
    """

    name: str
    grid: tuple[int, int]
    heads: int
    members: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if not self.members:
            object.__setattr__(self, "members", (self.name,))

    @property
    def area(self) -> int:
        """The number of queries, height x width."""
        return self.grid[0] * self.grid[1]

    @property
    def middle(self) -> bool:
        """Whether it stands in the denoiser's middle block, or in a ControlNet.

        Means over layers never mix these with the others, which heat maps are made of by default.
        """
        return any("mid_block" in name or "controlnet." in name for name in self.members)


class Store(Protocol):
    """Where maps are kept: memory, or a folder of safetensors files."""

    @property
    def nbytes(self) -> int:
        """The bytes that the kept maps take."""

    def read(self, layer: int, steps: Sequence[int]) -> torch.Tensor:
        """Gives (steps, images, heads, tokens, height, width) of a layer, in the kept dtype."""


@dataclass
class Run:
    """The record of one call of a pipeline.

    Maps are attention probabilities of the image's queries for each kept token. Axes that were
    not kept have length one: their mean over what was dropped.

    Attributes:
        prompts: the tokenised prompts, one for each prompt that was asked for.
        rows: for each recorded image, which of ``prompts`` it follows; prompt-major, the order
            of ``pipe(...).images``.
        positions: the positions on the token axis that were kept, ascending.
        layers: what was recorded, in the order in which the denoiser is defined.
        timesteps: the schedule's timestep of each step of the run.
        latent: (height, width) of the latents.
        keep: which of "step", "layer", "head" were kept.
        store: the maps themselves.
        info: facts about the run (model, scheduler, guidance, versions), plain JSON values.
        images: the pictures that the pipeline gave, where it gave pictures.
        done: how many steps are complete.
        estimates: (steps, images, channels, height, width), what the denoiser took the clean
            latents to be at each step; None where previews weren't asked for.
        affinity: (images, height, width, height, width), the image's attention to itself: for each
            query cell the shares that it takes of every cell, the mean over heads, layers of that
            grid, and denoiser calls; None where ``affinity=True`` wasn't asked for.
    """

    prompts: tuple[Prompt, ...]
    rows: tuple[int, ...]
    positions: tuple[int, ...]
    layers: tuple[Layer, ...]
    timesteps: tuple[float, ...]
    latent: tuple[int, int]
    keep: frozenset[str]
    store: Store
    info: dict[str, Any] = field(default_factory=dict)
    images: list[Any] = field(default_factory=list)
    done: int = 0
    estimates: torch.Tensor | None = None
    affinity: torch.Tensor | None = None

    @property
    def nbytes(self) -> int:
        """The bytes that the maps take, and what previews and affinities do."""
        extras = (self.estimates, self.affinity)
        return self.store.nbytes + sum(extra.nbytes for extra in extras if extra is not None)

    def prompt(self, image: int) -> Prompt:
        """Gives the prompt that an image follows."""
        return self.prompts[self.rows[image]]

    def maps(self, layer: int, steps: Sequence[int] | None = None) -> torch.Tensor:
        """Gives a layer's maps, float32 (steps, images, heads, tokens, height, width)."""
        if steps is None:
            steps = range(self.done if "step" in self.keep else 1)
        return self.store.read(layer, steps).float()


LayerFilter = str | Sequence[str] | Callable[[Layer], bool] | None


def select_layers(layers: Sequence[Layer], wanted: LayerFilter) -> list[int]:
    """Gives the indices of the layers that a name, a glob, a list of them or a test picks.

    Raises:
        ValueError: nothing fits, or nothing fits one of several names; the error lists the
            layers there are.
    """
    globs = [wanted] if isinstance(wanted, str) else wanted
    if globs is not None and not callable(globs):
        idle = [glob for glob in globs if not any(picks(layer, glob) for layer in layers)]
        wanted = idle[0] if idle else wanted
    chosen = [i for i, layer in enumerate(layers) if picks(layer, wanted)]
    if not chosen:
        names = ", ".join(layer.name for layer in layers)
        raise ValueError(f"layers={wanted!r} fits none of the layers recorded: {names}")
    return chosen


def picks(layer: Layer, wanted: LayerFilter) -> bool:
    """Tells whether a name, a glob, one of a list of them or a test picks a layer."""
    if wanted is None:
        return True
    if callable(wanted):
        return bool(wanted(layer))
    return any(
        fnmatchcase(name, glob) or name.startswith(f"{glob}.")
        for glob in ([wanted] if isinstance(wanted, str) else wanted)
        for name in layer.members
    )


@dataclass(frozen=True)
class MemoryStore:
    """Maps in memory: one tensor for each layer, (steps, images, heads, tokens, height, width)."""

    tensors: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """The bytes that the kept maps take."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def read(self, layer: int, steps: Sequence[int]) -> torch.Tensor:
        """Gives (steps, images, heads, tokens, height, width) of a layer, in the kept dtype."""
        return self.tensors[layer][list(steps)].cpu()


def info_versions() -> Mapping[str, str]:
    """Gives the versions of the libraries that shape a result."""
    return {name: _version(name) for name in ("xattn", "torch", "diffusers", "transformers")}


@cache  # reading a package's metadata takes milliseconds
def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # run from a tree that isn't installed
        return "unknown"
