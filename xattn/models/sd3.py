"""Stable Diffusion 3 and 3.5: image and text in one attention, [image, text]."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xattn.models.family import JOINT_EDITS, NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.noise import clean_of_flow
from xattn.models.probing import FlowLevels
from xattn.processors.call import Place


@dataclass(frozen=True)
class SD3(FlowLevels):
    """The family of Stable Diffusion 3 (Esser et al. 2024).

    The text axis is that of the CLIPs, 77 positions, and behind it T5's: a word stands at two
    places. The dual layers of SD3.5 have a second attention, ``attn2``, of the image alone.
    """

    classes: tuple[str, ...] = ("SD3Transformer2DModel",)
    map_layers: tuple[str, ...] | None = ("*",)
    edits: frozenset[str] = JOINT_EDITS
    two_passes: bool = False

    def denoisers(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Return the transformer."""
        return (pipe.transformer,)

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return every block's attention: joint, or of the image alone."""
        model: Any = getattr(denoiser, "_orig_mod", denoiser)
        return tuple(
            _layer(model, name, module, component)
            for name, module in model.named_modules()
            if callable(getattr(module, "processor", None)) and hasattr(module, "heads")
        )

    def grid(self, layer: AttentionLayer, latent: tuple[int, int]) -> tuple[int, int]:
        """Return the grid of patches; what is left over at the edges has no query."""
        return latent[0] // layer.patch, latent[1] // layer.patch

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, encoder_hidden_states, pooled, timestep)``.

        Skip-layer guidance calls once more for the prompts alone, some layers left out.
        """
        sample: Tensor = arguments["hidden_states"]
        skips = arguments.get("skip_layers") is not None
        return DenoiserCall(
            sample=sample,
            latent=(int(sample.shape[-2]), int(sample.shape[-1])),
            timestep=arguments["timestep"],
            states=arguments.get("encoder_hidden_states"),
            component=component,
            kind="guidance" if skips else "any",
        )

    def places(
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> tuple[Place, ...]:
        """Return where the image and behind it the text stand, the same in every row.

        Raises:
            RuntimeError: queries or keys are not as many as the image's and the text's.
        """
        height, width = self.grid(layer, call.latent)
        image, text = height * width, 0 if call.states is None else call.states.shape[1]
        if queries != image + text or keys != image + text:
            raise RuntimeError(
                f"layer {layer.name} has {queries} queries and {keys} keys where {image} of the "
                f"image and {text} of the text, {image + text}, were expected: xattn doesn't know "
                "which is which; please report the model's configuration"
            )
        place = Place(slice(0, image), slice(image, image + text), slice(0, image))
        return (place,) * call.rows

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the CLIPs' shared positions, and T5's where the embeddings have any of it.

        A pipeline without T5 writes zeros in its place.
        """
        clips = Axis((pipe.tokenizer, pipe.tokenizer_2), texts=("prompt", "prompt_2"))
        start, t5 = int(pipe.tokenizer.model_max_length), getattr(pipe, "tokenizer_3", None)
        if t5 is None or (states is not None and not states[:, start:].any()):
            return (clips,)
        return clips, Axis((t5,), offset=start, texts=("prompt_3",))

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, negative, pooled positive, pooled negative)."""
        return Encoded(result[0], result[1])

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Return the clean latents that a velocity means."""
        return clean_of_flow(scheduler, sample, output, timestep)

    def denoise(self, pipe: Any, latents: Tensor, timestep: float, encoded: Any) -> Tensor:
        """Return the transformer's output for the prompts' states and pooled text."""
        found: Tensor = pipe.transformer(
            hidden_states=latents,
            timestep=torch.full((len(latents),), timestep, device=latents.device),
            encoder_hidden_states=encoded[0],
            pooled_projections=encoded[2],
            return_dict=False,
        )[0]
        return found


def _layer(model: Any, name: str, module: Any, component: str) -> AttentionLayer:
    joint = getattr(module, "added_kv_proj_dim", None) is not None
    return AttentionLayer(
        name=component + name,
        module=module,
        heads=int(module.heads),
        role="joint" if joint else "self",
        component=component,
        patch=int(model.config.patch_size),
    )
