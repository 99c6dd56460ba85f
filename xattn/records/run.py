"""The record of one pipeline call: its axes, and the maps along them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from functools import cache
from importlib import metadata
from typing import Any, Literal, Protocol

import torch

from xattn.text.prompt import Prompt

AXES = ("step", "layer", "head")


@dataclass(frozen=True)
class Layer:
    """A text-attention layer of the denoiser, or the mean of several with one grid.

    Attributes:
        name: the module's name in the denoiser, for example
            ``down_blocks.0.attentions.0.transformer_blocks.0.attn2``, with the prefix
            ``controlnet.`` for a ControlNet's layer. Without the layer axis, ``mean@HxW``, or
            ``mean@HxW.middle`` for the middle block.
        grid: (height, width) of its queries.
        heads: number of attention heads.
        members: names of the averaged layers; otherwise just its own name.
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
        """Number of queries, height x width."""
        return self.grid[0] * self.grid[1]

    @property
    def middle(self) -> bool:
        """Whether it is in the denoiser's middle block, or in a ControlNet.

        Means over layers keep these apart: by default heat maps leave them out.
        """
        return any("mid_block" in name or "controlnet." in name for name in self.members)


class Store(Protocol):
    """Storage of maps: memory, or a folder of safetensors files."""

    @property
    def nbytes(self) -> int:
        """Size of the kept maps in bytes."""

    def read(self, layer: int, steps: Sequence[int]) -> torch.Tensor:
        """Return a layer's maps as kept, (steps, images, heads, tokens, height, width)."""


@dataclass
class Run:
    """The record of one pipeline call.

    Maps are attention probabilities of the image's queries for each kept token. An axis not kept
    has length one: the mean over it.

    Attributes:
        prompts: the tokenized prompts of the call.
        prompt_of: for each recorded image, the index of its prompt in ``prompts``; prompt-major,
            the order of ``pipe(...).images``.
        positions: the kept positions on the token axis, ascending.
        layers: the recorded layers, in the order of the denoiser's definition.
        timesteps: the scheduler's timestep of each step.
        latent: (height, width) of the latents.
        keep: the axes kept, of "step", "layer", "head".
        store: the maps.
        info: facts about the run (model, scheduler, guidance, versions), plain JSON values.
        images: the pictures that the pipeline gave, where it gave pictures.
        done: how many steps are complete.
        estimates: (steps, images, channels, height, width), what the denoiser took the clean
            latents to be at each step; None where previews weren't asked for.
        affinity: (images, height, width, height, width), the image's attention to itself: for each
            query cell the shares that it takes of every cell, the mean over heads, layers of that
            grid, and denoiser calls; None where ``affinity=True`` wasn't asked for.
        map_layers: globs of the layers that heat maps are made of by default; None for the usual
            selection, which goes by the layers' grids.
        outputs: what text gave to the image's cells in each cross-attention layer, by its name:
            float16 (images, heads x channels, height, width), the mean over denoiser calls; in
            memory alone, and empty where ``outputs=True`` wasn't asked for.
        concepts: the maps of concepts that were asked for beside the prompt, a run for each form
            whose token axis is that of the concepts; empty where none were.
        image_prompt: the maps of an image prompt, a run for each form: "attention", whose token
            axis is that of its tokens, and "share", with one position for each of its images;
            empty where ``words="image"`` wasn't asked for.
        frames: how many frames a video's maps have; each counts as an image, those of one video
            following one another. 1 of images.
    """

    prompts: tuple[Prompt, ...]
    prompt_of: tuple[int, ...]
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
    map_layers: tuple[str, ...] | None = None
    concepts: dict[str, Run] = field(default_factory=dict)
    outputs: dict[str, torch.Tensor] = field(default_factory=dict)
    image_prompt: dict[str, Run] = field(default_factory=dict)
    frames: int = 1

    @property
    def nbytes(self) -> int:
        """Size of all that was kept, in bytes."""
        extras = (
            self.estimates, self.affinity, *self.outputs.values(), *self.concepts.values(),
            *self.image_prompt.values(),
        )  # fmt: skip
        return self.store.nbytes + sum(extra.nbytes for extra in extras if extra is not None)

    @property
    def levels(self) -> tuple[float, ...]:
        """The shares of the noise schedule that a probe looked at, its steps; else none."""
        return tuple(self.info.get("levels") or ())

    @property
    def axis(self) -> Literal["step", "level"]:
        """What a step is called: a probe's are levels."""
        return "level" if self.levels else "step"

    def step_name(self, step: int) -> str:
        """Return what a step is called in pictures and reports."""
        return f"level {self.levels[step]:g}" if self.levels else f"step {step}"

    def prompt(self, image: int) -> Prompt:
        """Return the prompt of an image."""
        return self.prompts[self.prompt_of[image]]

    def maps(self, layer: int, steps: Sequence[int] | None = None) -> torch.Tensor:
        """Return a layer's maps, float32 (steps, images, heads, tokens, height, width)."""
        if steps is None:
            steps = range(self.done if "step" in self.keep else 1)
        return self.store.read(layer, steps).float()


LayerFilter = str | Sequence[str] | Callable[[Layer], bool] | None


def select_layers(layers: Sequence[Layer], wanted: LayerFilter) -> list[int]:
    """Return the indices of layers matching a name, a glob, a list of them or a predicate.

    Raises:
        ValueError: no layer matches, or one of several names does not match any; the error
            lists the layers.
    """
    globs = [wanted] if isinstance(wanted, str) else wanted
    if globs is not None and not callable(globs):
        idle = [glob for glob in globs if not any(picks(layer, glob) for layer in layers)]
        wanted = idle[0] if idle else wanted
    chosen = [i for i, layer in enumerate(layers) if picks(layer, wanted)]
    if not chosen:
        names = ", ".join(layer.name for layer in layers)
        raise ValueError(f"layers={wanted!r} does not match any layer; the layers are: {names}")
    return chosen


def picks(layer: Layer, wanted: LayerFilter) -> bool:
    """Return whether a layer matches a name, a glob, any of a list of them or a predicate."""
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
    """Maps in memory: one tensor per layer, (steps, images, heads, tokens, height, width)."""

    tensors: tuple[torch.Tensor, ...]

    @property
    def nbytes(self) -> int:
        """Size of the kept maps in bytes."""
        return sum(t.numel() * t.element_size() for t in self.tensors)

    def read(self, layer: int, steps: Sequence[int]) -> torch.Tensor:
        """Return a layer's maps as kept, (steps, images, heads, tokens, height, width)."""
        return self.tensors[layer][list(steps)].cpu()


def info_versions() -> Mapping[str, str]:
    """Return the versions of the libraries that affect results."""
    return {name: _version(name) for name in ("xattn", "torch", "diffusers", "transformers")}


@cache  # reading package metadata takes milliseconds
def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:  # run from a source tree without installation
        return "unknown"
