"""Editor: prompt-to-prompt attention in a batch of siblings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from xattn.edits.plan import EditPlan
from xattn.edits.timing import JOINT, SEPARATE, Shares
from xattn.instruments.keeper import KeptSource
from xattn.instruments.reach import area_limit
from xattn.models.denoisers import UNEDITED
from xattn.models.family import AttentionLayer, DenoiserCall, Family, choose, named
from xattn.processors.call import Handler
from xattn.processors.editing import CrossEditing, KeptCalls, SelfEditing
from xattn.processors.forms import CrossStep, EditedRows
from xattn.processors.joint import JointStep
from xattn.processors.joint_editing import JointEditing
from xattn.processors.joint_source import KeptJoints
from xattn.processors.wrapping import innermost
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling


class Editor(Instrument):
    """Make siblings attend as their edits require.

    The batch is prompt-major: all images of the source, then all images of each sibling. A source
    kept from an earlier run is not part of the batch.

    Args:
        plan: the plan of the edits.
        side: self-attention follows the source in layers of at most side x side queries.
        kept: the source kept from an earlier run, if any.
        layers: globs of the layers to edit; all of them by default.
    """

    def __init__(
        self,
        plan: EditPlan,
        *,
        side: int | None = None,
        kept: KeptSource | None = None,
        layers: str | Sequence[str] | None = None,
    ) -> None:
        self.plan = plan
        self.side = side
        self.kept = kept
        self.wanted = layers
        self.cross: dict[AttentionLayer, CrossEditing] = {}
        self.selfs: dict[AttentionLayer, SelfEditing] = {}
        self.joint: dict[AttentionLayer, JointEditing] = {}
        # phases repeat; each one's factors are computed once
        self._rows: dict[Any, EditedRows] = {}
        self._steps: dict[Any, CrossStep | JointStep | None] = {}

    @property
    def texts(self) -> list[str]:
        """The prompts of the batch."""
        return self.plan.texts if self.kept is None else self.plan.texts[1:]

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a handler for each layer of the denoiser that edits act on.

        Where attention is joint, attention of the image alone is left as it is (Shin et al. 2025).

        Raises:
            TypeError: a layer's processor computes attention slice by slice.
            ValueError: the model has no layers that read text, or none of the wanted ones.
        """
        own = named(editable(layers), self.wanted)
        self.joint = {layer: JointEditing() for layer in own if layer.role == "joint"}
        self.cross = {layer: CrossEditing() for layer in own if layer.role == "cross"}
        if not self.plan.shares.joint:
            self.selfs = {layer: SelfEditing() for layer in own if layer.role == "self"}
        return {**self.cross, **self.selfs, **self.joint}

    # -- a run -------------------------------------------------------------------------------------

    def begin(self, sampling: Sampling) -> None:
        """Check that the run uses the planned prompts, and connect the kept source.

        Raises:
            ValueError: the pipeline was called with other prompts, or the source does not fit.
        """
        texts = [prompt.text for prompt in sampling.asked.prompts]
        if texts != self.texts:
            raise ValueError(
                f"inside editing(), call the pipeline with session.prompts, {self.texts!r}; "
                f"it was called with {texts!r}"
            )
        self._rows, self._steps = {}, {}
        if self.kept is None:
            return
        assert sampling.schedule is not None
        self.kept.check_schedule(sampling.schedule)
        most = area_limit(sampling.latent, self.side)
        for layer, joining in self.joint.items():
            joining.kept = KeptJoints(self.kept.of_layer(layer.name, self.side))
        for layer, crossing in self.cross.items():
            crossing.kept = KeptCalls(self.kept.of_layer(layer.name, self.side))
        for layer, following in self.selfs.items():
            height, width = sampling.grid(layer)
            if height * width <= most:
                following.kept = KeptCalls(self.kept.of_layer(layer.name, self.side))

    def images(self, sampling: Sampling) -> int:
        """Return the number of images per prompt in a run."""
        return sampling.images // len(self.texts)

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Set each layer up for the call's step."""
        if call.component or sampling.schedule is None or not self.plan.siblings:
            return
        step = self._step(sampling, call)
        for crossing in self.cross.values():
            assert not isinstance(step, JointStep)
            crossing.step, crossing.live = step, step is not None
        active = self.plan.self_(call.step, len(sampling.schedule.timesteps))
        chosen = [j for j, now in enumerate(active) if now]
        follow = self._edited_rows(chosen, sampling, call) if chosen else None
        most = area_limit(sampling.latent, self.side)
        for layer, following in self.selfs.items():
            following.follow = follow
            following.live = follow is not None and _within(sampling.grid(layer), most)
        for layer, joining in self.joint.items():
            assert not isinstance(step, CrossStep)
            reached = self.side is None or _within(sampling.grid(layer), most)
            joining.step, joining.follow = step, follow if reached else None
            joining.live = step is not None or joining.follow is not None
        handlers: tuple[CrossEditing | SelfEditing | JointEditing, ...]
        handlers = (*self.cross.values(), *self.selfs.values(), *self.joint.values())
        for kept in (handler.kept for handler in handlers):
            if kept is not None:
                kept.number = call.number

    def _step(self, sampling: Sampling, call: DenoiserCall) -> CrossStep | JointStep | None:
        """Return the edit of a step; the same object throughout a phase."""
        assert sampling.schedule is not None
        steps = len(sampling.schedule.timesteps)
        start = call.conditional[0].start
        phase = (self.plan.phase(call.step, steps), start, call.rows, sampling.device)
        if phase not in self._steps:
            make = self._joint_step if self.plan.shares.joint else self._cross_step
            self._steps[phase] = make(sampling, call, steps)
        return self._steps[phase]

    def _cross_step(self, sampling: Sampling, call: DenoiserCall, steps: int) -> CrossStep | None:
        mix, own, active = self.plan.cross(call.step, steps)
        chosen = [j for j, now in enumerate(active) if now]
        if not chosen:
            return None
        per_row = [j for j in chosen for _ in range(self.images(sampling))]
        owns = bool(own[chosen].any())
        follows = not owns and bool((mix[chosen] == torch.eye(*mix.shape[1:])).all())
        return CrossStep(
            rows=self._edited_rows(chosen, sampling, call),
            mix=None if follows else mix[per_row].to(sampling.device),
            own=own[per_row].to(sampling.device),
            owns=owns,
        )

    def _joint_step(self, sampling: Sampling, call: DenoiserCall, steps: int) -> JointStep | None:
        mapping, own, weights, active = self.plan.columns(call.step, steps)
        chosen = [j for j, now in enumerate(active) if now]
        if not chosen:
            return None
        per_row = [j for j in chosen for _ in range(self.images(sampling))]
        return JointStep(
            rows=self._edited_rows(chosen, sampling, call),
            mapping=mapping[per_row].to(sampling.device),
            own=own[per_row].to(sampling.device),
            weights=weights[per_row].to(sampling.device),
            takes=bool(mapping[chosen].any()),
            keeps=bool(own[chosen].any()),
        )

    def _edited_rows(
        self, siblings: list[int], sampling: Sampling, call: DenoiserCall
    ) -> EditedRows:
        start, images = call.conditional[0].start, self.images(sampling)
        chosen = (tuple(siblings), start, call.rows, sampling.device)
        if chosen not in self._rows:
            kept = self.kept is not None
            self._rows[chosen] = EditedRows.of(
                siblings, images, start, sampling.device, kept=kept, batch=call.rows
            )
        return self._rows[chosen]

    def end(self, sampling: Sampling) -> None:
        """Release everything the run needed."""
        self._rows, self._steps = {}, {}
        for crossing in self.cross.values():
            crossing.step = crossing.kept = None
        for following in self.selfs.values():
            following.follow = following.kept = None
        for joining in self.joint.values():
            joining.step = joining.follow = joining.kept = None


