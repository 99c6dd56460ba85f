"""Keeper: a source's run kept, so later edits do not sample it again."""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from xattn.instruments.reach import area_limit, middle_grid
from xattn.models import family_of_pipeline
from xattn.models.family import AttentionLayer, DenoiserCall
from xattn.processors.call import Handler
from xattn.processors.editing import Keeping
from xattn.processors.joint_editing import JointKeeping
from xattn.records.room import check_room_for
from xattn.session.clock import Schedule
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling

Parts = list[tuple[Tensor, ...]]

OF_ONE_CALL = (
    "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
    "callback",
    "callback_steps",
)
"""Pipeline options that observe one call and do not affect the result."""

_SMALLER = "; draw fewer steps or images, use a smaller side=, or leave keep_source=True out"


@dataclass(frozen=True)
class Fingerprint:
    """The settings that produced a source; a kept source fits no others.

    Attributes:
        pipeline: class of the pipeline.
        model: the denoiser, by weak reference.
        dtype: dtype of the denoiser.
        scheduler: class of the scheduler.
        config: settings of the scheduler.
    """

    pipeline: type
    model: weakref.ref[Any]
    dtype: torch.dtype
    scheduler: type
    config: dict[str, str]

    @classmethod
    def of(cls, pipe: Any) -> Fingerprint:
        """Read the settings of a pipeline."""
        config = {k: repr(v) for k, v in pipe.scheduler.config.items() if not k.startswith("_")}
        denoiser: Any = family_of_pipeline(pipe).denoisers(pipe)[0]
        model = getattr(denoiser, "_orig_mod", denoiser)
        return cls(type(pipe), weakref.ref(model), model.dtype, type(pipe.scheduler), config)

    def check(self, pipe: Any) -> None:
        """Raise ValueError if a pipeline's settings differ."""
        now = Fingerprint.of(pipe)
        if now.pipeline is not self.pipeline:
            was = f"by a {self.pipeline.__name__}, and this is a {now.pipeline.__name__}"
        elif now.model() is not self.model():
            was = "by another UNet"
        elif now.dtype != self.dtype:
            was = f"in {self.dtype}, and the UNet is now in {now.dtype}"
        elif now.scheduler is not self.scheduler:
            was = f"with {self.scheduler.__name__}, and the pipeline has {now.scheduler.__name__}"
        elif now.config != self.config:
            names = sorted(dict(now.config.items() ^ self.config.items()))
            was = f"with another {names[0]} of the scheduler"
        else:
            return
        raise ValueError(f"source was drawn {was}: draw it again with keep_source=True")


