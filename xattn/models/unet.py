"""UNets with cross-attention: Stable Diffusion 1, 2, XL, ControlNet, DeepFloyd IF."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from xattn.models.adapters import read_image_prompts
from xattn.models.family import NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded, Role
from xattn.models.noise import clean_latents
from xattn.models.probing import DiffusionLevels


@dataclass(frozen=True)
class UNets(DiffusionLevels):
    """The family of UNets: text in cross-attention layers of several grids."""

    classes: tuple[str, ...] = ("UNet2DConditionModel", "ControlNetModel")
    map_layers: tuple[str, ...] | None = None
    edits: frozenset[str] = frozenset(("replace", "refine", "reweight", "blend", "self"))
    two_passes: bool = False

    def denoisers(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Return the UNet."""
        return (pipe.unet,)

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return every attention layer of a UNet or a ControlNet.

        Raises:
            TypeError: the model does not have a UNet's layout.
        """
        model: Any = getattr(denoiser, "_orig_mod", denoiser)
        # ask the class: on the instance this property would walk the whole model
        if not hasattr(type(model), "attn_processors") or not hasattr(model, "down_blocks"):
            raise TypeError(
                f"{type(model).__name__} is not a supported denoiser; "
                "expected a UNet2DConditionModel or a ControlNetModel"
            )
        found = []
        for path in model.attn_processors:
            name = path.removesuffix(".processor")
            module = model.get_submodule(name)
            role = _role(module)
            if role is not None:
                heads, depth = int(module.heads), _depth(model, name)
                found.append(
                    AttentionLayer(component + name, module, heads, role, component, depth)
                )
        return tuple(found)

    def grid(self, layer: AttentionLayer, latent: tuple[int, int]) -> tuple[int, int]:
        """Return the latent grid, halved as often as before the layer."""
        height, width = latent
        for _ in range(layer.depth):
            # a stride-2 convolution with padding 1 rounds up
            height, width = -(-height // 2), -(-width // 2)
        return height, width

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``unet(sample, timestep, encoder_hidden_states)``.

        Raises:
            RuntimeError: the sample does not hold images.
        """
        sample: Tensor = arguments["sample"]
        if sample.ndim != 4:
            raise RuntimeError(
                f"the denoiser's sample has {sample.ndim} axes; expected images, "
                "(rows, channels, height, width); video is not supported"
            )
        latent = (int(sample.shape[-2]), int(sample.shape[-1]))
        states = text_states(arguments.get("encoder_hidden_states"))
        return DenoiserCall(
            sample,
            latent,
            arguments["timestep"],
            states,
            component,
            image_prompts=() if component else read_image_prompts(arguments),
        )

    def places(self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int) -> None:
        """Return None: all queries are the image's, and the first keys the text's."""

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return the one axis that the pipeline's tokenizers share."""
        named = (getattr(pipe, name, None) for name in ("tokenizer", "tokenizer_2"))
        tokenizers = tuple(t for t in named if t is not None)
        convert = getattr(pipe, "maybe_convert_prompt", None)
        return (Axis(tokenizers, convert=convert, texts=("prompt", "prompt_2")),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, negative, ...)."""
        return Encoded(result[0], result[1] if len(result) > 1 else None)

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Return the clean latents implied by a predicted noise, velocity or sample."""
        return clean_latents(scheduler, sample, output, timestep)

    def denoise(self, pipe: Any, latents: Tensor, timestep: float, encoded: Any) -> Tensor:
        """Return the UNet's output, called with SDXL's pooled text and sizes where it takes them.

        Raises:
            ValueError: the UNet takes more than noised latents.
        """
        config, rows = pipe.unet.config, len(latents)
        if config.in_channels != latents.shape[1]:
            raise ValueError(
                f"{type(pipe).__name__} takes {config.in_channels} channels where a picture's "
                f"latents have {latents.shape[1]}; probe a text-to-image pipeline"
            )
        more: dict[str, Any] = {}
        if config.addition_embed_type == "text_time":
            more["added_cond_kwargs"] = _added(pipe, latents, encoded[2])
        if config.time_cond_proj_dim is not None:  # distilled guidance, at a scale of 1
            scales = torch.zeros(rows, device=latents.device)
            more["timestep_cond"] = pipe.get_guidance_scale_embedding(
                scales, embedding_dim=config.time_cond_proj_dim
            ).to(latents)
        found: Tensor = pipe.unet(latents, int(timestep), encoded[0], return_dict=False, **more)[0]
        return found


def _added(pipe: Any, latents: Tensor, pooled: Tensor) -> dict[str, Tensor]:
    """Return SDXL's further conditions: the pooled text, and a picture that was never cropped."""
    size = tuple(int(side) * pipe.vae_scale_factor for side in latents.shape[-2:])
    second = getattr(pipe, "text_encoder_2", None)
    width = pooled.shape[-1] if second is None else second.config.projection_dim
    ids = pipe._get_add_time_ids(
        size, (0, 0), size, dtype=latents.dtype, text_encoder_projection_dim=int(width)
    )
    return {"text_embeds": pooled, "time_ids": ids.to(latents.device).repeat(len(latents), 1)}


def text_states(states: Any) -> Tensor | None:
    """Return the text part of ``encoder_hidden_states`` (IP-Adapter makes it a tuple)."""
    if isinstance(states, tuple | list):
        states = states[0]
    return states if isinstance(states, Tensor) else None


def _role(module: Any) -> Role | None:
    if getattr(module, "added_kv_proj_dim", None) is not None:
        return "added"
    is_cross = getattr(module, "is_cross_attention", None)
    if is_cross is None:
        return None
    # layers with "only_cross_attention" are built as attn1 and have the attribute
    return "cross" if is_cross else "self"


def _depth(model: Any, name: str) -> int:
    """Return how many samplers come before a layer: down blocks add one, up blocks take one."""
    place, _, rest = name.partition(".")
    downs = [getattr(block, "downsamplers", None) is not None for block in model.down_blocks]
    if place == "down_blocks":
        return sum(downs[: int(rest.split(".")[0])])
    if place == "up_blocks":
        before = model.up_blocks[: int(rest.split(".")[0])]
        ups = sum(getattr(block, "upsamplers", None) is not None for block in before)
        return sum(downs) - ups
    return sum(downs)
