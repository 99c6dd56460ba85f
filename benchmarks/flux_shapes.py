"""What recording costs at FLUX.1's shapes: the attention of a double and of a single block.

``python -m benchmarks.flux_shapes`` writes ``flux-shapes.json`` and ``.md`` to
``benchmarks/results``. 4096 image and 512 text positions, 24 heads of 128 channels, 20 words'
tokens kept. The blocks' projections are narrow (64 channels in place of 3072) and their MLPs are
left out, so what is timed is nearly the attention call alone: within whole blocks the same
recording is a smaller share.

``--peer`` names a folder with attention-map-diffusers (``pip install --no-deps --target FOLDER
attention-map-diffusers==1.0.0``); its capture keeps the same tokens of the double block. It has
no maps of a single block, which it runs as it is.
"""

from __future__ import annotations

import argparse
import importlib
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from diffusers.models.embeddings import FluxPosEmbed
from diffusers.models.transformers.transformer_flux import FluxAttention, FluxAttnProcessor
from torch import Tensor
from torch.nn import functional as F

from benchmarks import machine
from benchmarks.page import table
from benchmarks.tally import RESULTS
from benchmarks.timing import compare
from xattn.processors.call import Place
from xattn.processors.chain import Chain
from xattn.processors.install import install, remove
from xattn.processors.recording import Recording

SIDE, TEXT, HEADS, CHANNELS, KEPT, WIDTH = 64, 512, 24, 128, 20, 64
IMAGE = SIDE * SIDE
PLACE = Place(slice(TEXT, TEXT + IMAGE), slice(0, TEXT), slice(TEXT, TEXT + IMAGE))


class Attentions:
    """The attention of a double and of a single block, and the inputs of one call."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        shared: dict[str, Any] = {"dim_head": CHANNELS, "heads": HEADS, "bias": True}
        shared["processor"] = FluxAttnProcessor()
        self.double = FluxAttention(
            WIDTH, added_kv_proj_dim=WIDTH, context_pre_only=False, **shared
        ).eval()
        self.single = FluxAttention(WIDTH, pre_only=True, **shared).eval()
        grid = torch.cartesian_prod(torch.arange(1), torch.arange(SIDE), torch.arange(SIDE))
        ids = torch.cat([torch.zeros(TEXT, 3), grid])
        self.rotary = FluxPosEmbed(theta=10000, axes_dim=[16, 56, 56])(ids)
        self.image = torch.randn(1, IMAGE, WIDTH)
        self.text = torch.randn(1, TEXT, WIDTH)

    def call(self) -> tuple[Tensor, Tensor]:
        """Return both outputs."""
        with torch.no_grad():
            both = self.double(self.image, self.text, image_rotary_emb=self.rotary)
            whole = torch.cat([self.text, self.image], 1)
            return both[0], self.single(whole, image_rotary_emb=self.rotary)


def recorded(made: Attentions) -> Callable[[], Any]:
    """Return the call with both layers recorded, the maps kept in float16 as by ``record``."""
    handlers, chains = [], []
    for name, module in (("double", made.double), ("single", made.single)):
        handler = Recording(name, HEADS)
        handler.rows, handler.batch, handler.images = (slice(0, 1),), 1, 1
        handler.tokens = slice(0, KEPT)
        handler.buffer = torch.zeros(1, 1, KEPT, SIDE, SIDE)
        chain = Chain(name, HEADS, [handler])
        chain.locate = lambda queries, keys: (PLACE,)
        handlers.append(handler)
        chains.append((module, chain))

    def call() -> list[Tensor]:
        for (module, chain), handler in zip(chains, handlers, strict=True):
            install(module, chain)
            handler.live = True
            chain.wake()
        try:
            outputs = made.call()
        finally:
            for module, chain in chains:
                remove(module, chain)
        kept = [handler.buffer.half() for handler in handlers if handler.buffer is not None]
        return [*outputs, *kept]

    return call


class Explicit:
    """A processor that writes out the softmax, a head at a time, and keeps its maps."""

    def __init__(self) -> None:
        self.inner = FluxAttnProcessor()
        self.maps = torch.zeros(KEPT, IMAGE)

    def __call__(
        self,
        attn: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> Any:
        """Run FLUX's processor with this attention in place of the fused one."""
        fused = F.scaled_dot_product_attention
        F.scaled_dot_product_attention = self.attend  # type: ignore[assignment]
        try:
            return self.inner(
                attn, hidden_states, encoder_hidden_states, attention_mask, image_rotary_emb
            )
        finally:
            F.scaled_dot_product_attention = fused

    def attend(self, query: Tensor, key: Tensor, value: Tensor, **_: Any) -> Tensor:
        """Return softmax(query keyᵀ) value, (1, heads, queries, channels)."""
        outputs, self.maps = [], torch.zeros(KEPT, IMAGE)
        for head in range(HEADS):
            logits = query[0, head] @ key[0, head].T * CHANNELS**-0.5
            probs = logits.softmax(-1)  # (queries, keys)
            outputs.append(probs @ value[0, head])
            self.maps += probs[TEXT:, :KEPT].T / HEADS
        return torch.stack(outputs)[None]


