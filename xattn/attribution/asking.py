"""Asking the denoiser: its clean estimates with each subset of the words, batched and kept."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from xattn.attribution.states import States
from xattn.attribution.store import EstimateStore, bits
from xattn.attribution.texts import Texts, of_rows
from xattn.models.probing import Probed

Subset = tuple[bool, ...]


class Asking:
    """The denoiser's clean estimates at some states, by which words are present.

    Each subset costs one row of the denoiser at each state, once: estimates are kept, in memory
    and, where a store is given, on disk.

    Args:
        probed: the family of the pipeline's denoiser.
        texts: the prompt whose words can be absent.
        states: the noised latents.
        batch: rows of one call.
        store: where estimates are kept for another run.
    """

    def __init__(
        self,
        probed: Probed,
        texts: Texts,
        states: States,
        batch: int = 16,
        store: EstimateStore | None = None,
    ) -> None:
        self.probed, self.texts, self.states = probed, texts, states
        self.batch, self.store = batch, store
        self.pipe = texts.pipe
        self.asked = 0
        self._known: dict[Subset, Tensor] = {}
        self._full: Tensor | None = None

    @property
    def players(self) -> int:
        """Number of words."""
        return len(self.texts.players)

    @property
    def full(self) -> Tensor:
        """The estimates of the whole prompt, (states, channels, height, width)."""
        if self._full is None:
            present = torch.ones(1, self.players, dtype=torch.bool)
            self._full = self._called(present)[0]
            self._known[(True,) * self.players] = self._full
            if self.store is not None:
                self.store.open_for(self.texts, self.states, self._full)
        return self._full

    def missing(self, present: Tensor) -> list[Subset]:
        """Return the subsets among these that are not known yet, each once."""
        if self.store is not None:
            _ = self.full  # names the store's files
        wanted = dict.fromkeys(tuple(map(bool, row)) for row in present.tolist())
        new = [subset for subset in wanted if subset not in self._known]
        return [subset for subset in new if not self._read(subset)]

    def estimates(self, present: Tensor) -> Tensor:
        """Return the clean estimates for some subsets, (rows, states, channels, height, width).

        Args:
            present: bool (rows, words).
        """
        _ = self.full
        new = self.missing(present)
        with self.progress(len(new)) as advance:
            for start in range(0, len(new), self.batch):
                some = new[start : start + self.batch]
                for subset, found in zip(some, self._called(torch.tensor(some)), strict=True):
                    self._keep(subset, found)
                advance(len(some))
        return torch.stack([self._known[tuple(map(bool, row))] for row in present.tolist()])

    def estimate_of(self, state: int, states: Tensor) -> Tensor:
        """Return the clean estimates at one state for given text states, with their gradient.

        Args:
            state: index of the state.
            states: text embeddings, (rows, tokens, channels); the rest is the whole prompt's.
        """
        encoded = (states, *of_rows(self.texts.full, len(states))[1:])
        return self._estimate(state, len(states), encoded)

    @torch.no_grad()
    def _called(self, present: Tensor) -> Tensor:
        encoded = self.texts.encoded(present)
        each = [self._estimate(s, len(present), encoded) for s in range(len(self.states))]
        return torch.stack(each, dim=1).cpu()  # (rows, states, channels, height, width)

    def _estimate(self, state: int, rows: int, encoded: tuple[Any, ...]) -> Tensor:
        latents = self.states.latents[state : state + 1].expand(rows, -1, -1, -1)
        latents = latents.to(encoded[0].device, encoded[0].dtype)
        timestep, level = self.states.timesteps[state], self.states.levels[state]
        output = self.probed.denoise(self.pipe, latents, timestep, encoded)
        self.asked += rows
        return self.probed.estimate(self.pipe.scheduler, latents, output, level)

    def _keep(self, subset: Subset, found: Tensor) -> None:
        self._known[subset] = found
        if self.store is not None:
            self.store.write(bits(subset), found)

    def _read(self, subset: Subset) -> bool:
        found = None if self.store is None else self.store.read(bits(subset))
        if found is not None:
            self._known[subset] = found
        return found is not None

    @contextlib.contextmanager
    def progress(self, rows: int) -> Iterator[Any]:
        """Show the pipeline's own progress bar over denoiser rows, where there are any to come."""
        if not rows:
            yield lambda done: None
            return
        with self.pipe.progress_bar(total=rows * len(self.states)) as bar:
            yield lambda done: bar.update(done * len(self.states))
