"""Options shared by the examples: `--model`, `--steps`, `--guidance`, `--seed`, `--out`."""

from __future__ import annotations

import argparse
from typing import Any

import torch

from xattn.models.loading import load_pipeline

PROMPT = "a red car on a green lawn"


def arguments(about: str | None, out: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=about, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", help="a hub id or a folder; the bundled model by default")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", default=out, help="where the picture goes")
    return parser.parse_args()


def draw(options: argparse.Namespace) -> tuple[Any, dict[str, Any]]:
    """Load the pipeline, and return it with the arguments shared by all of its calls."""
    pipe = load_pipeline(options.model)  # on the accelerator, if any, and then in half precision
    pipe.set_progress_bar_config(disable=True)
    return pipe, {"num_inference_steps": options.steps, "guidance_scale": options.guidance}


def seed(options: argparse.Namespace) -> torch.Generator:
    return torch.Generator().manual_seed(options.seed)
