"""The protocol of a model family: all of xattn's knowledge about model classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from types import MappingProxyType
from typing import Any, Literal, Protocol, runtime_checkable

from torch import Tensor, nn

from xattn.processors.call import Place
from xattn.text.tokenize import PLAIN, Template

Role = Literal["cross", "self", "joint", "added"]
Pass = Literal["any", "guidance"]
NOTHING: Mapping[str, Any] = MappingProxyType({})


@dataclass(frozen=True, eq=False)
class AttentionLayer:
    """One attention layer of a denoiser.

    Attributes:
        name: the module's name, for example ``mid_block.attentions.0.transformer_blocks.0.attn2``,
            with its component's prefix.
        module: the attention module that holds the processor.
        heads: its number of heads.
        role: "cross" where keys are text, "self" where they are the image's, "joint" where text
            and image attend to both, "added" where the image attends to both (DeepFloyd IF).
        component: of which of the pipeline's models, "" for the denoiser, or "controlnet.".
        depth: how often the latent grid was halved on the way to it.
        patch: how many latents of height, and of width, one of a transformer's queries stands for.
        nth: which of the layer's attention calls reads the text.
        rowwise: whether it attends to each row of the batch in a call of its own.
        text_reads: whether a joint layer's text reads the image, too.
    """

    name: str
    module: nn.Module
    heads: int
    role: Role
    component: str = ""
    depth: int = 0
    patch: int = 1
    nth: int = 0
    rowwise: bool = False
    text_reads: bool = True

    @property
    def reads_text(self) -> bool:
        """Whether text tokens are among its keys."""
        return self.role != "self"


@dataclass(frozen=True, eq=False)
class ImagePrompt:
    """The images that one IP-Adapter has in a denoiser call.

    Attributes:
        images: how many.
        mask: (1, images, height, width), the region that each is added in; None for everywhere.
    """

    images: int
    mask: Tensor | None = None


@dataclass
class DenoiserCall:
    """One denoiser call, as read by its family and annotated by the session.

    Attributes:
        sample: the noisy latents, (rows, ...).
        latent: (height, width) of the latents before any packing.
        timestep: the timestep on the scheduler's scale.
        states: the text's embeddings, (rows, tokens, channels), or None; where the denoiser makes
            them itself, the text's ids, (rows, tokens).
        component: "" for the denoiser, else whose call it is.
        kind: "guidance" for a pass of guidance's own, which no map is made of, where the family
            can tell.
        layout: what else the family needs to find places; private to it.
        frames: how many frames its maps have: a video's patches in time, 1 of an image.
        image_prompts: what each loaded IP-Adapter reads.
        nth: which of a layer's attention calls reads the text, where that isn't always the same.
        number: how many calls of the run came before.
        step: the step of the schedule that it belongs to.
        begins_step: whether it is its step's first.
        ends_step: whether it is known to be its step's last.
        conditional: the rows that follow the prompts, first of all those of the positive ones.
        output: what the denoiser gave; None before the end of the call.
    """

    sample: Tensor
    latent: tuple[int, int]
    timestep: Any
    states: Tensor | None
    component: str = ""
    kind: Pass = "any"
    layout: Any = None
    frames: int = 1
    image_prompts: tuple[ImagePrompt, ...] = ()
    nth: int | None = None
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
        repeats: whether the pipeline repeats them for the images of a prompt afterwards.
    """

    positive: Tensor
    negative: Tensor | None
    repeats: bool = False


@dataclass(frozen=True)
class Axis:
    """A stretch of the denoiser's text positions, and the tokenizers that fill it.

    Attributes:
        tokenizers: one, or several that share the positions, as SDXL's two do.
        length: how many positions there are; None for what the embeddings and tokenizers say.
        offset: the first of them on the whole axis.
        convert: what the pipeline does to the text first.
        texts: the arguments of ``encode_prompt`` that the tokenizers read, one each; the prompt
            stands in for those left out. A negative prompt's have ``negative_`` before them.
        template: what the pipeline writes around a prompt.
        negatives: how negative prompts are read, where that is otherwise.
    """

    tokenizers: tuple[Any, ...]
    length: int | None = None
    offset: int = 0
    convert: Callable[..., str] | None = None
    texts: tuple[str, ...] = ("prompt",)
    template: Template = PLAIN
    negatives: Axis | None = None


