"""Trains Toyland from nothing: `python -m xattn.toyland.train`.

The stages are: draw the scenes, train the autoencoder, encode the scenes, train the denoiser
with its text encoder, fit the decoder again to slightly noisy latents, and write the pipeline.
Each stage keeps what it made in the work folder and goes on from there when started again.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL
from PIL import Image

from xattn.devices import usual_device

from .autoencoder import encode, normalise_latents, refine_decoder, train_autoencoder
from .bundle import WEIGHTS, assemble
from .dataset import dataset
from .denoiser import Denoiser, train_denoiser
from .team import Team
from .vocabulary import build_tokenizer

SHEET = (
    "a red car on a green lawn",
    "a red car on a green lawn at night",
    "a blue car on a green lawn",
    "a white boat and a purple star on a blue sea",
    "a small yellow star on the left of a black road",
    "a large orange tree on a yellow beach",
    "a black house and a pink fish on a white beach",
    "a blue mug on a grey road",
    "a car on a green lawn",
    "a green boat on a blue sea at night",
    "a yellow house on the right of a green lawn",
    "a purple tree and a white mug on a yellow beach",
)
"""What the training draws now and then, to be looked at."""


def tile(images: Sequence[Image.Image], columns: int, gap: int = 4) -> Image.Image:
    """Lay pictures of one size out in rows."""
    width, height = images[0].size
    rows = -(-len(images) // columns)
    sheet = Image.new("RGB", (columns * (width + gap) - gap, rows * (height + gap) - gap), "white")
    for index, image in enumerate(images):
        sheet.paste(image, (index % columns * (width + gap), index // columns * (height + gap)))
    return sheet


def encoded(
    folder: Path, autoencoder: AutoencoderKL, images: npt.NDArray[np.uint8], team: Team
) -> torch.Tensor:
    """Encode the scenes once, and normalise the autoencoder (in place) to unit latents."""
    paths = [
        folder / f"latents-{len(images)}-{rank}-of-{team.size}.pt" for rank in range(team.size)
    ]
    if not all(path.exists() for path in paths):
        normalise_latents(autoencoder, encode(autoencoder, images[:1000]))
        start, end = (len(images) * rank // team.size for rank in (team.rank, team.rank + 1))
        latents = encode(autoencoder, images[start:end]).half()
        team.wait()
        saved = {"latents": latents, "autoencoder": autoencoder.state_dict()}
        torch.save(saved, paths[team.rank])
        team.wait()
    parts = [torch.load(path, weights_only=True) for path in paths]
    autoencoder.load_state_dict(parts[0]["autoencoder"])
    return torch.cat([part["latents"] for part in parts])


def plot_losses(folder: Path, target: Path) -> None:
    """Draw the loss curves of both trainings from their logs."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
    for axis, name in zip(axes, ("autoencoder", "denoiser"), strict=True):
        path = folder / f"{name}.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        records = {record["step"]: record["loss"] for record in map(json.loads, lines)}
        axis.plot(list(records), list(records.values()), linewidth=1)
        axis.set(title=name, xlabel="step", ylabel="loss", yscale="log")
        axis.grid(alpha=0.3)
    figure.savefig(target, dpi=100)
    plt.close(figure)


def write(folder: Path, target: Path, autoencoder: AutoencoderKL, denoiser: Denoiser) -> None:
    """Write the pipeline in half precision, and the loss curves beside it."""
    for part in (autoencoder, denoiser):
        torch.nn.Module.to(part, device="cpu", dtype=torch.float16)  # diffusers' own `to` warns
    assemble(autoencoder, denoiser, build_tokenizer()).save_pretrained(target)
    for path in target.rglob("*.safetensors"):
        path.chmod(0o644)
    plot_losses(folder, target / "losses.png")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m xattn.toyland.train", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path(".work/toyland"), help="work folder")
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="where the pipeline goes")
    parser.add_argument("--scenes", type=int, default=24000)
    parser.add_argument("--autoencoder-steps", type=int, default=6000)
    parser.add_argument("--autoencoder-minutes", type=float, help="end sooner, by the clock")
    parser.add_argument("--decoder-steps", type=int, default=3000)
    parser.add_argument("--decoder-minutes", type=float, help="end sooner, by the clock")
    parser.add_argument("--steps", type=int, default=8000, help="steps of the denoiser")
    parser.add_argument("--minutes", type=float, help="end the denoiser sooner, by the clock")
    parser.add_argument("--batch", type=int, default=32, help="batch of the denoiser")
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--sheet-steps", type=int, default=20, help="steps of each sheet")
    parser.add_argument("--processes", type=int, default=1, help="of one thread each, on a CPU")
    parser.add_argument("--device", help="cpu or cuda; accelerate's choice by default")
    return parser.parse_args(arguments)


def run(options: argparse.Namespace, team: Team) -> None:
    """Run all stages, each from where it was left, as one of a team."""
    torch.set_flush_denormal(True)
    folder: Path = options.work
    device = options.device or usual_device().type
    shared = {"device": device, "save_every": options.save_every, "team": team}
    images, captions = dataset(folder, options.scenes)
    autoencoder = train_autoencoder(
        images,
        folder,
        steps=options.autoencoder_steps,
        minutes=options.autoencoder_minutes,
        **shared,
    )
    latents = encoded(folder, autoencoder, images, team)

    def look(model: Denoiser, step: int) -> None:
        model.eval()
        pipe = assemble(autoencoder, model, build_tokenizer())
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(n) for n in range(len(SHEET))]
        drawn = pipe(
            list(SHEET), num_inference_steps=options.sheet_steps, generator=generators
        ).images
        tile(drawn, 4).save(folder / f"sheet-{step:05d}.png")
        model.train()

    denoiser = train_denoiser(
        latents,
        captions,
        build_tokenizer(),
        folder,
        steps=options.steps,
        minutes=options.minutes,
        batch=options.batch,
        look=look,
        **shared,
    )
    refine_decoder(
        autoencoder,
        latents,
        images,
        folder,
        steps=options.decoder_steps,
        minutes=options.decoder_minutes,
        **shared,
    )
    if team.leads:
        write(folder, options.out, autoencoder, denoiser)


def _member(rank: int, options: argparse.Namespace, meeting: str) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=options.processes
    )
    try:
        run(options, Team(rank, options.processes))
    finally:
        torch.distributed.destroy_process_group()


def main(arguments: Sequence[str] | None = None) -> None:
    """Train in one process, or in several."""
    options = parse(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    if options.processes == 1:
        run(options, Team())
        return
    dataset(options.work, options.scenes)
    with tempfile.TemporaryDirectory() as folder:
        spawn: Callable[..., None] = torch.multiprocessing.spawn  # type: ignore[attr-defined]
        spawn(_member, (options, str(Path(folder) / "meeting")), nprocs=options.processes)


if __name__ == "__main__":
    main()
