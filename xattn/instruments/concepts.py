"""ConceptRecorder: maps of texts that were not prompted, beside a recording."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from xattn.instruments.streams import ConceptPasses, check_blocks, has_stream
from xattn.models.family import AttentionLayer, DenoiserCall, choose
from xattn.processors.call import Handler
from xattn.processors.concepts import ConceptStream, TextKeys
from xattn.records.buffer import Buffer
from xattn.records.room import check_room
from xattn.records.run import Layer, Run
from xattn.records.shape import Shape
from xattn.session.instrument import Instrument
from xattn.session.sampling import Sampling
from xattn.text.prompt import Prompt


@dataclass(frozen=True, eq=False)
class Concept:
    """A text that was not prompted, encoded.

    Attributes:
        name: the word or phrase; "background" for the empty text.
        states: its embeddings, (tokens, channels).
        positions: the tokens of its words on the token axis.
    """

    name: str
    states: Tensor
    positions: tuple[int, ...]


class ConceptRecorder(Instrument):
    """Keep maps of each concept in each text layer; it runs after the recorder.

    Args:
        concepts: what to look for.
        keep: the recording's axes; heads are averaged, layers always stay apart.
    """

    def __init__(self, concepts: Sequence[Concept], keep: frozenset[str]) -> None:
        self.concepts = tuple(concepts)
        self.keep = (keep & {"step"}) | {"layer"}
        self.layers: dict[AttentionLayer, TextKeys | ConceptStream] = {}
        self.streams: dict[AttentionLayer, ConceptStream] = {}
        self._buffers: dict[str, Buffer] = {}
        self._passes: ConceptPasses | None = None

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a handler for each text layer of the denoiser.

        Raises:
            ValueError: concepts can't be compared in this model.
        """
        own = choose([layer for layer in layers if not layer.component], None)
        crossing = {layer: TextKeys() for layer in own if layer.role != "joint"}
        for layer in crossing:
            self._check_width(layer)
        self.streams = {layer: ConceptStream() for layer in own if has_stream(layer)}
        if not crossing and not self.streams:
            raise ValueError("also= can't be had with this model: its blocks have no text stream")
        self.layers = {**crossing, **self.streams} if not self.streams else {**self.streams}
        return self.layers

    def _check_width(self, layer: AttentionLayer) -> None:
        module: Any = layer.module
        project = module.add_k_proj if layer.role == "added" else module.to_k
        wanted, given = project.in_features, self.concepts[0].states.shape[-1]
        if wanted != given:
            raise ValueError(
                f"also= can't be had with this model: its layers read texts of {wanted} channels, "
                f"the text encoder's have {given}"
            )

    # -- a run -------------------------------------------------------------------------------------

    def begin(self, sampling: Sampling) -> None:
        """Lay out the concepts' maps.

        Raises:
            MemoryError: they would not fit; the error names options that would.
            ValueError: the transformer's blocks can't be passed once more for the concepts.
        """
        if self.streams:
            check_blocks(sampling.denoiser)
        if self.streams and sampling.compiled:
            raise ValueError("also= can't be had with a compiled transformer")
        shape = Shape(
            layers=tuple(Layer(x.name, sampling.grid(x), x.heads) for x in self.layers),
            images=sampling.images,
            tokens=len(self.concepts),
            steps=sampling.steps,
            keep=self.keep,
            dtype=torch.float32,
        )
        check_room(replace(shape, tokens=2 * shape.tokens), sampling.device, "cpu")
        forms = ("attention", "output" if self.streams else "competition")
        self._buffers = {form: Buffer(shape, sampling.device, "cpu") for form in forms}
        for n, (layer, handler) in enumerate(self.layers.items()):
            handler.buffers = tuple(buffer.views[n] for buffer in self._buffers.values())
            if isinstance(handler, TextKeys):
                handler.keys = [keys_of(layer, concept.states) for concept in self.concepts]
                handler.tokens = [
                    torch.tensor(c.positions, device=sampling.device) for c in self.concepts
                ]
        if sampling.run is not None:
            sampling.run.concepts = {form: self._run(sampling.run, shape, form) for form in forms}

    def _run(self, run: Run, shape: Shape, form: str) -> Run:
        count = len(self.concepts)
        return replace(
            run,
            prompts=(Prompt.anonymous(count),),
            prompt_of=(0,) * shape.images,
            positions=tuple(range(count)),
            layers=shape.layers,
            keep=self.keep,
            store=self._buffers[form].store,
            info={"concepts": [concept.name for concept in self.concepts], "form": form},
            images=[],
            estimates=None,
            affinity=None,
            concepts={},
            outputs={},
        )

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Aim the layers at the conditional rows, and make ready the concepts' own passes."""
        if call.component or not self._buffers:
            return
        for handler in self.layers.values():
            handler.live, handler.rows = True, call.conditional
        if self.streams:
            self._stop()
            states = torch.stack([c.states[list(c.positions)].mean(0) for c in self.concepts])
            self._passes = ConceptPasses(sampling.denoiser, self.streams, call, states)

    def after_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Collect the maps written by the layers."""
        self._stop()
        for buffer in self._buffers.values():
            buffer.end_call(call.ends_step)

    def end(self, sampling: Sampling) -> None:
        """Complete a run, whether finished or cut short."""
        self._stop()
        buffers, self._buffers = self._buffers, {}
        for handler in self.layers.values():
            handler.buffers = ()
        for form, buffer in buffers.items():
            if sampling.schedule is None:
                buffer.end_step()
            buffer.finish()
            if sampling.run is not None and form in sampling.run.concepts:
                kept = sampling.run.concepts[form]
                kept.done, kept.store = buffer.steps, buffer.store
                kept.timesteps = sampling.run.timesteps

    def _stop(self) -> None:
        passes, self._passes = self._passes, None
        if passes is not None:
            passes.remove()


@torch.no_grad()
def keys_of(layer: AttentionLayer, states: Tensor) -> Tensor:
    """Return a text's keys in a layer, (heads, tokens, channels)."""
    module: Any = layer.module
    project: Callable[[Tensor], Tensor] = (
        module.add_k_proj if layer.role == "added" else module.to_k
    )
    given = states[None].to(next(module.parameters()).dtype)
    if getattr(module, "norm_cross", None):
        given = module.norm_encoder_hidden_states(given)
    key = project(given).unflatten(-1, (layer.heads, -1)).transpose(1, 2)
    norm: nn.Module | None = getattr(module, "norm_k", None)
    found: Tensor = (key if norm is None else norm(key))[0]
    return found
