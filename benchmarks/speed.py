"""Cost of recording and editing in time and bytes, against the plain pipeline."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

import xattn
from benchmarks import models, textbook
from benchmarks.timing import Call, compare

PROMPT = "a red car on a green lawn"
OTHER = "a blue car on a green lawn"
LONGER = "a red car on a green lawn at night"

CONTROL = "the plain call itself"  # shows the machine's own noise around 1

Options = dict[str, Any]

RECORDINGS: dict[str, Options] = {
    "everything averaged": {"keep": ()},
    "each step and layer": {},
    "each step, layer and head": {"keep": ("step", "layer", "head")},
    "one word": {"words": "car"},
    "to disk": {"to": "folder"},
}

EDITS: dict[str, Any] = {
    "replace": xattn.Replace("red", "blue"),
    "refine": xattn.Refine(LONGER),
    "reweight": xattn.Reweight({"red": 2.0}),
    "replace, LocalBlend": [xattn.Replace("red", "blue"), xattn.LocalBlend("car")],
}


class Drawing:
    """Calls of one pipeline at one size."""

    def __init__(self, pipe: Any, size: int, steps: int) -> None:
        self.pipe = pipe
        self.options: Options = {"height": size, "width": size, "output_type": "latent"}
        self.steps = steps

    def __call__(self, prompts: str | list[str] = PROMPT, steps: int | None = None) -> Any:
        """Draw prompts, each from its own generator."""
        count = 1 if isinstance(prompts, str) else len(prompts)
        generators = [torch.Generator().manual_seed(0) for _ in range(count)]
        steps = steps or self.steps
        return self.pipe(
            prompts, generator=generators, num_inference_steps=steps, **self.options
        ).images

    def plain(self, prompts: str | list[str] = PROMPT, steps: int | None = None) -> Call:
        """Return the plain call."""
        return lambda: self(prompts, steps)

    def recorded(
        self, options: Options, prompts: str | list[str] = PROMPT, steps: int | None = None
    ) -> Call:
        """Return the call inside ``xattn.record``."""

        def call() -> None:
            with tempfile.TemporaryDirectory() as folder:
                to = {"to": Path(folder)} if options.get("to") == "folder" else {}
                with xattn.record(self.pipe, **{**options, **to}):
                    self(prompts, steps)

        return call

    def edited(self, edits: Sequence[Any], trace: bool = False) -> Call:
        """Return a call of ``xattn.edit``."""

        def call() -> None:
            generator = torch.Generator().manual_seed(0)
            options = {**self.options, "num_inference_steps": self.steps}
            xattn.edit(self.pipe, PROMPT, *edits, generator=generator, trace=trace, **options)

        return call

    def textbook_recorded(self) -> None:
        """Draw under the textbook recorder."""
        with textbook.recording(self.pipe):
            self()

    def textbook_edited(self) -> None:
        """Draw a replacement by the textbook implementation."""
        with textbook.replacing(self.pipe, self.steps):
            self([PROMPT, OTHER])


def check(draw: Drawing) -> dict[str, Any]:
    """Check what is timed: the image unchanged, and the textbook's edit equal to ours."""
    plain = draw()
    with xattn.record(draw.pipe):
        same = torch.equal(plain, draw())
    with textbook.recording(draw.pipe):
        book = float((plain - draw()).abs().max())
    return {"recording leaves the latents bit for bit": same, "textbook's largest change": book}


def measure_recording(draw: Drawing, pairs: int, names: Sequence[str] | None = None) -> Any:
    """Time ways of recording, and the textbook's, against the plain pipeline."""
    chosen = names or list(RECORDINGS)
    calls = {name: draw.recorded(RECORDINGS[name]) for name in chosen}
    calls["textbook recorder"] = draw.textbook_recorded
    calls[CONTROL] = draw.plain()
    return compare(draw.plain(), calls, pairs)


def measure_growth(draw: Drawing, pairs: int) -> dict[str, Any]:
    """Time and weigh recording each step and layer at more steps, prompts and pixels."""
    found: dict[str, Any] = {"steps": {}, "prompts": {}, "pixels": {}}
    for steps in (5, 20, 50):
        found["steps"][steps] = _grown(draw, pairs, PROMPT, steps)
    for count in (1, 2, 4):
        prompts = [PROMPT, OTHER, LONGER, "a boat"][:count]
        found["prompts"][count] = _grown(draw, pairs, prompts, draw.steps)
    side = draw.options["height"]
    for size in (side, 2 * side, 4 * side):
        larger = Drawing(draw.pipe, size, 2)
        found["pixels"][f"{size} x {size}"] = _grown(larger, pairs, PROMPT, 2)
    return found


def _grown(draw: Drawing, pairs: int, prompts: str | list[str], steps: int) -> dict[str, Any]:
    cost = compare(draw.plain(prompts, steps), {"ours": draw.recorded({}, prompts, steps)}, pairs)
    with xattn.record(draw.pipe) as trace:
        draw(prompts, steps)
    return {**cost, "kept": trace.nbytes, "implied": implied(trace.run)}


def measure_editing(draw: Drawing, pairs: int, names: Sequence[str] | None = None) -> Any:
    """Time edits against a plain batch of a source and one other prompt."""
    calls: dict[str, Call] = {}
    for name in names or list(EDITS):
        calls[name] = draw.edited([EDITS[name]])
    calls["replace, with a trace (the default)"] = draw.edited([EDITS["replace"]], trace=True)
    calls["textbook prompt-to-prompt"] = draw.textbook_edited
    calls[CONTROL] = draw.plain([PROMPT, OTHER])
    return compare(draw.plain([PROMPT, OTHER]), calls, pairs)


