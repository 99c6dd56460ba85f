"""Trains Toyland's models: `python -m xattn.toyland.training --model unet|contextual|mmdit`.

The UNet's stages are: draw the scenes, train the autoencoder, encode the scenes, train the
denoiser with its text encoder, fit the decoder again to slightly noisy latents, and write the
pipeline. The other models take the bundled autoencoder and train on easy and hard scenes in turn;
the contextual one starts from the bundled UNet unless told to start `--from-nothing`, and the
joint-attention one learns from both UNets' predictions. Each stage keeps what it made in the work
folder and goes on from there when started again.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from diffusers import AutoencoderKL

from xattn.devices import usual_device
from xattn.toyland.bundle import MODELS, folder_of, shared_autoencoder

from .autoencoder import encode, normalise_latents, refine_decoder, train_autoencoder
from .dataset import dataset
from .denoiser import Denoiser
from .loop import CAPTION_DROPOUT, Examples, Trainable, tokenize, train
from .recipes import (
    RECIPES,
    Recipe,
    go_on_from_bundled,
    prompt_tokenizer,
    start_from_bundled,
)
from .sheets import HARD_SHEET, SHEET, plot_losses, tile
from .teacher import Teacher
from .team import Team
from .transformer import Transformer


def encoded(
    folder: Path, name: str, autoencoder: AutoencoderKL, images: npt.NDArray[np.uint8], team: Team
) -> torch.Tensor:
    """Encode pictures once, `(count, 8, 16, 16)` in half precision; each process its part."""
    paths = [folder / f"{name}-{len(images)}-{rank}-of-{team.size}.pt" for rank in range(team.size)]
    if not all(path.exists() for path in paths):
        start, end = (len(images) * rank // team.size for rank in (team.rank, team.rank + 1))
        torch.save(encode(autoencoder, images[start:end]).half(), paths[team.rank])
        team.wait()
    return torch.cat([torch.load(path, weights_only=True) for path in paths])


def normalised(folder: Path, autoencoder: AutoencoderKL, images: npt.NDArray[np.uint8]) -> None:
    """Bring a freshly trained autoencoder to latents of unit variance, in place."""
    path = folder / f"normalised-{len(images)}.pt"
    if path.exists():
        autoencoder.load_state_dict(torch.load(path, weights_only=True))
        return
    normalise_latents(autoencoder, encode(autoencoder, images[:1000]))
    torch.save(autoencoder.state_dict(), path)


def write(
    folder: Path, target: Path, recipe: Recipe, autoencoder: AutoencoderKL, model: Trainable
) -> None:
    """Write the pipeline in half precision, and the loss curves beside it.

    In the bundle only the UNet's folder has the autoencoder.
    """
    for part in (autoencoder, model):
        torch.nn.Module.to(part, device="cpu", dtype=torch.float16)  # diffusers' own `to` warns
    recipe.assemble(autoencoder, model).save_pretrained(target)
    if target in (folder_of("contextual"), folder_of("mmdit")):
        shutil.rmtree(target / "vae")
    for path in target.rglob("*.safetensors"):
        path.chmod(0o644)
    plot_losses(folder, target / "losses.png")


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m xattn.toyland.training", description=__doc__)
    parser.add_argument("--model", choices=MODELS, default="unet")
    parser.add_argument(
        "--from-nothing", action="store_true", help="contextual: not from the bundled UNet"
    )
    parser.add_argument(
        "--go-on", action="store_true", help="train the weights bundled under this name further"
    )
    parser.add_argument("--work", type=Path, help="work folder; .work/toyland/MODEL by default")
    parser.add_argument("--out", type=Path, help="where the pipeline goes; the bundle by default")
    parser.add_argument("--scenes", type=int, default=24000)
    parser.add_argument("--autoencoder-steps", type=int, default=6000)
    parser.add_argument("--autoencoder-minutes", type=float, help="end sooner, by the clock")
    parser.add_argument("--decoder-steps", type=int, default=3000)
    parser.add_argument("--decoder-minutes", type=float, help="end sooner, by the clock")
    parser.add_argument("--steps", type=int, help="steps of the denoiser; the recipe's by default")
    parser.add_argument("--minutes", type=float, help="end the denoiser sooner, by the clock")
    parser.add_argument("--batch", type=int, help="batch of the denoiser; the recipe's by default")
    parser.add_argument(
        "--seed", type=int, default=0, help="of scenes' order and noise; another one to --go-on"
    )
    parser.add_argument(
        "--compile", action="store_true", help="mmdit: compile its steps; needs a C++ compiler"
    )
    parser.add_argument("--save-every", type=int, default=250)
    parser.add_argument("--sheet-steps", type=int, default=20, help="steps of each sheet")
    parser.add_argument("--processes", type=int, default=1, help="of one thread each, on a CPU")
    parser.add_argument("--device", help="cpu or cuda; accelerate's choice by default")
    options = parser.parse_args(arguments)
    options.work = options.work or Path(".work/toyland") / options.model
    options.out = options.out or folder_of(options.model)
    return options


def autoencoder_of(
    options: argparse.Namespace, images: npt.NDArray[np.uint8], device: str, team: Team
) -> AutoencoderKL:
    """Train the autoencoder, or load the bundled one where the recipe says so."""
    if not RECIPES[options.model].train_autoencoder:
        return shared_autoencoder(local_files_only=True).float().to(device)
    autoencoder = train_autoencoder(
        images,
        options.work,
        steps=options.autoencoder_steps,
        minutes=options.autoencoder_minutes,
        device=device,
        save_every=options.save_every,
        team=team,
    )
    normalised(options.work, autoencoder, images)
    return autoencoder


def examples_of(recipe: Recipe, latents: torch.Tensor, captions: Sequence[str]) -> Examples:
    """Put latents and captions together as the model reads them."""
    tokenizer, length = prompt_tokenizer(), recipe.length
    ids, empty = tokenize(tokenizer, captions, length), tokenize(tokenizer, [""], length)
    hard = torch.arange(len(ids)) % 2 == 1 if recipe.mixed else torch.zeros(len(ids)).bool()
    # a student is taught each scene without its caption as well
    dropout = 0.0 if recipe.taught else CAPTION_DROPOUT
    return Examples(latents, ids, hard, empty, dropout)


def mixes_precision(device: str) -> bool:
    """Whether bfloat16 is worth it: on a CPU only where its instructions know the format."""
    return device != "cpu" or torch.backends.cpu.get_cpu_capability() not in ("DEFAULT", "AVX2")


def draws_sheets(
    options: argparse.Namespace, recipe: Recipe, autoencoder: AutoencoderKL
) -> Callable[[Trainable, int], None]:
    """Return what draws a sheet of pictures into the work folder, of a model at a step."""
    captions = SHEET + HARD_SHEET if recipe.mixed else SHEET

    def look(model: Trainable, step: int) -> None:
        pipe = recipe.assemble(autoencoder, model)
        pipe.set_progress_bar_config(disable=True)
        generators = [torch.Generator().manual_seed(n) for n in range(len(captions))]
        drawn = pipe(
            list(captions), num_inference_steps=options.sheet_steps, generator=generators
        ).images
        tile(drawn, 4).save(options.work / f"sheet-{step:05d}.png")

    return look


def begun(options: argparse.Namespace, recipe: Recipe, device: str) -> Trainable:
    """Build the model that the options ask for, with the weights that it starts from."""
    torch.manual_seed(0)
    model = recipe.build()
    if options.go_on:
        go_on_from_bundled(model, options.model)
    elif options.model == "contextual" and not options.from_nothing:
        assert isinstance(model, Denoiser)
        start_from_bundled(model)
    if recipe.taught:
        assert isinstance(model, Transformer)
        model.compiles = options.compile
        model.teacher = Teacher(device, model.empty, prompt_tokenizer().pad_token_id)
    return model


def run(options: argparse.Namespace, team: Team) -> None:
    """Run all stages, each from where it was left, as one of a team."""
    torch.set_flush_denormal(True)
    recipe = RECIPES[options.model]
    device = options.device or usual_device().type
    images, captions = dataset(options.work, options.scenes, mixed=recipe.mixed)
    autoencoder = autoencoder_of(options, images, device, team)
    latents = encoded(options.work, "latents", autoencoder, images, team)
    model = begun(options, recipe, device)
    train(
        model,
        "denoiser",
        examples_of(recipe, latents, captions),
        options.work,
        replace(
            recipe.schedule,
            steps=options.steps or recipe.schedule.steps,
            minutes=options.minutes,
            batch=options.batch or recipe.schedule.batch,
            save_every=options.save_every,
            seed=options.seed,
        ),
        device=device,
        autocast=mixes_precision(device),
        look=draws_sheets(options, recipe, autoencoder),
        team=team,
    )
    if recipe.train_autoencoder:
        refine_decoder(
            autoencoder,
            latents,
            images,
            options.work,
            steps=options.decoder_steps,
            minutes=options.decoder_minutes,
            device=device,
            save_every=options.save_every,
            team=team,
        )
    if team.leads:
        write(options.work, options.out, recipe, autoencoder, model)


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
    dataset(options.work, options.scenes, mixed=RECIPES[options.model].mixed)
    with tempfile.TemporaryDirectory() as folder:
        spawn: Callable[..., None] = torch.multiprocessing.spawn  # type: ignore[attr-defined]
        spawn(_member, (options, str(Path(folder) / "meeting")), nprocs=options.processes)