class Family(Protocol):
    """The protocol of a family of denoisers; one frozen object per family.

    Attributes:
        classes: the names of the denoisers' classes; subclasses are of the family, too.
        map_layers: globs of the layers whose maps are the default; None for the usual selection.
        edits: the kinds of edits that make sense.
        two_passes: whether guidance calls the denoiser a second time, for negative prompts that a
            second ``encode_prompt`` encoded.
    """

    @property
    def classes(self) -> tuple[str, ...]: ...  # noqa: D102

    @property
    def map_layers(self) -> tuple[str, ...] | None: ...  # noqa: D102

    @property
    def edits(self) -> frozenset[str]: ...  # noqa: D102

    @property
    def two_passes(self) -> bool: ...  # noqa: D102

    def denoisers(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Return the pipeline's denoisers, in order of use."""

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the attention layers, in definition order, without refiners."""

    def grid(self, layer: AttentionLayer, latent: tuple[int, int]) -> tuple[int, int]:
        """Return (height, width) of a layer's image queries for latents of (height, width)."""

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read one call's arguments, given by name; ``self`` is the denoiser."""

    def places(
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> Sequence[Place] | None:
        """Return the places of text and image in each row; None if all keys are text."""

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the stretches of the token axis, in their order.

        Args:
            pipe: the pipeline.
            states: the prompts' embeddings, where they are known.
            given: the arguments of ``encode_prompt``, where they are known.
        """

    def encoded(self, result: Any) -> Encoded:
        """Read the result of ``encode_prompt``."""

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Return the clean latents implied by a denoiser's output."""


@runtime_checkable
class Watching(Protocol):
    """The protocol of a family whose pipelines change the text behind ``encode_prompt``."""

    def watching(self, pipe: Any) -> AbstractContextManager[None]:
        """Follow the text from ``encode_prompt`` to the denoiser, as long as a block lasts."""


@runtime_checkable
class Encoding(Protocol):
    """The protocol of a family whose pipelines encode prompts by methods of their own.

    Attributes:
        encoders: the names of those methods; elsewhere there is ``encode_prompt`` alone.
    """

    @property
    def encoders(self) -> tuple[str, ...]: ...  # noqa: D102

    def as_encoded(self, given: dict[str, Any], result: Any) -> tuple[dict[str, Any], Any]:
        """Return a method's arguments and result as ``encode_prompt`` would have them."""


@runtime_checkable
class Segmented(Protocol):
    """The protocol of a family whose pipelines draw a video in segments.

    Each descends a schedule of its own, with the prompts that were encoded once, and is a run.

    Attributes:
        segment: what one of them is called.
    """

    @property
    def segment(self) -> str: ...  # noqa: D102


@runtime_checkable
class Sharing(Protocol):
    """The protocol of a family whose pipelines read a given picture anew for each row.

    Rows of an edit have one picture, and share what is drawn or read of it.
    """

    def shared(self, pipe: Any) -> tuple[Any, str, Callable[..., Any]]:
        """Return an object, the name of its method, and one in its place that shares."""


BATCH_AXES: Mapping[str, int | None] = {
    "encoder_hidden_states_llama3": 1,
    "img_ids": None,
    "txt_ids": None,
    "position_ids": None,
}
"""Which axis of a denoiser's argument is the batch, where it isn't the first: None is no axis.

Position ids have none as long as they are (positions, axes).
"""

CROSS_EDITS = frozenset(("replace", "refine", "reweight", "blend", "self"))
"""The edits of a family whose layers read the text by themselves."""

JOINT_EDITS = frozenset(("replace", "refine", "reweight", "blend", "self", "joint"))
"""The edits of a family whose text and image attend in one call."""


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
    return named(text, wanted)


def named(
    layers: Sequence[AttentionLayer], wanted: str | Sequence[str] | None
) -> list[AttentionLayer]:
    """Return the layers whose names match the globs; all of them without globs.

    Raises:
        ValueError: a glob does not match any layer; the error lists the layers.
    """
    if wanted is None:
        return list(layers)
    globs = [wanted] if isinstance(wanted, str) else list(wanted)
    idle = [glob for glob in globs if not any(matches(layer.name, glob) for layer in layers)]
    if idle or not globs:
        names, asked = ", ".join(layer.name for layer in layers), idle[0] if idle else wanted
        raise ValueError(f"layers={asked!r} does not match any layer; the layers are: {names}")
    return [layer for layer in layers if any(matches(layer.name, glob) for glob in globs)]


def matches(name: str, glob: str) -> bool:
    """Return whether a layer's name matches a glob, or lies inside the named module."""
    return fnmatchcase(name, glob) or name.startswith(f"{glob}.")
