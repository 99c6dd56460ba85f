"""What instruments and sessions are tested with alone: a denoiser of one layer, and no pipeline."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from tests.runs import prompt
from xattn.models.family import (
    NOTHING,
    AttentionLayer,
    Axis,
    DenoiserCall,
    Encoded,
    Family,
    Role,
)
from xattn.processors.call import AttentionCall, Handler
from xattn.processors.own_call import OwnCall
from xattn.session.clock import Clock, Schedule
from xattn.session.events import Receive
from xattn.session.instrument import Instrument
from xattn.session.origin import Following, Turn
from xattn.session.rows import RowFinder
from xattn.session.sampling import Asked, Sampling
from xattn.text.prompt import Prompt

TOKENS, CHANNELS = 6, 8


class Denoiser(nn.Module):
    """One cross-attention layer between an image of eight channels and a text of six."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = Attention(CHANNELS, cross_attention_dim=CHANNELS, heads=2, dim_head=4)
        self.skips = False

    def forward(self, sample: Tensor, timestep: Any, encoder_hidden_states: Tensor) -> Tensor:
        if self.skips:
            return sample
        states = sample.flatten(2).transpose(1, 2)  # (rows, height x width, channels)
        out = self.attn(states, encoder_hidden_states=encoder_hidden_states)
        return out.transpose(1, 2).reshape(sample.shape)


class OneLayer:
    """The family of ``Denoiser``, and of layers that stand in no model at all."""

    classes: tuple[str, ...] = ("Denoiser",)
    map_layers: tuple[str, ...] | None = None
    edits: frozenset[str] = frozenset()
    two_passes: bool = False

    def denoisers(self, pipe: Any) -> tuple[nn.Module, ...]:
        return (pipe,)

    def layers(self, denoiser: Any, component: str = "") -> tuple[AttentionLayer, ...]:
        return (AttentionLayer(f"{component}attn", denoiser.attn, 2, "cross", component),)

    def grid(self, layer: AttentionLayer, latent: tuple[int, int]) -> tuple[int, int]:
        return latent[0] >> layer.depth, latent[1] >> layer.depth

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        sample = arguments["sample"]
        latent = (int(sample.shape[2]), int(sample.shape[3]))
        states = arguments["encoder_hidden_states"]
        return DenoiserCall(sample, latent, arguments["timestep"], states, component)

    def places(self, call: DenoiserCall, layer: AttentionLayer, queries: int, keys: int) -> None:
        return None

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        return ()

    def encoded(self, result: Any) -> Encoded:
        return Encoded(result, None)

    def clean(self, scheduler: Any, sample: Tensor, output: Tensor, timestep: float) -> Tensor:
        """Return a number that says which sample, output and timestep it was made of."""
        return sample + 10 * output + timestep


class Attn(nn.Module):
    """Stands for an attention module that is never called."""

    processor = object()


def layer(name: str = "attn", role: Role = "cross", **other: Any) -> AttentionLayer:
    """A layer of two heads that stands in no model."""
    return AttentionLayer(name, Attn(), 2, role, **other)


def schedule(*steps: float, order: int = 1) -> Schedule:
    return Schedule.of(steps or (30.0, 20.0, 10.0), order)


def sampling(
    texts: Sequence[str | Prompt] = ("a red car",),
    *,
    latent: tuple[int, int] = (2, 2),
    **other: Any,
) -> Sampling:
    """A run of three steps, with one image of each prompt and guidance."""
    prompts = tuple(prompt(t, TOKENS) if isinstance(t, str) else t for t in texts)
    values: dict[str, Any] = {
        "asked": Asked(prompts, tuple(range(len(prompts)))),
        "schedule": schedule(),
        "sample": torch.zeros(2 * len(prompts), 4, *latent),
        **other,
    }
    return Sampling(family=OneLayer(), denoiser=nn.Identity(), latent=latent, **values)


def call_of(sampling: Sampling, number: int = 0, **other: Any) -> DenoiserCall:
    """A run's denoiser call, whose second half follows the prompts."""
    sample, images = sampling.sample, sampling.images
    plan = sampling.schedule
    step = number if plan is None else plan.steps[number]
    values: dict[str, Any] = {
        "timestep": 0.0 if plan is None else plan.at[number],
        "begins_step": plan is None or number == 0 or plan.steps[number - 1] != step,
        "ends_step": plan is not None and plan.ends_step(number),
        "conditional": (slice(len(sample) - images, len(sample)),),
        **other,
    }
    return DenoiserCall(sample, sampling.latent, states=None, number=number, step=step, **values)