@dataclass
class KeptSource:
    """What edits need of a source's run: attention inputs, latents, maps and generator states.

    For each denoiser call it holds the queries of every cross-attention layer and of the
    self-attention layers within reach of edits, and their keys, in the run's dtype; of joint
    attention the image's queries, all keys, and the softmax's sums. For Stable Diffusion 1.5 at
    512 px in half precision that is about 30 MB per step and image.

    Attributes:
        prompt: the source's prompt.
        images: number of images, one per seed.
        options: the pipeline's arguments, without callbacks.
        made_by: the settings that produced it; edits must match them.
        timesteps: timestep of each denoiser call.
        generators: their states before the run.
        layers: for each layer the source's queries and keys at each denoiser call; of a joint
            layer the tensors of a ``JointSource``.
        latents: after each step, with LocalBlends applied, (images, channels, height, width).
        maps: LocalBlend's maps, summed over the steps so far, (images, tokens, h, w).
        pictures: the source's images.
    """

    prompt: str
    images: int
    options: dict[str, Any] = field(default_factory=dict)
    made_by: Fingerprint | None = None
    timesteps: tuple[float, ...] = ()
    generators: list[torch.Generator] = field(default_factory=list)
    layers: dict[str, Parts] = field(default_factory=dict)
    latents: list[Tensor] = field(default_factory=list)
    maps: list[Tensor] = field(default_factory=list)
    pictures: list[Any] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Size of the kept tensors in bytes."""
        tensors = [t for calls in self.layers.values() for part in calls for t in part]
        distinct = {t.data_ptr(): t.nbytes for t in [*tensors, *self.latents, *self.maps]}
        return sum(distinct.values())

    def check_schedule(self, schedule: Schedule) -> None:
        """Raise ValueError if a run's schedule differs from the source's."""
        if self.timesteps != schedule.at:
            raise ValueError(
                f"source was drawn in {len(self.timesteps)} denoiser calls from timestep "
                f"{self.timesteps[0]:g} on, but the scheduler now has {schedule.calls} from "
                f"{schedule.at[0]:g} on: draw it again with keep_source=True"
            )

    def of_layer(self, name: str, side: int | None) -> Parts:
        """Return what was kept of a layer at each denoiser call.

        Raises:
            ValueError: the layer was not kept.
        """
        if name not in self.layers:
            raise ValueError(
                f"side={side} reaches layer {name}, which the source did not "
                "keep; run it again with keep_source=True and the same side"
            )
        return self.layers[name]

    def share_keys(self, layers: Iterable[str]) -> None:
        """Store keys that do not change between calls (the text's) only once.

        For the end of the run: the comparison waits for the device.
        """
        for name in layers:
            calls = self.layers.get(name, [])
            keys = [part[1] for part in calls]
            if len(keys) < 2 or len({key.shape for key in keys}) > 1:
                continue
            same = torch.stack([(a == b).all() for a, b in pairwise(keys)]).tolist()
            for i, equal in enumerate(same, start=1):
                if equal:
                    calls[i] = calls[i][0], calls[i - 1][1]


class Keeper(Instrument):
    """Keep the source's queries and keys in every layer within reach of edits.

    It runs before the editor; the blender keeps latents and maps.

    Args:
        kept: the store to write to.
        prompts: number of prompts in the batch.
        tokens: length of the token axis.
        side: largest side of the grids whose self-attention follows, as for the editor.
    """

    def __init__(
        self, kept: KeptSource, *, prompts: int, tokens: int, side: int | None = None
    ) -> None:
        self.kept = kept
        self.prompts = prompts
        self.tokens = tokens
        self.side = side
        self.layers: dict[AttentionLayer, Keeping | JointKeeping] = {}

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a handler for each of the denoiser's layers that edits act on."""
        own = [layer for layer in layers if not layer.component]
        joint = [layer for layer in own if layer.role == "joint"]
        if joint:
            self.layers = {layer: JointKeeping() for layer in joint}
        else:
            self.layers = {layer: Keeping() for layer in own}
        return self.layers

    def begin(self, sampling: Sampling) -> None:
        """Raise an error before sampling if the source would not fit.

        Raises:
            MemoryError: before the first step.
        """
        assert sampling.schedule is not None
        nbytes = self._nbytes(sampling, sampling.schedule)
        check_room_for("keeping the source takes", nbytes, sampling.device, _SMALLER)
        self.kept.timesteps = sampling.schedule.at
        for layer in self._reached(sampling):
            self.layers[layer].calls = self.kept.layers[layer.name] = []

    def _reached(self, sampling: Sampling) -> list[AttentionLayer]:
        most = area_limit(sampling.latent, self.side)
        sizes = {layer: sampling.grid(layer) for layer in self.layers}
        return [layer for layer, (h, w) in sizes.items() if layer.reads_text or h * w <= most]

    def _nbytes(self, sampling: Sampling, schedule: Schedule) -> int:
        """Return the bytes needed to keep the source during the run.

        Less afterwards: the text's keys, equal in every call, are then stored once.
        """
        kind, sample = sampling.device.type, sampling.sample
        dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else sample.dtype
        numbers = 0
        tokens = sampling.asked.length or self.tokens
        for layer in self._reached(sampling):
            (height, width), attn = sampling.grid(layer), _widths(layer.module)
            keys = tokens if layer.role == "cross" else height * width
            if layer.role == "joint":
                keys += tokens
            numbers += height * width * attn[0] + keys * attn[1]
        cross = [sampling.grid(layer) for layer in self.layers if layer.reads_text]
        height, width = middle_grid(cross, sampling.latent, self.side)
        maps = 4 * tokens * height * width
        area = sampling.latent[0] * sampling.latent[1]
        if sample.ndim == 3:  # packed: one position for each of the grid's
            area = height * width
        latents = sample.element_size() * sampling.channels * area
        each = schedule.calls * numbers * dtype.itemsize + len(schedule.timesteps) * (
            maps + latents
        )
        return sampling.images // self.prompts * each

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Aim the layers at the source's rows."""
        if call.component:
            return
        first, images = call.conditional[0].start, sampling.images // self.prompts
        for layer in self._reached(sampling):
            self.layers[layer].rows = slice(first, first + images)
            self.layers[layer].live = True

    def end(self, sampling: Sampling) -> None:
        """Store the text's keys only once."""
        cross = [layer.name for layer in self.layers if layer.role == "cross"]
        self.kept.share_keys(cross)


def _widths(module: Any) -> tuple[int, int]:
    """Return the channels of a layer's queries and keys, all heads together."""
    queries = int(module.inner_dim)
    return queries, int(getattr(module, "inner_kv_dim", queries))
