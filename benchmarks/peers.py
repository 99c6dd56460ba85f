"""Other libraries with the same recordings, each in its own environment.

Environments are built once from the package registry, with the newest versions known to run the
peer; ``--peers`` names their folder. A peer whose installation or run fails is reported as absent,
with the reason.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.peer_probe import PEERS

ROOT = Path(__file__).parent.parent
SHARED = ("torch==2.13.0", "diffusers==0.42.1", "transformers==5.23.0", "accelerate")


@dataclass(frozen=True)
class Recipe:
    """Contents of a peer's environment: the peer, without its pins, and its dependencies."""

    peer: str
    needs: tuple[str, ...]


# daam pins diffusers 0.21.2 and transformers 4.30.2, and imports the rest of its needs lazily or
# in its evaluation alone.
RECIPES: dict[str, Recipe] = {
    "daam": Recipe("daam==0.2.0", (*SHARED, "matplotlib", "numpy", "pillow", "scipy", "spacy")),
    "attention-map-diffusers": Recipe(
        "attention-map-diffusers==1.0.0", (*SHARED, "ftfy", "protobuf", "sentencepiece")
    ),
}


def _run(command: list[str], seconds: int) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "Agg"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, timeout=seconds, capture_output=True, text=True
    )
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if line.strip()]
        raise RuntimeError(lines[-1] if lines else f"exit code {done.returncode}")
    return done.stdout


def environment(name: str, folder: Path) -> Path:
    """Return the Python of a peer's environment, building it if missing."""
    home, recipe = folder / name, RECIPES[name]
    python = home / "bin" / "python"
    ready = home / "ready"
    if not ready.exists():
        _run([sys.executable, "-m", "venv", str(home)], 300)
        pip = [str(python), "-m", "pip", "install", "--quiet"]
        _run([*pip, *recipe.needs], 1800)
        _run([*pip, "--no-deps", recipe.peer], 600)
        ready.touch()
    return python


def measure_peers(folder: Path, pairs: int, model: str = "bundled") -> dict[str, Any]:
    """Time each peer against its own plain pipeline."""
    size, steps = ("128", "20") if model == "bundled" else ("256", "1")
    found: dict[str, Any] = {}
    for name in PEERS:
        try:
            python = environment(name, folder)
            options = ["--model", model, "--size", size, "--steps", steps, "--pairs", str(pairs)]
            out = _run([str(python), "-m", "benchmarks.peer_probe", name, *options], 1800)
            found[name] = json.loads(out.strip().splitlines()[-1])
        except (OSError, RuntimeError, subprocess.TimeoutExpired, ValueError) as error:
            found[name] = {"absent": str(error).splitlines()[0]}
    return found