def attention(
    rows: int = 2, queries: int = 4, keys: int = TOKENS, *, seed: int = 0, **other: Any
) -> AttentionCall:
    """The attention of two heads, of random numbers."""
    random = torch.Generator().manual_seed(seed)
    lengths = (queries, keys, keys)
    query, key, value = (torch.randn(rows, 2, n, 4, generator=random) for n in lengths)
    return AttentionCall(query, key, value, **{"mask": None, "scale": 0.5, "own": own()} | other)


def own() -> OwnCall:
    return OwnCall({"dropout_p": 0.0, "is_causal": False, "scale": 0.5})


def dense(call: AttentionCall) -> Tensor:
    """The softmax of a call, every probability written out, (rows, heads, queries, keys)."""
    logits = call.query @ call.key.transpose(-1, -2) * call.scale
    if call.mask is not None and call.mask.dtype == torch.bool:
        logits = torch.where(call.mask, logits, -torch.inf)
    elif call.mask is not None:
        logits = logits + call.mask
    return F.softmax(logits, -1)


class Doubling(Handler):
    """An edit that hands on the call with twice its queries."""

    edits = True

    def transform(self, call: AttentionCall) -> AttentionCall:
        return AttentionCall(
            2 * call.query, call.key, call.value, call.mask, call.scale, call.own, call.locate
        )


class Watching(Handler):
    """Keeps every call that comes by."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[AttentionCall] = []

    def observe(self, call: AttentionCall) -> None:
        self.calls.append(call)


class Diary(Instrument):
    """Writes down its moments, in a list that several may share."""

    def __init__(self, name: str = "", moments: list[str] | None = None) -> None:
        self.name = name
        self.moments: list[str] = [] if moments is None else moments
        self.handler = Watching()
        self.samplings: list[Sampling] = []
        self.calls: list[DenoiserCall] = []
        self.fault = ""
        self.ended: list[bool] = []

    def _note(self, moment: str) -> None:
        self.moments.append(f"{self.name}{moment}")
        if moment == self.fault:
            raise ZeroDivisionError(moment)

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        return dict.fromkeys(layers, self.handler)

    def begin(self, sampling: Sampling) -> None:
        self.samplings.append(sampling)
        self._note("begin")

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        self.calls.append(call)
        self.handler.live = True
        self._note("before_call")

    def after_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        self._note("after_call")

    def after_step(self, step: int, latents: Tensor) -> Tensor:
        self._note("after_step")
        return latents + 1

    def end(self, sampling: Sampling) -> None:
        self._note("end")

    def pictures(self, sampling: Sampling, images: list[Any], *, ended: bool) -> None:
        self.ended.append(ended)
        self._note("pictures")


class FakeOrigin:
    """An answer to each call, as a test wants it.

    Args:
        turns: of the calls, one after another.
        timesteps: of a run.
        order: calls a step.
        known: what a run is asked for; None where events are to say so.
    """

    def __init__(
        self,
        *turns: Turn,
        timesteps: Sequence[float] = (30.0, 20.0, 10.0),
        order: int = 1,
        known: Asked | None = None,
    ) -> None:
        self.denoiser: nn.Module = Denoiser()
        self.family: Family = OneLayer()
        self.loop = known is not None
        self.scheduler = None
        self.turns = list(turns)
        self.timesteps = torch.tensor(timesteps)
        self.schedule = Schedule.of(timesteps, order)
        self.known = known
        self.receive: Receive | None = None
        self.heard: list[tuple[Any, Any, Any]] = []

    def components(self) -> list[tuple[str, nn.Module]]:
        return [("", self.denoiser)]

    @contextmanager
    def watched(self, receive: Receive) -> Iterator[None]:
        self.receive = receive
        try:
            yield
        finally:
            self.receive = None

    def asked(self) -> Asked | None:
        return self.known

    def turn(
        self,
        call: DenoiserCall,
        following: Following | None,
        asked: Asked | None,
        fresh: Asked | None,
    ) -> Turn:
        self.heard.append((following, asked, fresh))
        return self.turns.pop(0)

    def follow(self, call: DenoiserCall, asked: Asked) -> Following:
        return Following(asked, Clock(self.schedule, self.timesteps, 0), RowFinder(asked))

    def facts(self) -> dict[str, Any]:
        return {"model": "Denoiser"}
