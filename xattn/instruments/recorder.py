"""Recorder: maps of the requested words, from the layers into a run's buffer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from xattn.maps.select import kept_positions
from xattn.models.adapters import adapts
from xattn.models.family import AttentionLayer, DenoiserCall, choose, matches
from xattn.processors.call import Handler
from xattn.processors.recording import Recording
from xattn.records.buffer import Buffer
from xattn.records.folder import FolderStore, write_header
from xattn.records.options import Options
from xattn.records.room import check_room
from xattn.records.run import Layer, Run, info_versions
from xattn.records.shape import Shape
from xattn.records.stores import new_folder
from xattn.session.clock import timestep_of
from xattn.session.instrument import Instrument
from xattn.session.patching import mark_dynamic
from xattn.session.sampling import Sampling


@dataclass(frozen=True)
class _Aim:
    """A recorded layer's target in the kept layers, and its weight there."""

    kept: int
    share: float | None


class Recorder(Instrument):
    """Write recorded layers' maps into a buffer, and turn each sampling into a ``Run``.

    Args:
        options: what to keep, and where.
        runs: the list to append runs to.
        edited: whether to record only the layers that edits act on.
    """

    films = True

    def __init__(self, options: Options, runs: list[Run], *, edited: bool = False) -> None:
        self.options = options
        self.runs = runs
        self.edited = edited
        self.recordings: dict[AttentionLayer, Recording] = {}
        self._buffer: Buffer | None = None

    def handlers(self, layers: Sequence[AttentionLayer]) -> Mapping[AttentionLayer, Handler]:
        """Return a recording handler for each layer matching ``layers=``.

        Raises:
            ValueError: a name does not match any layer; the error lists the layers.
        """
        chosen = self._chosen(layers)
        self.recordings = {layer: Recording(layer.name, layer.heads) for layer in chosen}
        if self.options.direction == "text":
            _check_joint(chosen)
            for recording in self.recordings.values():
                recording.of_text = True
        return self.recordings

    def _chosen(self, layers: Sequence[AttentionLayer]) -> list[AttentionLayer]:
        """Return the layers to record; a ControlNet's only if named."""
        wanted = self.options.layers
        globs = [wanted] if isinstance(wanted, str) else wanted
        main = [layer for layer in layers if not layer.component]
        if self.edited:
            main = [layer for layer in main if layer.role in ("cross", "joint")]
        if globs is None:
            return choose(main, None)
        others = [g for g in globs if g.startswith("controlnet.")]
        own = [g for g in globs if not g.startswith("controlnet.")]
        chosen = choose(main, own) if own else []
        chosen += [
            layer
            for layer in layers
            if layer.component
            and layer.reads_text
            and any(matches(layer.name, glob) for glob in (others if own else globs))
        ]
        if not chosen:
            raise ValueError(f"layers={wanted!r} does not match any layer that attends to text")
        return chosen

    # -- a run -------------------------------------------------------------------------------------

    def begin(self, sampling: Sampling) -> None:
        """Lay out a run's axes and its buffer.

        Raises:
            MemoryError: the maps would not fit; the error names options that would.
            ValueError: a word is in none of the prompts.
        """
        adapted = any(map(adapts, self.recordings))
        words = self.options.words
        positions = kept_positions(sampling.asked.prompts, words, adapted=adapted)
        frames, prompt_of = sampling.frames, sampling.asked.prompt_of
        layers, aims = self._layers(sampling)
        shape = Shape(
            layers=layers,
            images=sampling.images * frames,
            tokens=len(positions),
            steps=sampling.steps,
            keep=self.options.keep,
            dtype=self.options.dtype,
        )
        to = self.options.to
        check_room(shape, sampling.device, to)
        if isinstance(to, Path):
            to = new_folder(to)
        self._buffer = Buffer(shape, sampling.device, to)
        self._connect(self._buffer, aims, positions, sampling)
        sampling.run = Run(
            prompts=sampling.asked.prompts,
            prompt_of=tuple(prompt for prompt in prompt_of for _ in range(frames)),
            positions=positions,
            layers=layers,
            timesteps=() if sampling.schedule is None else sampling.schedule.timesteps,
            latent=sampling.latent,
            frames=frames,
            keep=self.options.keep,
            store=self._buffer.store,
            info={**sampling.facts, **self._facts(), "versions": dict(info_versions())},
            estimates=sampling.estimates,
            affinity=sampling.affinity,
            map_layers=sampling.family.map_layers,
        )
        self.runs.append(sampling.run)

    def _facts(self) -> dict[str, Any]:
        """Return what a run's maps are of, where it isn't the usual."""
        direction = self.options.direction
        return {} if direction == "image" else {"direction": direction}

    def _connect(
        self, buffer: Buffer, aims: Sequence[_Aim], positions: Sequence[int], sampling: Sampling
    ) -> None:
        tokens = _index(positions, sampling.device, sampling.compiled)
        for recording, aim in zip(self.recordings.values(), aims, strict=True):
            recording.tokens = tokens
            recording.buffer = buffer.views[aim.kept]
            recording.share = aim.share
            recording.frames = sampling.frames
            if sampling.compiled:  # one graph for prompts of every length
                mark_dynamic(recording.buffer, 2)

    def _layers(self, sampling: Sampling) -> tuple[tuple[Layer, ...], list[_Aim]]:
        """Return the kept layers, and for each recorded layer its target and weight."""
        every = [Layer(layer.name, sampling.grid(layer), layer.heads) for layer in self.recordings]
        single = list({layer.name: layer for layer in every}.values())  # denoisers that take turns
        if "layer" in self.options.keep:
            names = [layer.name for layer in single]
            return tuple(single), [_Aim(names.index(layer.name), None) for layer in every]
        groups: dict[Any, list[str]] = {}
        for layer in single:
            groups.setdefault((layer.grid, layer.middle), []).append(layer.name)
        kept = tuple(
            Layer(f"mean@{h}x{w}" + ".middle" * middle, (h, w), 1, tuple(names))
            for ((h, w), middle), names in groups.items()
        )
        order = list(groups)
        keys = [(layer.grid, layer.middle) for layer in every]
        return kept, [_Aim(order.index(key), 1 / len(groups[key])) for key in keys]

    def before_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Aim a component's layers at the conditional rows of this call."""
        if self._buffer is None or sampling.run is None:
            return
        images = sum(span.stop - span.start for span in call.conditional)
        for layer, recording in self.recordings.items():
            if layer.component == call.component:
                recording.live = True
                recording.rows = call.conditional
                recording.batch = call.rows
                recording.images = images
        if images < sampling.images:
            self._buffer.staging.zero_()  # guidance was switched off: negative prompts have no rows
        if sampling.schedule is None and call.begins_step and not call.component:
            self._buffer.end_step()
            sampling.run.timesteps += (timestep_of(call.timestep),)
            self._tell_done(sampling.run)

    def after_call(self, sampling: Sampling, call: DenoiserCall) -> None:
        """Collect the maps written by the layers."""
        if self._buffer is not None and sampling.run is not None:
            self._buffer.end_call(call.ends_step)
            self._tell_done(sampling.run)

    def _tell_done(self, run: Run) -> None:
        """Update the number of readable steps: an average is readable only at its end."""
        if self._buffer is not None and "step" in self.options.keep:
            run.done = self._buffer.steps

    def end(self, sampling: Sampling) -> None:
        """Complete a run, whether finished or cut short."""
        buffer, self._buffer, run = self._buffer, None, sampling.run
        for recording in self.recordings.values():
            recording.buffer = None
        if buffer is None or run is None:
            return
        if sampling.schedule is None:
            buffer.end_step()
        buffer.finish()
        run.done = buffer.steps
        run.store = buffer.store
        if buffer.folder is not None:
            write_header(buffer.folder.store.folder, run)

    def pictures(self, sampling: Sampling, images: list[Any], *, ended: bool) -> None:
        """Attach the pipeline's pictures to a run, streamed ones too."""
        run = sampling.run
        if run is None:
            return
        run.images[:] = images
        if ended and isinstance(run.store, FolderStore):
            write_header(run.store.folder, run)


def _check_joint(layers: Sequence[AttentionLayer]) -> None:
    """Raise ValueError unless the text reads the image in all layers."""
    for layer in layers:
        if layer.role != "joint" or not layer.text_reads:
            raise ValueError(
                f"direction='text' needs joint attention, where the text attends to the image; in "
                f"layer {layer.name} the text doesn't: leave it out"
            )


def _index(positions: Sequence[int], device: torch.device, compiled: bool) -> slice | Tensor:
    first, last = positions[0], positions[-1]
    if last - first + 1 == len(positions) and not compiled:
        return slice(first, last + 1)
    index = torch.tensor(positions, device=device)
    if compiled:
        mark_dynamic(index, 0)
    return index
