"""Teach a model where words belong: `python examples/teach.py --steps 300`.

A LoRA on the cross-attention of the bundled model learns from drawn scenes, whose masks are known,
by the denoising loss and TokenCompose's two. It writes the LoRA and a sheet: maps of words in
scenes that it never saw, before and after, and pictures of their captions.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from PIL import Image
from torch.nn import functional as F

import xattn
from xattn.toyland.scenes import Scene, scene
from xattn.views.sheets import table

TARGETS = [f"attn2.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")]


def masks_of(drawn: Scene) -> dict[Any, torch.Tensor]:
    """Return the mask of each word of a caption that names something, by its token position."""
    found = enumerate(drawn.word_masks, start=1)  # every word of Toyland is one token
    return {(place,): torch.as_tensor(mask) for place, mask in found if mask is not None}


@torch.no_grad()
def encoded(pipe: Any, scenes: Sequence[Scene]) -> torch.Tensor:
    """Return the scenes' latents."""
    pixels = pipe.image_processor.preprocess([one.image for one in scenes])
    latents: torch.Tensor = pipe.vae.encode(pixels.to(pipe.device)).latent_dist.mean
    return latents * pipe.vae.config.scaling_factor


def teach(
    pipe: Any,
    scenes: Sequence[Scene],
    *,
    steps: int = 300,
    batch: int = 4,
    rank: int = 16,
    rate: float = 3e-3,
    token: float = 0.1,
    pixel: float = 0.05,
) -> list[float]:
    """Train a LoRA on the UNet's cross-attention, and return the loss of each step."""
    unet, random = pipe.unet, torch.Generator().manual_seed(0)
    unet.requires_grad_(False)
    config = LoraConfig(r=rank, lora_alpha=rank, target_modules=TARGETS)
    unet.add_adapter(config)
    weights = [weight for weight in unet.parameters() if weight.requires_grad]
    optimizer = torch.optim.AdamW(weights, lr=rate, weight_decay=0.0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    known = torch.cat([encoded(pipe, scenes[i : i + 20]) for i in range(0, len(scenes), 20)])
    losses = []
    for _ in range(steps):
        chosen = torch.randint(len(scenes), (batch,), generator=random).tolist()
        captions = [scenes[n].caption for n in chosen]
        states = pipe.encode_prompt(captions, pipe.device, 1, False)[0].detach()
        noise = torch.randn(known[chosen].shape, generator=random).to(known)
        t = torch.randint(1000, (batch,), generator=random).to(known.device)
        noisy = pipe.scheduler.add_noise(known[chosen], noise, t)
        with xattn.supervised(unet, tokenizer=pipe.tokenizer, prompt=captions) as maps:
            loss = F.mse_loss(unet(noisy, t, states).sample, noise)
            masks = [masks_of(scenes[n]) for n in chosen]
            loss = loss + token * maps.token_loss(masks) + pixel * maps.pixel_loss(masks)
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        losses.append(float(loss.detach()))
    return losses


def shown(pipe: Any, scenes: Sequence[Scene], steps: int) -> list[list[Image.Image]]:
    """Return, for each scene, maps of its nouns on the drawn picture, and the model's own one."""
    rows = []
    for one in scenes:
        trace = xattn.probe(pipe, one.image, one.caption)
        maps = [trace.heatmap(thing.noun).overlay(one.image) for thing in one.things]
        seed = torch.Generator().manual_seed(one.seed)
        drawn = pipe(one.caption, num_inference_steps=steps, guidance_scale=5.0, generator=seed)
        rows.append([*maps, drawn.images[0]])
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", choices=["unet", "contextual"], default="contextual")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--scenes", type=int, default=400, help="drawn scenes to learn from")
    parser.add_argument("--drawing-steps", type=int, default=20, help="of the sheet's pictures")
    parser.add_argument("--out", type=Path, default=Path("teach.png"))
    options = parser.parse_args()
    pipe = xattn.demo(options.model)
    pipe.set_progress_bar_config(disable=True)
    unseen = map(scene, range(10_000_000, 10_000_020))
    held_out = [one for one in unseen if len(one.things) == 2][:2]
    before = shown(pipe, held_out, options.drawing_steps)
    losses = teach(pipe, [scene(n) for n in range(options.scenes)], steps=options.steps)
    print(f"loss {losses[0]:.3f} at first, {sum(losses[-20:]) / len(losses[-20:]):.3f} at last")
    after = shown(pipe, held_out, options.drawing_steps)
    cells = [one for pair in zip(before, after, strict=True) for one in pair]
    labels = [f"{when}: {one.caption}" for one in held_out for when in ("before", "after")]
    table(cells, labels, ["map of the first noun", "of the second", "drawn"]).save(options.out)
    lora = convert_state_dict_to_diffusers(get_peft_model_state_dict(pipe.unet))
    type(pipe).save_lora_weights(options.out.with_suffix(""), unet_lora_layers=lora)


if __name__ == "__main__":
    main()