def implied(run: Any) -> int:
    """Return the bytes implied by a run's options, from the model's layers alone."""
    steps = len(run.timesteps) if "step" in run.keep else 1
    numbers = 0
    for layer in run.layers:
        heads = layer.heads if "head" in run.keep else 1
        numbers += steps * len(run.prompt_of) * heads * len(run.positions) * layer.area
    return 2 * numbers  # float16


def measure_memory(draw: Drawing) -> dict[str, Any]:
    """Return the bytes recordings keep, beside what their options imply."""
    found: dict[str, Any] = {}
    for name, options in RECORDINGS.items():
        with tempfile.TemporaryDirectory() as folder:
            to = {"to": Path(folder)} if options.get("to") == "folder" else {}
            with xattn.record(draw.pipe, **{**options, **to}) as trace:
                draw()
            kept = trace.nbytes
            if to:
                kept = sum(f.stat().st_size for f in Path(folder).rglob("*") if f.is_file())
            found[name] = {"kept": kept, "implied": implied(trace.run)}
    with textbook.recording(draw.pipe) as maps:
        draw()
        kept = sum(m.numel() * m.element_size() for m in maps)
    found["textbook recorder"] = {"kept": kept, "implied": found["each step and layer"]["implied"]}
    return found


def measure_sdxl() -> dict[str, Any]:
    """Time one call of a UNet of SDXL's shape, in bfloat16, at 512 px."""
    unet = models.unet(models.SDXL, torch.bfloat16)
    random = torch.Generator().manual_seed(0)
    latents = torch.randn(2, 4, 64, 64, generator=random).bfloat16()
    text = torch.randn(2, 77, 2048, generator=random).bfloat16()
    added = {
        "text_embeds": torch.randn(2, 1280, generator=random).bfloat16(),
        "time_ids": torch.zeros(2, 6).bfloat16(),
    }

    @torch.no_grad()
    def call() -> Any:
        return unet(latents, 500, text, added_cond_kwargs=added).sample

    def recorded() -> Any:
        with xattn.record(xattn.Loop(unet, tokenizer=models.words(), prompt=PROMPT)):
            return call()

    same = torch.equal(call(), recorded())
    return {"unchanged": same, **compare(call, {"each step and layer": recorded}, 3)}


def measure_bundled(quick: bool) -> Iterator[dict[str, Any]]:
    """Time everything on the bundled model."""
    toy = Drawing(models.bundled(), 128, 20)
    pairs = 2 if quick else 16
    found: dict[str, Any] = {"bundled": {"checks": check(toy)}}
    found["bundled"]["recording"] = measure_recording(toy, pairs)
    found["bundled"]["editing"] = measure_editing(toy, pairs)
    yield found
    if not quick:
        found["bundled"]["growth"] = measure_growth(toy, 6)
        yield found


def measure_sd15(quick: bool) -> Iterator[dict[str, Any]]:
    """Time a UNet of Stable Diffusion 1.5's shape: one step, or ten with CUDA."""
    pipe = models.sd15()
    small = Drawing(pipe, 256, 1)
    if quick:
        calls = {"each step and layer": small.recorded({}), CONTROL: small.plain()}
        yield {"SD 1.5, 256 px": {"recording": compare(small.plain(), calls, 1)}}
        return
    names = ("everything averaged", "each step and layer")
    found: dict[str, Any] = {"SD 1.5, 256 px": {"checks": check(small)}}
    found["SD 1.5, 256 px"]["recording"] = measure_recording(small, 6, names)
    yield found
    found["SD 1.5, 256 px"]["editing"] = measure_editing(small, 4, ("replace",))
    yield found
    large = Drawing(pipe, 512, 1)
    call = large.recorded({})
    timed = compare(large.plain(), {"each step and layer": call}, 4)
    found["SD 1.5, 512 px"] = {"recording": timed}
    yield found
    if torch.cuda.is_available():
        pipe = pipe.to("cuda", torch.float16)
        for size in (512, 1024):
            fast = Drawing(pipe, size, 10)
            found[f"SD 1.5, {size} px, float16, {torch.cuda.get_device_name()}"] = {
                "checks": check(fast),
                "recording": measure_recording(fast, 10),
                "editing": measure_editing(fast, 10),
            }
            yield found


def measure_sdxl_shape(quick: bool) -> Iterator[dict[str, Any]]:
    """Time a call of a UNet of SDXL's shape."""
    yield {"SDXL, 512 px, bfloat16": {"recording": measure_sdxl()}}


MODELS = {"bundled": measure_bundled, "sd15": measure_sd15, "sdxl": measure_sdxl_shape}


def measure(quick: bool, chosen: Sequence[str]) -> Iterator[dict[str, Any]]:
    """Time models, yielding the results so far after each part."""
    done: dict[str, Any] = {}
    for name in chosen:
        for found in MODELS[name](quick):
            yield {**done, **found}
        done |= found


def measure_bytes() -> dict[str, Any]:
    """Return the bytes of recordings of the bundled model at 20 steps."""
    return measure_memory(Drawing(models.bundled(), 128, 20))
