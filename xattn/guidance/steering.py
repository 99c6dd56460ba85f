"""Steering: gradient steps on the latents before a denoiser call, towards goals."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from xattn.guidance.backward import apart, arguments_on, backward_bytes, gradient, pass_until
from xattn.guidance.goal import Goal, ImageMaps, on_one_grid
from xattn.guidance.latents import channels_of, input_scale, moved
from xattn.instruments.live import LiveRecorder
from xattn.instruments.reach import in_decoder, quarter_grid
from xattn.models.family import AttentionLayer, DenoiserCall
from xattn.processors.call import Handler
from xattn.records.room import check_room_for
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling
from xattn.text.prompt import Prompt, WordError

MOVE, ROUNDS = 0.05, 1

Losses = list[list[Tensor | None]]
"""For each image, each goal's loss; None where the image's prompt has not its words."""


class Steering(Instrument):
    """Move the latents towards goals, before the denoiser's call in each step.

    One gradient step: the prompts' rows go once through the denoiser, as far as its last judged
    layer, and back; the latents then move by sqrt(1 - share/2) · ``move`` against the gradient of
    the sum of weight · loss, over the goals that aren't met. That is algorithm 1 of
    Attend-and-Excite (Chefer et al. 2023), whose steps are of another length: step_size times the
    gradient, with ``move=None``. Goals are judged by the maps of the layers nearest to a quarter
    of the latents' height and width, in a UNet those of its decoder: the mean over heads and
    layers.

    Attributes:
        goals: the goals.
        move: how far the latents move in a gradient step: the root mean square, where the
            denoiser's input has about 1. None for step_size · gradient.
        rounds: gradient steps in a step of the schedule, at most.
        losses: for each goal, by its text, its loss at each step, a tuple of one for each image,
            as the denoiser's own call had it: after steering. NaN where a prompt has not its words.
        gradient_steps: how many were taken in the latest run.
        steps_of: how many of them moved each image.
        checks: how many forward passes found every goal met.
        nbytes: the bytes that a gradient step keeps for its way back, known before the first; None
            where the model can't be traced.
        collected: the maps of the latest pass.
        judged_layers: the layers by whose maps goals are judged.
    """

    steers = True

    def __init__(
        self,
        goals: Sequence[Goal],
        *,
        move: float | None = MOVE,
        rounds: int = ROUNDS,
        layers: str | Sequence[str] | None = None,
    ) -> None:
        self.goals = tuple(goals)
        self.move = move
        self.rounds = rounds
        self.losses: dict[str, list[tuple[float, ...]]] = {}
        self.gradient_steps = 0
        self.steps_of: list[int] = []
        self.checks = 0
        self.nbytes: int | None = None
        self.shift: Tensor | None = None  # of the latents, waiting for the scheduler's step
        self.collected = LiveRecorder(layers=layers)
        self.judged_layers: list[AttentionLayer] = []
        self._scale = 1.0

    @property
    def _wanted(self) -> tuple[Goal, ...]:
        return tuple(goal for goal in self.goals if goal.weight > 0 and goal.steps > 0)

    def at_most(self, steps: int) -> int:
        """Return the largest possible number of gradient steps in a run of so many steps."""
        if not self._wanted:
            return 0
        usual = max(math.ceil(goal.steps * steps - 1e-9) for goal in self._wanted)
        often = max(goal.most_refinements[0] for goal in self._wanted)
        each = max(goal.most_refinements[1] for goal in self._wanted)
        return usual * self.rounds + often * max(0, each - self.rounds)

    # -- what the session calls

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a handler for each of the denoiser's layers that attend to text."""
        return self.collected.handlers(layers)

    def begin(self, sampling: Sampling) -> None:
        """Find the goals' words, and the layers by whose maps they are judged.

        Raises:
            ValueError: a word is in none of the prompts, or the run has no schedule.
        """
        if sampling.steps is None:
            raise ValueError("steering needs the schedule: xattn.Loop(unet, scheduler=...)")
        prompts = sampling.asked.prompts
        for goal in self.goals:
            self._check_words(goal, sampling)
        spread = sampling.family.map_layers is None and any(g.every_token for g in self.goals)
        own = [place for prompt in prompts for place in prompt.own_positions]
        text = range(1, max(prompt.extent for prompt in prompts)) if spread else ()
        self.collected.words = sorted({*own, *text})
        self.collected.begin(sampling)
        layers = list(self.collected.layers)
        grid = quarter_grid((sampling.grid(each) for each in layers), sampling.latent)
        placed = [each for each in layers if sampling.grid(each) == grid]
        named = self.collected.globs is not None
        self.judged_layers = layers if named else in_decoder(placed)
        self.losses = {goal.title: [] for goal in self.goals}
        self.gradient_steps = self.checks = 0
        self.steps_of = [0] * sampling.images
        self.shift, self.nbytes = None, None

    def _check_words(self, goal: Goal, sampling: Sampling) -> None:
        errors = [self._missing(goal, prompt) for prompt in sampling.asked.prompts]
        first = errors[0]
        if first is not None and all(errors):
            raise first

    def _missing(self, goal: Goal, prompt: Prompt) -> WordError | None:
        if goal.prompt not in (None, prompt.text):
            return WordError(f"{goal} is for another prompt: {goal.prompt!r}")
        try:
            for word in goal.words:
                prompt.positions(word)
        except WordError as error:
            return error
        return None

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Aim the layers, in the steps that a goal looks at."""
        if not call.component:
            looks = call.begins_step and self._share(sampling, call) < self._last
            self.collected.aim(self.judged_layers if looks else [], call.conditional[0])

    @property
    def _last(self) -> float:
        return max((goal.steps for goal in self.goals), default=0.0)

    def _share(self, sampling: Sampling, call: DenoiserCall) -> float:
        return call.step / (sampling.steps or 1)

    def steer(
        self, sampling: Sampling, call: DenoiserCall, arguments: Mapping[str, Any]
    ) -> Tensor | None:
        """Return the sample moved towards the goals; None where nothing moves.

        Raises:
            MemoryError: before the first gradient step, if it would not fit.
        """
        self.shift = None
        if call.component or not call.begins_step:
            return None
        share = self._share(sampling, call)
        goals = [goal for goal in self._wanted if share < goal.steps]
        if not goals or not self._is_due(goals, sampling, call):
            return None
        self._scale = input_scale(sampling.scheduler, call.timestep)
        rows, channels = call.conditional[0], channels_of(sampling, call.sample)
        shift = self._descend(sampling, call, arguments, goals)
        self.collected.aim(self.judged_layers, rows)  # the denoiser's own call comes next
        if shift is None:
            return None
        self.shift = shift
        sample = call.sample.clone()
        part = sample[:, :channels] if sample.ndim == 4 else sample[..., :channels]
        moved = part.float() + self._scale * shift.repeat(
            len(sample) // len(shift), *[1] * (shift.ndim - 1)
        )
        still = (moved == part.float()) | ~moved.isfinite()
        part.copy_(torch.where(still, part, moved.to(part.dtype)))
        return sample

    def _is_due(self, goals: Sequence[Goal], sampling: Sampling, call: DenoiserCall) -> bool:
        """Return whether a goal wasn't met in the step before, or is to be refined in this."""
        if call.step == 0:
            return True
        share, before = self._share(sampling, call), (call.step - 1) / (sampling.steps or 1)
        for goal in goals:
            latest = self.losses[goal.title][-1] if self.losses[goal.title] else (math.inf,)
            target = goal.refines(share, before)
            for loss in latest:
                if not math.isnan(loss) and not (
                    goal.met(loss, share) and (target is None or loss <= target)
                ):
                    return True
        return False

    def _descend(
        self,
        sampling: Sampling,
        call: DenoiserCall,
        arguments: Mapping[str, Any],
        goals: Sequence[Goal],
    ) -> Tensor | None:
        """Return the change of the latents, (images, ...) float32; None if all goals are met."""
        share = self._share(sampling, call)
        before = (call.step - 1) / (sampling.steps or 1)
        rate = math.sqrt(1 - share / 2)
        rows, channels = call.conditional[0], channels_of(sampling, call.sample)
        start = call.sample[rows]
        own = frozenset(id(handler) for handler in self.collected.layers.values())
        targets = [goal.refines(share, before) for goal in goals]
        refined = [g.most_refinements[1] for g, t in zip(goals, targets, strict=True) if t]
        handlers = [self.collected.layers[layer] for layer in self.judged_layers]
        shift: Tensor | None = None
        with apart(sampling.denoiser, own):
            for number in range(max([self.rounds, *refined])):
                sample = moved(start, shift, self._scale, channels).requires_grad_()
                given = arguments_on(arguments, call, rows, sample)
                if number == 0 and call.step == 0:
                    self.check_room(sampling, given, sample)
                self.collected.aim(self.judged_layers, slice(0, len(sample)))
                pass_until(sampling.denoiser, handlers, given)
                total = self.unmet(goals, targets, share, number)
                if total is None:
                    self.checks += 1
                    break
                slope = gradient(total, sample)
                slope = slope[:, :channels] if slope.ndim == 4 else slope[..., :channels]
                step = self._length(slope) * -rate * slope
                shift = step if shift is None else shift + step
                self.gradient_steps += 1
                for image, own_slope in enumerate(slope):
                    self.steps_of[image] += bool(own_slope.any())
        return shift

    def _length(self, slope: Tensor) -> Tensor | float:
        """Return the factor of a gradient (images, ...) that makes a step of it."""
        if self.move is None:
            return self._scale
        size = slope.flatten(1).pow(2).mean(1).sqrt().clamp_min(1e-20)
        return (self.move / self._scale / size).view(-1, *[1] * (slope.ndim - 1))

    def unmet(
        self,
        goals: Sequence[Goal],
        targets: Sequence[float | None],
        share: float,
        number: int,
    ) -> Tensor | None:
        """Return the weighted sum of the losses to descend; None if there are none.

        The first ``rounds`` gradient steps are for whatever isn't met, the others are refinements.
        """
        wanted = []
        for row in self._judged(goals, share):
            for goal, target, loss in zip(goals, targets, row, strict=True):
                if loss is None:
                    continue
                value = float(loss.detach())
                refined = target is not None and value > target
                if refined or (number < self.rounds and not goal.met(value, share)):
                    wanted.append(goal.weight * goal.step_size * loss)
        return torch.stack(wanted).sum() if wanted else None

    def _judged(self, goals: Sequence[Goal], share: float) -> Losses:
        """Return each image's losses, by the maps of the latest pass."""
        maps = on_one_grid([self.collected.native(layer) for layer in self.judged_layers])
        found: Losses = []
        for image, prompt in enumerate(self.collected.prompts):
            positions, heats = self.collected.positions, maps[image]
            if self.collected.sampling is not None and self.collected.sampling.family.map_layers:
                own = [i for i, place in enumerate(positions) if place in prompt.own_positions]
                positions, heats = tuple(positions[i] for i in own), heats[own]
            shown = ImageMaps(prompt, positions, heats, share)
            found.append(
                [None if self._missing(goal, prompt) else goal.loss(shown) for goal in goals]
            )
        return found

    def check_room(self, sampling: Sampling, given: Mapping[str, Any], sample: Tensor) -> None:
        """Raise MemoryError if the way back would not fit."""
        with apart(sampling.denoiser, frozenset()):
            self.nbytes = backward_bytes(sampling.denoiser, given, sample)
        if self.nbytes is not None:
            advice = "; draw fewer images at a time, smaller ones, or in half precision"
            check_room_for("one gradient step keeps", self.nbytes, sampling.device, advice)

    def after_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Note the losses of the denoiser's own call."""
        share = self._share(sampling, call)
        if call.component or not call.begins_step or share >= self._last:
            return
        rows = self._judged(self.goals, share)
        for number, goal in enumerate(self.goals):
            values = [row[number] for row in rows]
            self.losses[goal.title].append(
                tuple(math.nan if value is None else float(value) for value in values)
            )

    def moved(self, latents: Tensor) -> Tensor:
        """Return the latents that the scheduler steps from: those the denoiser was given."""
        shift, self.shift = self.shift, None
        if shift is None:
            return latents
        if latents.shape != shift.shape:
            raise RuntimeError(
                f"the scheduler steps from latents of {tuple(latents.shape)}, the denoiser was "
                f"steered with {tuple(shift.shape)}: this pipeline can't be steered"
            )
        moved = latents.float() + shift
        still = (moved == latents.float()) | ~moved.isfinite()
        return torch.where(still, latents, moved.to(latents.dtype))

    def __str__(self) -> str:
        return f"Steering({', '.join(map(str, self.goals))}: {self.gradient_steps} gradient steps)"
