"""Trains Toyland's denoiser and text encoder together, on latents that were encoded once."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.training_utils import EMAModel, compute_snr
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .autoencoder import LATENT_CHANNELS
from .progress import Progress
from .team import ALONE, Team

TEXT_DIM = 128
CAPTION_DROPOUT = 0.1
SNR_CAP = 5.0


def build_unet() -> UNet2DConditionModel:
    """Build the untrained denoiser: 4.3 M parameters, cross-attention at 16 x 16 and 8 x 8.

    The last layer of each residual branch starts at zero (Dhariwal & Nichol 2021), which
    diffusers leaves to the trainer.
    """
    model = UNet2DConditionModel(
        sample_size=16,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(64, 128),
        layers_per_block=1,
        attention_head_dim=(2, 4),  # diffusers' historical name for the number of heads
        cross_attention_dim=TEXT_DIM,
        norm_num_groups=8,
    )
    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            torch.nn.init.zeros_(module.conv2.weight)
        elif isinstance(module, Transformer2DModel):
            torch.nn.init.zeros_(module.proj_out.weight)
    torch.nn.init.zeros_(model.conv_out.weight)
    return model


def build_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build a CLIP text encoder without layers: words and positions are embedded, never mixed.

    In a causal encoder "car" carries "red", and the end token the whole caption, so the denoiser
    need not look at "red". Here "red" is the only token that knows of red. What binds it to its
    noun is their neighbouring positions; these start as sinusoids (Vaswani et al. 2017, section
    3.5, wavelengths of 6 to 600 tokens), in which a neighbour is a rotation away.
    """
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_DIM,
            intermediate_size=TEXT_DIM,
            projection_dim=TEXT_DIM,
            num_hidden_layers=0,
            num_attention_heads=4,
            max_position_embeddings=tokenizer.model_max_length,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )
    positions = torch.arange(tokenizer.model_max_length)[:, None]
    angles = positions * torch.exp(-torch.arange(0, TEXT_DIM, 2) / TEXT_DIM * math.log(100))
    with torch.no_grad():
        embeddings = model.get_submodule("embeddings")
        weight = embeddings.get_parameter("position_embedding.weight")
        weight.copy_(torch.cat([angles.sin(), angles.cos()], dim=1) / math.sqrt(2))
        embeddings.get_parameter("token_embedding.weight").normal_(std=0.5)
    return model


def build_scheduler() -> DDIMScheduler:
    """Build the scheduler with Stable Diffusion's own noise schedule and options."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def tokenize(tokenizer: CLIPTokenizer, captions: Sequence[str]) -> torch.Tensor:
    """Give token ids, `(captions, 77)`."""
    ids: torch.Tensor = tokenizer(
        list(captions), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return ids


def snr_weights(scheduler: DDIMScheduler, timesteps: torch.Tensor) -> torch.Tensor:
    """Weigh the squared error of epsilon by min(SNR, 5) / SNR (Hang et al. 2023, section 3.4)."""
    snr: torch.Tensor = compute_snr(scheduler, timesteps)
    return snr.clamp(max=SNR_CAP) / snr


class Denoiser(torch.nn.Module):
    """Text encoder and UNet as one module, so that one optimiser and one average hold both."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        self.text_encoder = build_text_encoder(tokenizer)
        self.unet = build_unet()

    def forward(
        self, noisy: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor
    ) -> torch.Tensor:
        """Give the noise that is found in noisy latents, of their shape."""
        text = self.text_encoder(ids)[0]  # (batch, 77, 128)
        noise: torch.Tensor = self.unet(noisy, timesteps, text).sample
        return noise


def train_denoiser(
    latents: torch.Tensor,
    captions: Sequence[str],
    tokenizer: CLIPTokenizer,
    folder: Path,
    *,
    steps: int = 8000,
    minutes: float | None = None,
    batch: int = 32,
    peak_rate: float = 1.5e-3,
    device: str = "cpu",
    save_every: int = 250,
    look: Callable[[Denoiser, int], None] | None = None,
    team: Team = ALONE,
) -> Denoiser:
    """Train by predicting the noise, and give the moving average of the weights.

    `latents` are `(count, 8, 16, 16)`. Resumes from `folder`. `batch` is the whole team's. `look`
    is called with the average and the step each time that a checkpoint is written.
    """
    torch.manual_seed(0)
    model = Denoiser(tokenizer).to(device)
    if device == "cpu":  # the backward pass of fused attention is slow there
        model.unet.set_attn_processor(AttnProcessor())
    average = EMAModel(model.parameters(), decay=0.998, min_decay=0.0, use_ema_warmup=False)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=peak_rate, betas=(0.9, 0.99), weight_decay=0.01
    )
    progress = Progress(folder, "denoiser", steps, minutes, team)
    state = progress.resume()
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
    scheduler = build_scheduler()
    ids = tokenize(tokenizer, captions)
    empty = tokenize(tokenizer, [""])
    share = batch // team.size  # of this process
    running = 0.0
    while progress.share < 1:
        random = torch.Generator().manual_seed(progress.step * team.size + team.rank)
        chosen = torch.randint(len(latents), (share,), generator=random)
        dropped = torch.rand(share, 1, generator=random) < CAPTION_DROPOUT
        text = torch.where(dropped, empty, ids[chosen]).to(device)
        clean = latents[chosen].float()  # (batch, 8, 16, 16)
        noise = torch.randn(clean.shape, generator=random)
        # one timestep in each of `share` equal slices: less variance than free draws
        slices = (torch.arange(share) + torch.rand(share, generator=random)) / share
        timesteps = (slices * len(scheduler.alphas_cumprod)).long()
        weights = snr_weights(scheduler, timesteps)
        noisy = scheduler.add_noise(clean, noise, timesteps)
        for group in optimizer.param_groups:
            group["lr"] = progress.rate(peak_rate)
        with torch.autocast(device, torch.bfloat16):
            made = model(noisy.to(device), timesteps.to(device), text)
        errors = (made.float() - noise.to(device)).square().mean((1, 2, 3))  # (batch,)
        loss = (weights.to(device) * errors).mean()
        optimizer.zero_grad()
        loss.backward()
        team.average_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        average.step(model.parameters())
        progress.advance()
        running += float(loss.detach()) / 25
        if progress.step % 25 == 0:
            progress.log(loss=running, rate=optimizer.param_groups[0]["lr"])
            running = 0.0
        if progress.step % save_every == 0 or progress.share >= 1:
            progress.save(
                {
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "average": average.state_dict(),
                }
            )
            if look is not None and team.leads:
                average.store(model.parameters())
                average.copy_to(model.parameters())
                look(model, progress.step)
                average.restore(model.parameters())
    average.copy_to(model.parameters())
    model.unet.set_default_attn_processor()
    return model.eval()