def explicit(made: Attentions) -> Callable[[], Any]:
    """Return the call with every softmax written out."""
    return replaced(made, {"double": Explicit(), "single": Explicit()})


def replaced(made: Attentions, processors: dict[str, Any]) -> Callable[[], Any]:
    """Return the call with other processors in some layers."""

    def call() -> Any:
        before = {name: getattr(made, name).processor for name in processors}
        for name, processor in processors.items():
            getattr(made, name).processor = processor
        try:
            return made.call()
        finally:
            for name, processor in before.items():
                getattr(made, name).processor = processor

    return call


def peer(made: Attentions, folder: Path) -> Callable[[], Any]:
    """Return the call with attention-map-diffusers' capture of the same tokens."""
    sys.path.insert(0, str(folder))
    capture = importlib.import_module("attention_map_diffusers.processors.capture")
    config = importlib.import_module("attention_map_diffusers.capture.config")
    collector = importlib.import_module("attention_map_diffusers.capture.collector")
    how = config.CaptureConfig(
        relations=("image->text",), timesteps="all", mode="exact", tokens=list(range(KEPT))
    )
    gathered = collector.AttentionCollector(how, metadata={})
    found = capture.CaptureFluxAttnProcessor2_0(gathered, "double")
    return replaced(made, {"double": found})


def check(made: Attentions) -> float:
    """Return how far the kept maps are from those of the written-out softmax.

    Raises:
        RuntimeError: recording changed an output.
    """
    plain, (*outputs, double, single) = made.call(), recorded(made)()
    if not all(torch.equal(one, two) for one, two in zip(plain, outputs, strict=True)):
        raise RuntimeError("recording changed the output")
    written = {"double": Explicit(), "single": Explicit()}
    replaced(made, written)()
    pairs = ((double, written["double"].maps), (single, written["single"].maps))
    return max(float((kept.float().flatten() - m.flatten()).abs().max()) for kept, m in pairs)


def measure(pairs: int, folder: Path | None) -> dict[str, Any]:
    """Time the ways of keeping the same maps."""
    made = Attentions()
    ways = {"xattn": recorded(made), "softmax written out": explicit(made)}
    absent = ""
    if folder is not None:
        try:
            ways["attention-map-diffusers"] = peer(made, folder)
        except ImportError as error:
            absent = str(error)
    apart = check(made)
    return {**compare(made.call, ways, pairs), "apart": apart, "absent": absent}


def markdown(found: dict[str, Any]) -> str:
    """Return the page of the figures."""
    result = found["result"]
    rows = [
        [name, *(f"{r[k]['median']:.3f} ({r[k]['low']:.3f} to {r[k]['high']:.3f})" for k in KINDS)]
        for name, r in result["ratios"].items()
    ]
    parts = [
        "# Recording at FLUX.1's shapes",
        f"`python -m benchmarks.flux_shapes`: {IMAGE} image and {TEXT} text positions, {HEADS} "
        f"heads of {CHANNELS}, {KEPT} tokens kept in float16; the attention of a double and a "
        "single block, with narrow projections and no MLP, on one thread. Times as shares of the "
        f"plain call's ({result['plain']['cpu']:.2f} s of CPU): medians of "
        f"{next(iter(result['ratios'].values()))['cpu']['pairs']} interleaved pairs, with "
        "quartiles. attention-map-diffusers keeps maps of the double block alone.",
        table(("way", "CPU time", "wall time"), rows),
        f"The maps are those of the written-out softmax to {result['apart']:.1e}, most of it "
        "float16's rounding; the outputs are the plain ones, bit for bit. Kept: "
        f"{2 * 2 * KEPT * IMAGE / 2**20:.2f} MB for both layers and a step.",
        f"*{machine.line(found['machine'])}*",
    ]
    return "\n\n".join(parts) + "\n"


KINDS = ("cpu", "wall")


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, and write the files."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.flux_shapes")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--peer", type=Path, default=None)
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    found = {"machine": machine.facts(), "result": measure(options.pairs, options.peer)}
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "flux-shapes.json").write_text(json.dumps(found, indent=1) + "\n", "utf-8")
    (options.out / "flux-shapes.md").write_text(markdown(found), "utf-8")
    print(markdown(found))


if __name__ == "__main__":
    main()
