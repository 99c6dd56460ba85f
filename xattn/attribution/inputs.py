"""``attribute(..., of="inputs")``: which of a pipeline's inputs decided what is drawn.

An absent input is one that a user leaves out: an empty prompt, no negative prompt, a control map
or an image prompt at scale 0, a grey initial image, a LoRA switched off, another seed. The picture
is really drawn for each set of inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from xattn.api.arguments import options_of
from xattn.attribution.store import Answers, bits
from xattn.models.sizes import denoiser_of

GREY = (128, 128, 128)
Options = dict[str, Any]


@dataclass(frozen=True)
class Input:
    """One input of a pipeline's call.

    Attributes:
        name: what it is.
        without: the options of a call without it, made of those with it.
        context: what to switch off in the pipeline for a call without it.
    """

    name: str
    without: Callable[[Options], Options] = dict
    context: Callable[[], AbstractContextManager[Any]] = nullcontext


def inputs_of(pipe: Any, prompt: str, options: Mapping[str, Any]) -> tuple[Input, ...]:
    """Return the inputs that a call has.

    Args:
        pipe: the pipeline.
        prompt: the text.
        options: the call's own; a ``generator`` is the seed.
    """
    found = [Input("prompt", _changed(prompt=""))] if prompt.strip() else []
    if options.get("negative_prompt"):
        found.append(Input("negative prompt", _changed(negative_prompt=None)))
    if getattr(pipe, "controlnet", None) is not None:
        found.append(Input("control map", _changed(controlnet_conditioning_scale=0.0)))
    if "strength" in options_of(type(pipe)) and options.get("image") is not None:
        found.append(Input("initial image", _greyed))
    if any(
        options.get(name) is not None for name in ("ip_adapter_image", "ip_adapter_image_embeds")
    ):
        found.append(Input("image prompt", context=lambda: _unscaled(denoiser_of(pipe))))
    if getattr(denoiser_of(pipe), "_hf_peft_config_loaded", False):
        found.append(Input("LoRA", context=lambda: _unadapted(denoiser_of(pipe))))
    return (*found, Input("seed", _reseeded))


def _changed(**values: Any) -> Callable[[Options], Options]:
    return lambda options: {**options, **values}


def _greyed(options: Options) -> Options:
    given = options["image"]
    size = given.size if isinstance(given, Image.Image) else None
    if size is None:
        raise ValueError("of='inputs' needs image= as a PIL picture, to put grey in its place")
    return {**options, "image": Image.new("RGB", size, GREY)}


def _reseeded(options: Options) -> Options:
    generator = options["generator"]
    other = torch.Generator(generator.device).manual_seed(generator.initial_seed() + 1)
    return {**options, "generator": other}


@contextmanager
def _unscaled(denoiser: Any) -> Iterator[None]:
    """Set the scale of every IP-Adapter to 0."""
    found = [
        p for p in denoiser.attn_processors.values() if isinstance(getattr(p, "scale", None), list)
    ]
    before = [list(each.scale) for each in found]
    try:
        for each in found:
            each.scale = [0.0] * len(each.scale)
        yield
    finally:
        for each, scale in zip(found, before, strict=True):
            each.scale = scale


@contextmanager
def _unadapted(denoiser: Any) -> Iterator[None]:
    denoiser.disable_adapters()
    try:
        yield
    finally:
        denoiser.enable_adapters()


class Drawing:
    """A pipeline's pictures by which inputs they are drawn with: what methods ask.

    Args:
        pipe: the pipeline.
        inputs: its inputs.
        options: those of the whole call, prompt and generator among them.
        store: where pictures are kept for another run.
    """

    batch = 1

    def __init__(
        self,
        pipe: Any,
        inputs: tuple[Input, ...],
        options: Options,
        store: Answers | None = None,
    ) -> None:
        self.pipe, self.inputs, self.options = pipe, inputs, options
        self.store = store
        self.asked = 0
        self._known: dict[tuple[bool, ...], Tensor] = {}

    @property
    def players(self) -> int:
        """Number of inputs."""
        return len(self.inputs)

    @property
    def full(self) -> Tensor:
        """The picture of the whole call, (1, 3, height, width) in [0, 1]."""
        whole = (True,) * self.players
        if whole not in self._known:
            self._known[whole] = self._drawn(whole)
            if self.store is not None:  # another model draws another picture
                names = [each.name for each in self.inputs]
                generator = self.options["generator"].initial_seed()
                said = (self.options["prompt"], names, generator)
                self.store.open("inputs", *said, self._known[whole])
        return self._known[whole]

    def estimates(self, present: Tensor) -> Tensor:
        """Return the pictures of some sets of inputs, (rows, 1, 3, height, width) in [0, 1].

        Args:
            present: bool (rows, inputs).
        """
        _ = self.full
        rows = [tuple(map(bool, row)) for row in present.tolist()]
        new = [row for row in dict.fromkeys(rows) if row not in self._known]
        if new:
            with self.pipe.progress_bar(total=len(new)) as bar:
                for row in new:
                    self._known[row] = self._read_or_drawn(row)
                    bar.update(1)
        return torch.stack([self._known[row] for row in rows])

    def _read_or_drawn(self, row: tuple[bool, ...]) -> Tensor:
        """Return a picture that is kept on disk, or draw it and keep it there."""
        found = None if self.store is None else self.store.read(bits(row))
        if found is not None:
            return found
        drawn = self._drawn(row)
        if self.store is not None:
            self.store.write(bits(row), drawn)
        return drawn

    @torch.no_grad()
    def _drawn(self, present: tuple[bool, ...]) -> Tensor:
        options = {**self.options, "generator": _cloned(self.options["generator"])}
        with ExitStack() as stack:
            for each, had in zip(self.inputs, present, strict=True):
                if not had:
                    options = each.without(options)
                    stack.enter_context(each.context())
            images: Tensor = self.pipe(**options, output_type="pt").images
        self.asked += 1
        return images[:1].float().cpu()


def _cloned(generator: torch.Generator) -> torch.Generator:
    clone = torch.Generator(generator.device)
    clone.manual_seed(generator.initial_seed())  # known to _reseeded
    clone.set_state(generator.get_state())
    return clone
