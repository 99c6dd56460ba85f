"""``invert(pipe, photo, prompt)``: a photograph's latents at every level, for edits."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from xattn.api.arguments import options_of, refuse_unknown
from xattn.api.photos import Pictures, Room, fitted, photos
from xattn.instruments.keeper import OF_ONE_CALL
from xattn.inversion.inversion import Inversion
from xattn.inversion.maker import Maker
from xattn.inversion.method import DIFFUSION, FLOW, Asked, Method
from xattn.inversion.methods import DEFAULT, Cost, cost_of, method_of
from xattn.inversion.path import KNOWN, Path
from xattn.models import family_of_pipeline
from xattn.models.denoisers import INVERTED
from xattn.models.packing import packed, packed_channels, sides_of, unpacked
from xattn.models.probing import encoded_pictures
from xattn.models.sizes import denoiser_of
from xattn.records.room import check_room_for

FIXED = (
    "prompt", "prompt_embeds", "negative_prompt_embeds", "pooled_prompt_embeds", "latents",
    "num_images_per_prompt", "output_type", "return_dict", "timesteps", "sigmas", "eta",
    "height", "width", "denoising_end", "image", "strength",
)  # fmt: skip
"""Options of a pipeline that an inversion sets itself, or can't have."""


def invert(
    pipe: Any,
    image: Pictures,
    prompt: str,
    *,
    method: str = DEFAULT,
    steps: int = 50,
    guidance_scale: float | None = None,
    size: tuple[int, int] | None = None,
    generator: torch.Generator | None = None,
    measure: bool = True,
    **options: Any,
) -> Inversion:
    """Find a photograph's latents at every level of the pipeline's schedule.

    Edits start from them: ``edit(pipe, prompt, ..., source=inversion)``, as often as you like. The
    progress bar states denoiser calls and bytes; ``inversion_cost`` does so before. The pipeline
    is left as it was found, also when interrupted.

    The picture is turned upright, laid on white where it is transparent, and resized as for
    ``probe``: a size the model takes stays, any other is scaled to the model's own area with each
    side rounded to whole cells.

    Args:
        pipe: a text-to-image pipeline: Stable Diffusion 1, 2, XL or 3, FLUX.1, ControlNet.
        image: a PIL image or a path.
        prompt: what the picture shows, one text; edits start from its words.
        method: "direct", "ddim", "negative", "null-text", "fixed-point" or "edit-friendly"; for
            flow matching "direct", "euler", "rf-solver", "fireflow", "fixed-point", "flowedit" or
            "uniedit".
        steps: number of steps of the edits.
        guidance_scale: that of the edits, for methods that depend on it ("null-text",
            "fixed-point", "edit-friendly"); the pipeline's own default if left out.
        size: (height, width) in pixels to resize the picture to instead.
        generator: of "edit-friendly" and "flowedit", which draw noise.
        measure: whether to draw the source once more, ``steps`` calls, to know the fidelity; with
            "direct" it is known without.
        **options: the pipeline's own: a ControlNet's ``image`` as ``control_image=``,
            ``ip_adapter_image``, ``cross_attention_kwargs``, ``clip_skip``, callbacks.

    Raises:
        TypeError: pipe is not a pipeline, or image is not a picture.
        ValueError: the method is unknown or not for this model, an option cannot be had, the
            scheduler's steps can't be inverted, or the picture can't be read.
        MemoryError: before the first step: what would be kept does not fit.

    Example:
        >>> pipe, photo = xattn.demo(), xattn.toyland.scene(1)
        >>> inversion = xattn.invert(pipe, photo.image, photo.caption, steps=20)
        >>> inversion.save("scene.safetensors")
    """
    chosen = checked(pipe, prompt, method, steps, options)
    options = with_control(pipe, options)
    [photo] = only_one(image)
    shown = fitted(photo, Room.of(pipe).sized(photo.image.size, size))
    clean = encoded(pipe, shown.image)
    latents = clean.to(denoiser_of(pipe).dtype)
    cost = _cost(pipe, chosen, steps, latents.numel())
    check_room_for(f"{cost.method} inversion keeps", cost.nbytes, torch.device("cpu"))
    guidance = default_guidance(pipe) if guidance_scale is None else float(guidance_scale)
    maker = Maker.of(pipe)
    held, sides = packed(pipe, latents), sides_of(pipe, latents)
    found = chosen.invert(
        Asked(pipe, prompt, held, steps, guidance, generator, {**options, **sides}), str(cost)
    )
    inversion = Inversion(
        prompt=prompt,
        method=chosen.name,
        pivots=unpacked(pipe, found.pivots, (latents.shape[-2], latents.shape[-1])).cpu(),
        timesteps=found.timesteps,
        guidance_scale=guidance if chosen.guided else None,
        maker=maker,
        photo=shown.image,
        reconstruction=decoded(pipe, latents),
        extra=None if found.extra is None else found.extra.cpu(),
        original=photo.original,
        calls=cost.calls,
        options={name: each for name, each in options.items() if name not in OF_ONE_CALL},
    )
    if chosen.pinned:
        return replace(inversion, replay=inversion.reconstruction)
    return measured(pipe, chosen, inversion, guidance) if measure else inversion


