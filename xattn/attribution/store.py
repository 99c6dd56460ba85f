"""Estimates on disk, so that an attribution that was interrupted goes on where it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from xattn.attribution.states import States
from xattn.attribution.texts import Texts
from xattn.records.atomic import aside, save_ordered


class EstimateStore:
    """A folder with the clean estimates of each subset of the words, a file each.

    Files belong to the question: its prompt, words, states, and what the model answers to the
    whole prompt. Another model, seed or level makes a folder of its own beside it.

    Args:
        folder: where to; made when it is first written to.

    Raises:
        ValueError: it is a file.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder).expanduser()
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"cache={os.fspath(folder)!r} is a file; give a folder")
        self.own = self.folder

    def open(self, texts: Texts, states: States, full: Tensor) -> None:
        """Name the folder of a question.

        Args:
            texts: the prompt and its words.
            states: the noised latents.
            full: the whole prompt's estimates.
        """
        said = (texts.prompt.text, texts.absent, [p.positions for p in texts.players])
        digest = hashlib.sha256(repr((said, states.levels)).encode())
        for tensor in (states.latents, full):
            digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
        self.own = self.folder / digest.hexdigest()[:16]

    def path(self, subset: Sequence[bool]) -> Path:
        """Return the file of a subset."""
        bits = "".join("1" if had else "0" for had in subset)
        return self.own / f"{bits}.safetensors"

    def read(self, subset: Sequence[bool]) -> Tensor | None:
        """Return a subset's estimates, or None where there is no whole file."""
        path = self.path(subset)
        try:
            return load_file(path)["estimates"] if path.exists() else None
        except (SafetensorError, KeyError, OSError):
            return None  # asked again, and written anew

    def write(self, subset: Sequence[bool], estimates: Tensor) -> None:
        """Write a subset's estimates, whole or not at all."""
        self.own.mkdir(parents=True, exist_ok=True)
        tensors = {"estimates": estimates.contiguous()}
        aside(self.path(subset), lambda path: save_ordered(tensors, path, {"format": "xattn"}))
