"""The protocol of a model family: all of xattn's knowledge about model classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

from torch import Tensor, nn

from xattn.processors.call import Place

Role = Literal["cross", "self", "joint", "added"]
Pass = Literal["any", "unconditional"]


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """One attention layer of a denoiser.

    Attributes:
        name: the module's name, for example ``mid_block.attentions.0.transformer_blocks.0.attn2``,
            with its component's prefix.
        module: the attention module that holds the processor.
        heads: number of heads.
        role: "cross" if keys are text, "self" if they are the image's, "joint" if text and image
            attend to both, "added" if only the image attends to both (DeepFloyd IF).
        component: "" for the denoiser, or "controlnet.".
        depth: how often the latent grid was halved before it.
        nth: index of the layer's attention call that reads the text.
    """

    name: str
    module: nn.Module
    heads: int
    role: Role
    component: str = ""
    depth: int = 0
    nth: int = 0

    @property
    def reads_text(self) -> bool:
        """Whether text tokens are among its keys."""
        return self.role != "self"


@dataclass
class DenoiserCall:
    """One denoiser call, as read by its family and annotated by the session.

    Attributes:
        sample: the noisy latents, (rows, ...).
        latent: (height, width) of the latents before any packing.
        timestep: the timestep on the scheduler's scale.
        states: the text's embeddings, (rows, tokens, channels), or None.
        component: "" for the denoiser, otherwise the prefix of the called model.
        kind: "unconditional" for guidance's own pass, if the family can tell.
        layout: private data of the family for finding places.
        number: number of calls of the run before it.
        step: its step in the schedule.
        begins_step: whether it is the first of its step.
        ends_step: whether it is known to be the last of its step.
        conditional: the rows that follow the prompts, the positive prompts' first.
        output: the denoiser's output; None before the end of the call.
    """

    sample: Tensor
    latent: tuple[int, int]
    timestep: Any
    states: Tensor | None
    component: str = ""
    kind: Pass = "any"
    layout: Any = None
    number: int = 0
    step: int = 0
    begins_step: bool = False
    ends_step: bool = False
    conditional: tuple[slice, ...] = ()
    output: Any = field(default=None, repr=False)

    @property
    def rows(self) -> int:
        """Number of rows in the batch."""
        return len(self.sample)


@dataclass(frozen=True)
class Encoded:
    """A pipeline's ``encode_prompt`` result, as the denoiser receives it.

    Attributes:
        positive: the prompts' embeddings, (images, tokens, channels).
        negative: the negative prompts' embeddings, or None.
    """

    positive: Tensor
    negative: Tensor | None


@dataclass(frozen=True)
class Axis:
    """A stretch of the denoiser's text positions, and the tokenizers that fill it.

    Attributes:
        tokenizers: one, or several sharing the positions, as in SDXL.
        length: number of positions; None for the tokenizers' own length.
        offset: the first position on the whole axis.
        convert: the pipeline's change to the text before tokenizing.
    """

    tokenizers: tuple[Any, ...]
    length: int | None = None
    offset: int = 0
    convert: Callable[..., str] | None = None


class Family(Protocol):
    """The protocol of a family of denoisers; one frozen object per family.

    Attributes:
        classes: class names of the denoisers; subclasses belong to the family, too.
        map_layers: globs of the default layers for heat maps; None for the usual selection.
        edits: the supported kinds of edits.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def map_layers(self) -> tuple[str, ...] | None: ...  # noqa: D102

    @property
    def edits(self) -> frozenset[str]: ...  # noqa: D102

    def denoisers(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Return the pipeline's denoisers, in order of use."""

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the attention layers, in definition order, without refiners."""

    def grid(self, layer: AttentionLayer, latent: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of a layer's image queries for latents of (height, width)."""

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read one call's arguments, given by name."""

    def places(
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> Sequence[Place] | None:
        """Return the places of text and image in each row; None if all keys are text."""

    def axes(self, pipe: Any) -> tuple[Axis, ...]:
        """Return the stretches of the token axis."""

    def encoded(self, result: Any) -> Encoded:
        """Read the result of ``encode_prompt``."""

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Return the clean latents implied by a denoiser's output."""


def choose(
    layers: Sequence[AttentionLayer], wanted: str | Sequence[str] | None
) -> list[AttentionLayer]:
    """Return the layers that read text and match the globs.

    Raises:
        ValueError: a glob does not match any layer; the error lists the layers.
    """
    text = [layer for layer in layers if layer.reads_text]
    if not text:
        raise ValueError("this model has no layers that attend to text: nothing can be recorded")
    if wanted is None:
        return text
    globs = [wanted] if isinstance(wanted, str) else list(wanted)
    idle = [glob for glob in globs if not any(matches(layer.name, glob) for layer in text)]
    if idle or not globs:
        names, asked = ", ".join(layer.name for layer in text), idle[0] if idle else wanted
        raise ValueError(f"layers={asked!r} does not match any layer; the layers are: {names}")
    return [layer for layer in text if any(matches(layer.name, glob) for glob in globs)]


def matches(name: str, glob: str) -> bool:
    """Return whether a layer's name matches a glob, or lies inside the named module."""
    return fnmatchcase(name, glob) or name.startswith(f"{glob}.")
