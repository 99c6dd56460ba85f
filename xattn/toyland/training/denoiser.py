"""Toyland's UNet, and the two text encoders that it comes with."""

from __future__ import annotations

import math

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.training_utils import compute_snr
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from .autoencoder import LATENT_CHANNELS
from .loop import Batch, Trainable

TEXT_DIM = 128
CONTEXT_LAYERS = 2
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
    return _text_encoder(tokenizer, layers=0, width=TEXT_DIM)


def build_contextual_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    """Build a CLIP text encoder of two causal layers, as Stable Diffusion has it of twelve.

    Each token may carry what stands before it, the end token the whole caption. Its embeddings
    start as those of the encoder without layers.
    """
    return _text_encoder(tokenizer, layers=CONTEXT_LAYERS, width=4 * TEXT_DIM)


def _text_encoder(tokenizer: CLIPTokenizer, layers: int, width: int) -> CLIPTextModel:
    model = CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=TEXT_DIM,
            intermediate_size=width,
            projection_dim=TEXT_DIM,
            num_hidden_layers=layers,
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


def snr_weights(scheduler: DDIMScheduler, timesteps: Tensor) -> Tensor:
    """Weigh the squared error of epsilon by min(SNR, 5) / SNR (Hang et al. 2023, section 3.4)."""
    snr: Tensor = compute_snr(scheduler, timesteps)
    return snr.clamp(max=SNR_CAP) / snr


class Denoiser(Trainable):
    """Text encoder and UNet as one module, so that one optimiser and one average hold both."""

    def __init__(self, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.text_encoder = text_encoder
        self.unet = build_unet()
        self.scheduler = build_scheduler()

    def forward(self, noisy: Tensor, timesteps: Tensor, ids: Tensor) -> Tensor:
        """Predict the noise in noisy latents, of their shape."""
        text = self.text_encoder(ids)[0]  # (batch, 77, 128)
        noise: Tensor = self.unet(noisy, timesteps, text).sample
        return noise

    def loss(self, batch: Batch, random: torch.Generator) -> Tensor:
        """Weighed squared error of the noise, one timestep in each of equal slices."""
        clean, count = batch.clean, len(batch.clean)
        noise = torch.randn(clean.shape, generator=random).to(clean.device)
        # less variance than free draws
        slices = (torch.arange(count) + torch.rand(count, generator=random)) / count
        timesteps = (slices * len(self.scheduler.alphas_cumprod)).long()
        weights = snr_weights(self.scheduler, timesteps).to(clean.device)
        timesteps = timesteps.to(clean.device)
        noisy = self.scheduler.add_noise(clean, noise, timesteps)
        made = self(noisy, timesteps, batch.ids)
        loss: Tensor = (weights * (made.float() - noise).square().mean((1, 2, 3))).mean()
        return loss

    def begin(self, device: str) -> None:
        """Install explicit attention on a CPU, where the fused one's backward is slow."""
        if device == "cpu":
            self.unet.set_attn_processor(AttnProcessor())

    def end(self) -> None:
        """Put the default attention back."""
        self.unet.set_default_attn_processor()