def _within(grid: tuple[int, int], most: int) -> bool:
    return grid[0] * grid[1] <= most


def check_editable(family: Family) -> None:
    """Raise ValueError where a family's models can be recorded and not edited."""
    if not family.edits:
        name = family.classes[0]
        why = f": {UNEDITED[name]}" if name in UNEDITED else ""
        raise ValueError(f"{name} can be recorded, and not edited yet{why}")


def check_blends(family: Family, plan: EditPlan) -> None:
    """Raise ValueError if a plan has a LocalBlend and a family's latents can't be blended."""
    if "blend" not in family.edits and any(s.blend is not None for s in plan.siblings):
        raise ValueError(
            f"LocalBlend can't be had with {family.classes[0]}, whose latents it doesn't know; "
            "leave it out"
        )


def shares_of(family: Family) -> Shares:
    """Return when attention follows in a family's models, where an edit sets no share."""
    return JOINT if "joint" in family.edits else SEPARATE


def editable(layers: Sequence[AttentionLayer]) -> list[AttentionLayer]:
    """Return the denoiser's layers that edits act on.

    Raises:
        TypeError: a layer's processor computes attention slice by slice.
        ValueError: the model has no cross-attention layers.
    """
    own = [layer for layer in layers if not layer.component]
    both = [layer.name for layer in own if layer.role == "added"]
    if both:
        raise ValueError(
            f"layer {both[0]} adds the text's keys to the image's own; edits know cross-attention "
            "and joint attention: this model can be recorded, and not edited yet"
        )
    choose(own, None)  # raises if there are none
    for layer in own:
        processor: Any = layer.module.processor
        name = type(innermost(processor)).__name__
        if name.startswith("Sliced"):
            raise TypeError(
                f"{name} computes attention slice by slice, but edits need the source next to its "
                "siblings; call pipe.disable_attention_slicing() first"
            )
    return own
