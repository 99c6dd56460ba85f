"""Trains Toyland's autoencoder: 128 x 128 pixels to 8 x 16 x 16 latents of unit variance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from diffusers.models.resnet import ResnetBlock2D

from .progress import Progress
from .team import ALONE, Team

CHANNELS = (16, 32, 64, 96)
LATENT_CHANNELS = 8
KL_WEIGHT = 2e-3
SQUARE_WEIGHT = 4.0
EDGE_WEIGHT = 0.5
DECODER_NOISE = 0.3
"""Largest deviation of the noise that the decoder learns to see through (latents have 1)."""


def build_autoencoder() -> AutoencoderKL:
    """Build the untrained autoencoder: 1.7 M parameters, a factor of 8 each way.

    One group per norm keeps the colours of flat scenes; residual branches that start at zero make
    the first thousand steps several times more fruitful.
    """
    levels = len(CHANNELS)
    model = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * levels,
        up_block_types=("UpDecoderBlock2D",) * levels,
        block_out_channels=CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=1,
        sample_size=128,
        scaling_factor=1.0,
        mid_block_add_attention=False,
    )
    for module in model.modules():
        if isinstance(module, ResnetBlock2D):
            torch.nn.init.zeros_(module.conv2.weight)
    return model


def to_tensor(images: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Turn pictures `(batch, height, width, 3)` into `(batch, 3, height, width)` in [-1, 1]."""
    return torch.from_numpy(images.copy()).permute(0, 3, 1, 2).float() / 127.5 - 1


def _batch(
    images: npt.NDArray[np.uint8], rng: np.random.Generator, crop: int, size: int
) -> torch.Tensor:
    side = images.shape[1]
    crops = []
    for index in rng.integers(len(images), size=size):
        y, x = rng.integers(0, side - crop + 1, size=2)
        crops.append(images[index, y : y + crop, x : x + crop])
    return to_tensor(np.stack(crops))


