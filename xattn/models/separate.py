"""What transformers with cross-attention of its own for the text have in common."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xattn.models.family import AttentionLayer, DenoiserCall, Encoded, Role
from xattn.models.joint import Layout
from xattn.models.noise import clean_of_either
from xattn.processors.call import Place


@dataclass(frozen=True)
class Separate:
    """A base of families whose blocks attend to the image, then to the text.

    Attributes:
        roles: the role of each attention module in a block, by the last part of its name.
    """

    classes: tuple[str, ...] = ()
    map_layers: tuple[str, ...] | None = ("*",)
    edits: frozenset[str] = frozenset()
    two_passes: bool = False
    roles: tuple[tuple[str, Role], ...] = (("attn1", "self"), ("attn2", "cross"))

    def denoisers(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Return the transformer."""
        return (pipe.transformer,)

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the attention layers of all blocks."""
        return layers_named(denoiser, component, dict(self.roles))

    def grid(self, layer: AttentionLayer, latent: tuple[int, int]) -> tuple[int, int]:
        """Return the grid of patches."""
        return latent[0] // layer.patch, latent[1] // layer.patch

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, encoder_hidden_states, timestep)``."""
        sample: Tensor = arguments["hidden_states"]
        return DenoiserCall(
            sample=sample,
            latent=(int(sample.shape[-2]), int(sample.shape[-1])),
            timestep=arguments["timestep"],
            states=arguments.get("encoder_hidden_states"),
            component=component,
        )

    def places(
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> Sequence[Place] | None:
        """Return the queries of what is drawn, where a call's layout says that others ask, too.

        Elsewhere return None: all queries are the image's. All keys are the text's.

        Raises:
            RuntimeError: the queries are not as many as the layout's.
        """
        layout: Layout | None = call.layout
        if layout is None:
            return None
        if queries != layout.total:
            raise RuntimeError(
                f"layer {layer.name} has {queries} queries where {layout.total} were expected: "
                "xattn doesn't know which are drawn; please report the model's configuration"
            )
        return (Place(layout.own, slice(0, keys), layout.image),) * call.rows

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, its mask, negative, its mask)."""
        return Encoded(result[0], result[2] if len(result) > 2 else None)

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Return the clean latents implied by a predicted noise or velocity."""
        return clean_of_either(scheduler, sample, output, timestep)


def drawn_time(timestep: Any) -> Any:
    """Return a call's timestep, one for each row where every frame has one of its own.

    It is the highest: a given frame's is lower, or 0.
    """
    time = torch.as_tensor(timestep)
    return time.flatten(1).amax(1) if time.ndim > 1 else timestep


def layers_named(
    denoiser: nn.Module,
    component: str,
    roles: Mapping[str, Role],
    patch: int | None = None,
    within: str = "",
) -> tuple[AttentionLayer, ...]:
    """Return the attention layers by the last part of their names.

    Args:
        denoiser: the model.
        component: the prefix of the layers' names.
        roles: the role of each name; layers of other names are left out.
        patch: latents along a patch's side; what the model's configuration says by default.
        within: the list of blocks that they belong to; refiners lie elsewhere.
    """
    model: Any = getattr(denoiser, "_orig_mod", denoiser)
    patch = int(model.config.patch_size) if patch is None else patch
    found = []
    for name, module in model.named_modules():
        role = roles.get(name.rpartition(".")[2])
        if not name.startswith(within) or role is None:
            continue
        if callable(getattr(module, "processor", None)):
            heads = int(getattr(module, "heads", 0) or getattr(module, "num_heads", 0))
            found.append(
                AttentionLayer(component + name, module, heads, role, component, patch=patch)
            )
    return tuple(found)


def preprocessed(pipe: Any, given: Mapping[str, Any]) -> Callable[..., str]:
    """Return a pipeline's change to its prompts: lower case, no outer white space.

    Args:
        pipe: a pipeline with ``_text_preprocessing``.
        given: the arguments of its ``encode_prompt``; with ``clean_caption`` it changes more.
    """
    clean, process = bool(given.get("clean_caption")), pipe._text_preprocessing

    def convert(text: str, tokenizer: Any) -> str:
        changed: str = process(text, clean_caption=clean)[0]
        return changed

    return convert
