"""FLUX.1: text and image in one attention, [text, image], on packed latents."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from xattn.models.family import JOINT_EDITS, NOTHING, AttentionLayer, Axis, DenoiserCall, Encoded
from xattn.models.probing import FlowLevels
from xattn.processors.call import Place

_PATCH = 2
"""Latents are packed 2 x 2 into one position before the call."""


@dataclass(frozen=True)
class Flux(FlowLevels):
    """The family of FLUX.1: dev, schnell, Fill, Control, Kontext.

    Words are T5's; CLIP's text reaches the model as one vector. With ``true_cfg_scale`` guidance
    runs in two passes, the prompts' first.

    Attributes:
        scale: the scheduler's timestep divided by the one that is passed.
    """

    classes: tuple[str, ...] = ("FluxTransformer2DModel",)
    map_layers: tuple[str, ...] | None = ("*",)
    edits: frozenset[str] = JOINT_EDITS
    two_passes: bool = True
    scale: float = 1000.0

    def denoisers(self, pipe: Any) -> tuple[nn.Module, ...]:
        """Return the transformer.

        Raises:
            TypeError: the pipeline draws rows of examples, of which only one is the image.
        """
        if type(pipe).__name__.startswith("VisualCloze"):
            raise TypeError(
                f"{type(pipe).__name__} draws a grid of examples, whose words have no one place; "
                "record another FLUX.1 pipeline"
            )
        return (pipe.transformer,)

    def layers(self, denoiser: nn.Module, component: str = "") -> tuple[AttentionLayer, ...]:
        """Return the attention of the double blocks, then of the single ones: all joint."""
        model: Any = getattr(denoiser, "_orig_mod", denoiser)
        return tuple(
            AttentionLayer(
                component + name, module, int(module.heads), "joint", component, patch=_PATCH
            )
            for name, module in model.named_modules()
            if callable(getattr(module, "processor", None)) and hasattr(module, "heads")
        )

    def grid(self, layer: AttentionLayer, latent: tuple[int, int]) -> tuple[int, int]:
        """Return the grid of packed positions."""
        return latent[0] // layer.patch, latent[1] // layer.patch

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call ``transformer(hidden_states, ..., timestep, img_ids, txt_ids)``.

        The timestep is a thousandth of the scheduler's; the grid is known by the image's ids.
        """
        height, width = _grid_of(arguments["img_ids"])
        sample = arguments["hidden_states"]
        return DenoiserCall(
            sample=sample,
            latent=(height * _PATCH, width * _PATCH),
            timestep=arguments["timestep"] * self.scale,
            states=arguments["encoder_hidden_states"],
            component=component,
            layout=int(sample.shape[1]),
        )

    def places(
        self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int
    ) -> tuple[Place, ...]:
        """Return where the text, the image and behind it a reference stand, the same in each row.

        Raises:
            RuntimeError: queries or keys are not as many as the text's and the image's.
        """
        height, width = self.grid(layer, call.latent)
        own, image, text = height * width, call.layout, 0
        if call.states is not None:
            text = int(call.states.shape[1])
        if queries != text + image or keys != text + image or own > image:
            raise RuntimeError(
                f"layer {layer.name} has {queries} queries and {keys} keys where {text} of the "
                f"text and {image} of images, {text + image}, were expected, {own} of them of the "
                "grid: xattn doesn't know which is which; please report the model's configuration"
            )
        place = Place(slice(text, text + own), slice(0, text), slice(text, text + image))
        return (place,) * call.rows

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return T5's positions."""
        convert = getattr(pipe, "maybe_convert_prompt", None)
        t5, texts = getattr(pipe, "tokenizer_2", None), ("prompt_2",)
        if t5 is None:  # FLUX.1's kin have no CLIP
            t5, texts = pipe.tokenizer, ("prompt",)
        return (Axis((t5,), convert=convert, texts=texts),)

    def encoded(self, result: Any) -> Encoded:
        """Read (positive, pooled, ids); negative prompts are encoded by a call of their own."""
        return Encoded(result[0], None)

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Raise ValueError: previews don't know packed latents."""
        raise ValueError("previews=True can't be had with FLUX's packed latents; leave it out")

    def denoise(self, pipe: Any, latents: Tensor, timestep: float, encoded: Any) -> Tensor:
        """Return the transformer's output for packed latents, at the pipeline's guidance of 3.5.

        Raises:
            ValueError: the transformer takes more than noised latents.
        """
        config, (rows, channels, height, width) = pipe.transformer.config, latents.shape
        if config.in_channels != channels * _PATCH**2:
            raise ValueError(
                f"{type(pipe).__name__} takes {config.in_channels} channels where a picture's "
                f"packed latents have {channels * _PATCH**2}; probe a text-to-image pipeline"
            )
        packed = self.pack(latents)
        grid = torch.cartesian_prod(torch.arange(height // _PATCH), torch.arange(width // _PATCH))
        ids = torch.cat([torch.zeros(len(grid), 1), grid], dim=1).to(latents)
        times = torch.full((rows,), timestep / 1000).to(latents)
        found: Tensor = pipe.transformer(
            hidden_states=packed,
            timestep=times,
            guidance=torch.full_like(times, 3.5).float() if config.guidance_embeds else None,
            pooled_projections=encoded[1],
            encoder_hidden_states=encoded[0],
            txt_ids=encoded[2],
            img_ids=ids,
            return_dict=False,
        )[0]
        return _unpacked(found, (height, width))

    def latents(self, call: DenoiserCall) -> Tensor:
        """Return the unpacked latents of a call."""
        return _unpacked(call.sample, call.latent)

    # -- latents as the pipeline holds them --------------------------------------------------------

    def pack(self, latents: Tensor) -> Tensor:
        """Return latents as (rows, places, channels), four neighbours in each place."""
        rows, channels, height, width = latents.shape
        parts = latents.reshape(rows, channels, height // _PATCH, _PATCH, width // _PATCH, _PATCH)
        return parts.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)

    def unpack(self, packed: Tensor, size: tuple[int, int]) -> Tensor:
        """Return packed latents as (rows, channels, height, width)."""
        return _unpacked(packed, size)

    def lay_out(self, scheduler: Any, steps: int, places: int, device: torch.device) -> None:
        """Set a scheduler's timesteps as ``FluxPipeline`` does: even sigmas, shifted by places."""
        from diffusers.pipelines.flux.pipeline_flux import calculate_shift

        config = scheduler.config
        names = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        usual = (256, 4096, 0.5, 1.15)
        known = [config.get(name, value) for name, value in zip(names, usual, strict=True)]
        even = None if config.get("use_flow_sigmas") else np.linspace(1.0, 1 / steps, steps)
        mu = calculate_shift(places, *known)
        scheduler.set_timesteps(steps, sigmas=even, mu=mu, device=device)


def _unpacked(packed: Tensor, size: tuple[int, int]) -> Tensor:
    """Return packed positions as (rows, channels, height, width)."""
    height, width = size
    cells = packed.unflatten(2, (-1, _PATCH, _PATCH))  # (rows, places, channels, 2, 2)
    grid = cells.unflatten(1, (height // _PATCH, width // _PATCH))
    whole: Tensor = grid.permute(0, 3, 1, 4, 2, 5).flatten(2, 3).flatten(3, 4)
    return whole


_grids: Any = WeakIdKeyDictionary()  # reading ids waits for the device: once for each run


def _grid_of(ids: Tensor) -> tuple[int, int]:
    """Return (height, width) of the image's own positions; a reference's first id is another."""
    if ids not in _grids:
        rows = ids[0] if ids.ndim == 3 else ids
        own = rows[rows[:, 0] == rows[0, 0], 1:3]
        height, width = (int(side) + 1 for side in (own.amax(0) - own.amin(0)).tolist())
        _grids[ids] = (height, width)
    found: tuple[int, int] = _grids[ids]
    return found