def reconstruction_loss(made: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """Absolute and squared error of the colours, absolute error of their differences.

    The square makes wrong colours, which are rare and large, outweigh texture, which is small
    and everywhere.
    """
    error = made - wanted
    edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
    return error.abs().mean() + SQUARE_WEIGHT * error.square().mean() + EDGE_WEIGHT * edges


def _crop(progress: Progress) -> int:
    """Give the side of a step's crops: small and quick at first, whole scenes at the end."""
    if progress.share > 0.85:
        return 128
    if progress.share > 0.4:
        return 128 if progress.step % 8 == 7 else 64
    return 64 if progress.step % 8 == 7 else 32


def train_autoencoder(
    images: npt.NDArray[np.uint8],
    folder: Path,
    *,
    steps: int = 4500,
    minutes: float | None = None,
    batch: int = 16,
    device: str = "cpu",
    save_every: int = 250,
    team: Team = ALONE,
) -> AutoencoderKL:
    """Train on crops of 64 px, with a batch of whole scenes now and then and at the end.

    Resumes from `folder`. The result's latents have mean 0 and variance 1 in each channel: the
    quantisation layers take the measured scale upon them, so that `scaling_factor` is 1.
    """
    torch.manual_seed(0)
    model = build_autoencoder().to(device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    progress = Progress(folder, "autoencoder", steps, minutes, team)
    state = progress.resume()
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    mean_loss = mean_kl = 0.0
    while progress.share < 1:
        rng = np.random.default_rng([1, progress.step, team.rank])
        torch.manual_seed(progress.step * team.size + team.rank)
        crop = _crop(progress)
        pixels = _batch(images, rng, crop, min(batch, batch * 64 * 64 // crop**2) // team.size)
        pixels = pixels.to(device)
        for group in optimizer.param_groups:
            group["lr"] = progress.rate(1.5e-3)
        with torch.autocast(device, torch.bfloat16):
            posterior = model.encode(pixels).latent_dist
            made = model.decode(posterior.sample()).sample
        kl = posterior.kl().mean() / posterior.mean[0].numel()
        loss = reconstruction_loss(made.float(), pixels)
        optimizer.zero_grad()
        (loss + KL_WEIGHT * kl).backward()
        team.average_gradients(model.parameters())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        progress.advance()
        mean_loss += float(loss.detach()) / 50
        mean_kl += float(kl.detach()) / 50
        if progress.step % 50 == 0:
            progress.log(
                loss=mean_loss,
                l1=float((made.detach() - pixels).abs().mean()),
                kl=mean_kl,
                rate=optimizer.param_groups[0]["lr"],
            )
            mean_loss = mean_kl = 0.0
        if progress.step % save_every == 0 or progress.share >= 1:
            progress.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    return model.eval()


@torch.no_grad()
def normalise_latents(model: AutoencoderKL, latents: torch.Tensor) -> None:
    """Fold the latents' per-channel mean and deviation into the quantisation layers, in place.

    `latents` are means of the model's posterior, `(count, channels, height, width)`.
    """
    mean, deviation = latents.mean((0, 2, 3)), latents.std((0, 2, 3))  # (channels,)
    channels = len(mean)
    quant, post = model.quant_conv, model.post_quant_conv
    quant.weight[:channels] /= deviation[:, None, None, None]
    quant.bias[:channels] = (quant.bias[:channels] - mean) / deviation
    quant.bias[channels:] -= 2 * deviation.log()  # the second half is the log variance
    post.bias += post.weight[:, :, 0, 0] @ mean
    post.weight *= deviation[None, :, None, None]


@torch.no_grad()
def encode(model: AutoencoderKL, images: npt.NDArray[np.uint8], batch: int = 32) -> torch.Tensor:
    """Encode pictures to the means of their posterior, `(count, channels, height / 8, ...)`."""
    device = model.device
    parts = [
        model.encode(to_tensor(images[start : start + batch]).to(device)).latent_dist.mean.cpu()
        for start in range(0, len(images), batch)
    ]
    return torch.cat(parts)


def refine_decoder(
    model: AutoencoderKL,
    latents: torch.Tensor,
    images: npt.NDArray[np.uint8],
    folder: Path,
    *,
    steps: int = 3000,
    minutes: float | None = None,
    batch: int = 16,
    device: str = "cpu",
    save_every: int = 250,
    team: Team = ALONE,
) -> AutoencoderKL:
    """Train the decoder alone, in place, on the fixed latents with a little noise.

    A denoiser's latents are never quite those of a picture; a decoder that has only seen exact
    ones answers with ripples. The encoder, and so what the denoiser learned, stays as it is.
    """
    model.to(device).train()
    weights = [*model.decoder.parameters(), *model.post_quant_conv.parameters()]
    optimizer = torch.optim.AdamW(weights, lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    progress = Progress(folder, "decoder", steps, minutes, team)
    state = progress.resume()
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
    running = 0.0
    while progress.share < 1:
        rng = np.random.default_rng([2, progress.step, team.rank])
        torch.manual_seed(progress.step * team.size + team.rank)
        cells = 16 if progress.step % 4 == 3 or progress.share > 0.8 else 8
        codes, pixels = [], []
        for index in rng.integers(len(images), size=batch * 8 * 8 // cells**2 // team.size):
            y, x = rng.integers(0, 16 - cells + 1, size=2)
            codes.append(latents[index, :, y : y + cells, x : x + cells].float())
            window = slice(8 * y, 8 * (y + cells)), slice(8 * x, 8 * (x + cells))
            pixels.append(images[(index, *window)])
        clean, wanted = torch.stack(codes).to(device), to_tensor(np.stack(pixels)).to(device)
        noise = DECODER_NOISE * torch.rand(len(clean), 1, 1, 1, device=device)
        for group in optimizer.param_groups:
            group["lr"] = progress.rate(1e-3, warmup=50)
        with torch.autocast(device, torch.bfloat16):
            made = model.decode(clean + noise * torch.randn_like(clean)).sample
        loss = reconstruction_loss(made.float(), wanted)
        optimizer.zero_grad()
        loss.backward()
        team.average_gradients(weights)
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        progress.advance()
        running += float(loss.detach()) / 50
        if progress.step % 50 == 0:
            progress.log(loss=running, rate=optimizer.param_groups[0]["lr"])
            running = 0.0
        if progress.step % save_every == 0 or progress.share >= 1:
            progress.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()})
    return model.eval()
