"""Edits in a custom sampling loop: `python examples/custom_loop.py`.

`xattn.editing` puts the edits into the UNet; the loop starts all rows from the same noise, and
calls `session.blend` after each of the scheduler's steps. It works for Stable Diffusion 1 and 2;
for SDXL's UNet, add its pooled text and sizes to every call as `added_cond_kwargs`.
"""

from __future__ import annotations

import torch
from common import PROMPT, arguments, draw, seed

import xattn


@torch.no_grad()
def main() -> None:
    options = arguments(__doc__, "custom_loop.png")
    pipe, settings = draw(options)
    if pipe.unet.config.addition_embed_type is not None:
        raise SystemExit(
            f"{type(pipe).__name__}: this loop is for Stable Diffusion 1 and 2; SDXL's UNet needs "
            "added_cond_kwargs (text_embeds, time_ids) with every call"
        )
    unet, scheduler, guidance = pipe.unet, pipe.scheduler, settings["guidance_scale"]
    scheduler.set_timesteps(settings["num_inference_steps"])
    edits = [xattn.Replace("red", "blue"), [xattn.Replace("car", "boat"), xattn.LocalBlend("car")]]
    loop = xattn.Loop(unet, tokenizer=pipe.tokenizer, scheduler=scheduler)
    with xattn.editing(loop, PROMPT, *edits) as session:
        text, empty = pipe.encode_prompt(session.prompts, unet.device, 1, True)
        states = torch.cat([empty, text])
        side = unet.config.sample_size
        noise = torch.randn(1, unet.config.in_channels, side, side, generator=seed(options))
        latents = noise.to(unet.device, unet.dtype).repeat(len(session.prompts), 1, 1, 1)
        latents = latents * scheduler.init_noise_sigma
        for t in scheduler.timesteps:
            both = scheduler.scale_model_input(torch.cat([latents] * 2), t)
            without, with_text = unet(both, t, states).sample.chunk(2)
            predicted = without + guidance * (with_text - without)
            latents = session.blend(scheduler.step(predicted, t, latents).prev_sample)
    decoded = pipe.vae.decode(latents / pipe.vae.config.scaling_factor).sample
    images = pipe.image_processor.postprocess(decoded)
    sheet = session.trace.heatmap("red", 0).overlay(images[0])
    for i, image in enumerate([*images, sheet]):
        image.resize((256, 256)).save(f"{options.out.removesuffix('.png')}-{i}.png")


if __name__ == "__main__":
    main()