def inversion_cost(
    pipe: Any, *, method: str = DEFAULT, steps: int = 50, size: tuple[int, int] | None = None
) -> Cost:
    """Return what an inversion takes, before it is made: denoiser calls and bytes.

    Args:
        pipe: the pipeline.
        method: as for ``invert``.
        steps: as for ``invert``.
        size: (height, width) in pixels; the model's own by default.

    Raises:
        ValueError: the method is unknown or not for this model.

    Example:
        >>> print(xattn.inversion_cost(xattn.demo(), method="direct", steps=20))
    """
    chosen, room = method_of(method, kind_of(pipe), type(pipe).__name__), Room.of(pipe)
    side = round(math.sqrt(room.area))
    height, width = size or (side, side)
    scale = int(getattr(pipe, "vae_scale_factor", 8))
    channels = int(pipe.vae.config.latent_channels)
    return _cost(pipe, chosen, steps, channels * (height // scale) * (width // scale))


def _cost(pipe: Any, method: Method, steps: int, latent: int) -> Cost:
    config = denoiser_of(pipe).config
    width = getattr(config, "cross_attention_dim", 0)
    width = max(width) if isinstance(width, list | tuple) else int(width or 0)
    return cost_of(method, steps, latent, width * int(pipe.tokenizer.model_max_length))


# -- what was asked for


def checked(pipe: Any, prompt: str, name: str, steps: int, options: Mapping[str, Any]) -> Method:
    """Return the method, after checking all that is known before the picture is read."""
    if isinstance(pipe, nn.Module):
        raise TypeError("invert needs a pipeline, which has an autoencoder and a text encoder")
    if not isinstance(prompt, str):
        raise ValueError(
            f"prompt must be one text, what the picture shows in words, got {prompt!r}"
        )
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps={steps!r} must be a whole number, 1 or more")
    chosen = method_of(name, kind_of(pipe), type(pipe).__name__)
    for option in FIXED:
        if options.get(option) is not None:
            raise ValueError(f"{option}= cannot be had with a photograph; leave it out")
    refuse_unknown(pipe, with_control(pipe, options))
    if "strength" in options_of(type(pipe)):
        raise TypeError(
            f"{type(pipe).__name__} draws over a picture of its own accord; to invert a "
            "photograph use its text-to-image pipeline (AutoPipelineForText2Image.from_pipe)"
        )
    return chosen


def with_control(pipe: Any, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return options with a ControlNet's picture under the pipeline's own name for it."""
    found = dict(options)
    if "control_image" in found and "image" in options_of(type(pipe)):
        found["image"] = found.pop("control_image")
    return found


def kind_of(pipe: Any) -> str:
    """Return whether a pipeline's model is of diffusion or of flow matching.

    Raises:
        TypeError: its photographs can't be inverted.
        ValueError: nor can its scheduler's steps.
    """
    family = family_of_pipeline(pipe)
    classes = family.classes
    if not set(INVERTED).intersection(classes):
        raise TypeError(
            f"{type(pipe).__name__}'s photographs can't be inverted yet: {classes[0]} is neither a "
            "UNet nor the transformer of Stable Diffusion 3 or FLUX.1"
        )
    taken, held = denoiser_of(pipe).config.in_channels, packed_channels(pipe)
    if held is not None and taken != held:
        raise TypeError(
            f"{type(pipe).__name__} takes {taken} channels where a picture's packed latents have "
            f"{held}: invert with the text-to-image pipeline of its model"
        )
    name = type(pipe.scheduler).__name__
    if name not in KNOWN:
        raise ValueError(
            f"{name} can't be inverted; give the pipeline one of {', '.join(KNOWN)}, such as "
            "DDIMScheduler.from_config(pipe.scheduler.config)"
        )
    return FLOW if name.startswith("FlowMatch") else DIFFUSION


def only_one(image: Pictures) -> list[Any]:
    """Return the photo in a list.

    Raises:
        ValueError: there are several.
    """
    found = photos(image)
    if len(found) != 1:
        raise ValueError(f"image has {len(found)} pictures; pass one, and call again for others")
    return found


def default_guidance(pipe: Any) -> float:
    """Return the guidance scale that a pipeline has by default."""
    return float(options_of(type(pipe))["guidance_scale"])


# -- the autoencoder


@torch.no_grad()
def encoded(pipe: Any, image: Image.Image) -> Tensor:
    """Return a picture's latents, float32 (1, channels, height, width): the mode, scaled."""
    pixels = pipe.image_processor.preprocess([image])
    device = torch.device(pipe._execution_device)
    found = encoded_pictures(pipe, pixels.to(device))
    pipe.maybe_free_model_hooks()
    return found.to(device)


@torch.no_grad()
def decoded(pipe: Any, latents: Tensor) -> Image.Image:
    """Return the picture that the autoencoder makes of latents, (1, channels, height, width)."""
    config, found = pipe.vae.config, latents.float()
    mean, std = (getattr(config, name, None) for name in ("latents_mean", "latents_std"))
    if mean is not None and std is not None:
        shift, scale = (found.new_tensor(each).view(1, -1, 1, 1) for each in (mean, std))
        found = found * scale / config.scaling_factor + shift
    else:
        found = found / config.scaling_factor + (getattr(config, "shift_factor", None) or 0)
    wide = pipe.vae.dtype == torch.float16 and bool(getattr(config, "force_upcast", False))
    if wide:
        pipe.vae.to(torch.float32)
    try:
        drawn = pipe.vae.decode(found.to(pipe.vae.dtype), return_dict=False)[0]
    finally:
        if wide:
            pipe.vae.to(torch.float16)
    image: Image.Image = pipe.image_processor.postprocess(drawn.float())[0]
    pipe.maybe_free_model_hooks()
    return image


# -- drawing from an inversion


@torch.no_grad()
def measured(pipe: Any, method: Method, inversion: Inversion, guidance: float) -> Inversion:
    """Return an inversion with its source drawn again."""
    options = {**inversion.options, "guidance_scale": guidance, **sides_of(pipe, inversion.pivots)}
    inversion, whole = as_held(pipe, inversion), inversion
    with method.replayed(pipe, inversion, options):
        first = native_pivots(pipe, inversion)[0]
        drawn = pipe(
            prompt=inversion.prompt, latents=first, num_inference_steps=inversion.steps, **options
        ).images[0]
    return replace(whole, replay=drawn)


def as_held(pipe: Any, inversion: Inversion) -> Inversion:
    """Return an inversion whose pivots are as the pipeline holds latents."""
    return replace(inversion, pivots=packed(pipe, inversion.pivots))


def native_pivots(pipe: Any, inversion: Inversion) -> list[Tensor]:
    """Return the pivots as the pipeline's scheduler holds them, each (1, channels, ...).

    The first is what the pipeline takes as ``latents=``; it multiplies it by its own factor.
    """
    device, dtype = torch.device(pipe._execution_device), denoiser_of(pipe).dtype
    found = [pivot.to(device) for pivot in inversion.pivots]  # of an inversion as held
    if float(getattr(pipe.scheduler, "init_noise_sigma", 1.0)) != 1:
        scheduler = copy.deepcopy(pipe.scheduler)
        scheduler.set_timesteps(inversion.steps)
        path = Path.of(scheduler)
        found = [path.native(pivot, level) for level, pivot in enumerate(found)]
        found[0] = found[0] / float(scheduler.init_noise_sigma)
    return [each.to(dtype) for each in found]
