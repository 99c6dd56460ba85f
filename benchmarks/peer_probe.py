"""Timing of a peer against the plain pipeline, inside the peer's own environment.

``python -m benchmarks.peer_probe daam --size 128 --steps 20 --pairs 10`` prints JSON. Imports
neither xattn nor any peer but the requested one.
"""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from importlib import metadata
from typing import Any

import torch

from benchmarks import models
from benchmarks.timing import compare

PROMPT = "a red car on a green lawn"

Peer = Callable[[Any], AbstractContextManager[Any]]


def daam(pipe: Any) -> AbstractContextManager[Any]:
    """Return DAAM's own tracer, used as in its README."""
    context: AbstractContextManager[Any] = importlib.import_module("daam").trace(pipe)
    return context


def attention_map_diffusers(pipe: Any) -> AbstractContextManager[Any]:
    """Return attention-map-diffusers' capture of every step and layer, like ours."""
    module = importlib.import_module("attention_map_diffusers")
    context: AbstractContextManager[Any] = module.AttentionCapture(
        pipe, relations=["image->text"], timesteps="all", mode="exact"
    )
    return context


PEERS: dict[str, Peer] = {
    "daam": daam,
    "attention-map-diffusers": attention_map_diffusers,
}


def probe(peer: Peer, pipe: Any, size: int, steps: int, pairs: int) -> dict[str, Any]:
    """Time a peer, and report whether it changed the latents."""

    def plain() -> Any:
        generator = torch.Generator().manual_seed(0)
        options = {"height": size, "width": size, "output_type": "latent"}
        return pipe(PROMPT, num_inference_steps=steps, generator=generator, **options).images

    def traced() -> Any:
        with peer(pipe):
            return plain()

    change = float((traced() - plain()).abs().max())
    return {"largest change": change, **compare(plain, {"peer": traced}, pairs)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("--model", choices=("bundled", "sd15"), default="bundled")
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--pairs", type=int, default=10)
    options = parser.parse_args()
    pipe = models.bundled() if options.model == "bundled" else models.sd15()
    found = probe(PEERS[options.peer], pipe, options.size, options.steps, options.pairs)
    versions = {
        n: metadata.version(n) for n in (options.peer, "torch", "diffusers", "transformers")
    }
    print(json.dumps({**found, "versions": versions}))


if __name__ == "__main__":
    main()
