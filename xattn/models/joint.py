"""What transformers have in common whose blocks attend to text and image in one call."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from xattn.models.family import AttentionLayer, DenoiserCall, Encoded
from xattn.processors.call import Place


@dataclass(frozen=True)
class Layout:
    """Where text and image stand in one denoiser call's attention, the same in each row.

    Attributes:
        total: how many queries, and keys, there are.
        text: the keys of the token axis.
        own: the queries of the image that is drawn.
        image: the keys of images: the one that is drawn, and references behind it.
    """

    total: int
    text: slice
    own: slice
    image: slice

    @classmethod
    def text_first(cls, text: int, own: int, image: int | None = None, before: int = 0) -> Layout:
        """Return [before, text, image], where ``own`` of the image's positions are drawn."""
        start = before + text
        total = start + (own if image is None else image)
        return cls(total, slice(before, start), slice(start, start + own), slice(start, total))

    @classmethod
    def image_first(cls, text: int, own: int, image: int | None = None) -> Layout:
        """Return [image, text], where ``own`` of the image's positions are drawn."""
        start = own if image is None else image
        return cls(start + text, slice(start, start + text), slice(0, own), slice(0, start))


@dataclass(frozen=True)
class Joint:
    """A base of families whose blocks attend to text and image in one call.

    Attributes:
        blocks: the lists of blocks whose attention is joint; refiners lie elsewhere.
        patch: latents along a patch's side; what the model's configuration says by default.
    """

    classes: tuple[str, ...] = ()
    map_layers: tuple[str, ...] | None = ("*",)
    edits: frozenset[str] = frozenset()
    two_passes: bool = False
    blocks: tuple[str, ...] = ("transformer_blocks", "single_transformer_blocks")
    patch: int | None = None

    def denoisers(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Return the transformer."""
        return (pipe.transformer,)

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the blocks' attention: all joint."""
        model: Any = getattr(denoiser, "_orig_mod", denoiser)
        patch = self.patch or int(model.config.patch_size)
        return tuple(
            AttentionLayer(
                component + name, module, int(module.heads), "joint", component, 0, patch
            )
            for name, module in model.named_modules()
            if name.partition(".")[0] in self.blocks
            and callable(getattr(module, "processor", None))
            and hasattr(module, "heads")
        )

    def grid(self, layer: AttentionLayer, latent: tuple[int, int]) -> tuple[int, int]:
        """Return the grid of patches."""
        return latent[0] // layer.patch, latent[1] // layer.patch

    def places(
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> tuple[Place, ...]:
        """Return where text and image stand, the same in each row.

        Raises:
            RuntimeError: queries or keys are not as many as the text's and the image's.
        """
        layout: Layout = call.layout
        grid = self.grid(layer, call.latent)
        check_layout(layout, layer, grid, queries, keys, call.frames)
        return (Place(layout.own, layout.text, layout.image),) * call.rows

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, negative, ...)."""
        return Encoded(result[0], result[1])

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Raise ValueError: previews of this family are not known."""
        raise ValueError(
            f"previews=True can't be had with {self.classes[0]}, whose latents are packed or whose "
            "guidance runs in two passes; leave it out"
        )


def check_layout(
    layout: Layout,
    layer: AttentionLayer,
    grid: tuple[int, int],
    queries: int,
    keys: int,
    frames: int = 1,
    asking: int | None = None,
) -> None:
    """Raise RuntimeError if a layer's numbers of queries and keys are not those of a layout.

    ``asking`` is the number of queries where not all positions have one.
    """
    height, width = grid
    own, image = (part.stop - part.start for part in (layout.own, layout.image))
    text = layout.text.stop - layout.text.start
    wanted = (layout.total if asking is None else asking, layout.total)
    if (queries, keys) == wanted and own == frames * height * width <= image:
        return
    cells = f"{height} x {width}" if frames == 1 else f"{frames} x {height} x {width}"
    raise RuntimeError(
        f"layer {layer.name} has {queries} queries and {keys} keys where {text} of the text and "
        f"{image} of images, {layout.total} in all, were expected, {own} of them of the grid "
        f"{cells}: xattn doesn't know which is which; please report the model's configuration"
    )


def size_of(sample: Tensor) -> tuple[int, int]:
    """Return (height, width) of latents (rows, channels, height, width)."""
    return int(sample.shape[-2]), int(sample.shape[-1])


def patched_call(
    arguments: Mapping[str, Any],
    component: str,
    states: Tensor,
    patch: int,
    *,
    lay: Callable[[int, int], Layout] | None = None,
    frames: int = 1,
) -> DenoiserCall:
    """Return a call whose axis has the whole text and every patch of the image.

    Args:
        arguments: of the transformer.
        component: as for ``read``.
        states: the text's, (rows, tokens, channels).
        patch: cells of the latents on each side of a patch.
        lay: how they lie, from the numbers of tokens and patches; the text first by default.
        frames: of a video, in patches.
    """
    sample = arguments["hidden_states"]
    height, width = size_of(sample)
    own = frames * (height // patch) * (width // patch)
    return DenoiserCall(
        sample=sample,
        latent=(height, width),
        timestep=arguments["timestep"],
        states=states,
        component=component,
        layout=(lay or Layout.text_first)(int(states.shape[1]), own),
        frames=frames,
    )


def given_texts(given: Mapping[str, Any], name: str = "prompt") -> list[str]:
    """Return the texts among the arguments of ``encode_prompt``."""
    found = given.get(name)
    return [found] if isinstance(found, str) else list(found or ())


@dataclass(frozen=True)
class ImageAsks(Joint):
    """Families whose image reads text and itself in one call, in which no text asks.

    What else asks stands behind the image.
    """

    def places(
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> tuple[Place, ...]:
        """Return where the image asks, and where the text's keys and its own stand.

        Raises:
            RuntimeError: queries or keys are not as many as the image's and the text's.
        """
        layout: Layout = call.layout
        own, text = (part.stop - part.start for part in (layout.own, layout.text))
        grid, asking = self.grid(layer, call.latent), layout.total - text
        check_layout(layout, layer, grid, queries, keys, call.frames, asking)
        return (Place(slice(0, own), layout.text, layout.image),) * call.rows
