"""Answers on disk, so that an attribution that was interrupted goes on where it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Generator, Tensor

from xattn.attribution.states import States
from xattn.attribution.texts import Texts
from xattn.records.atomic import aside, save_ordered


class Answers:
    """A folder with a file for each answer to a question, in a folder of the question's own.

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

    def open(self, *question: Any) -> None:
        """Name the folder of a question, by all that makes it another one.

        Args:
            *question: texts, numbers, tensors, pictures, or lists and mappings of them.
        """
        self.own = self.folder / digest(question)

    def path(self, name: str) -> Path:
        """Return the file of an answer."""
        return self.own / f"{name}.safetensors"

    def read(self, name: str) -> Tensor | None:
        """Return an answer, or None where there is no whole file."""
        path = self.path(name)
        try:
            return load_file(path)["estimates"] if path.exists() else None
        except (SafetensorError, KeyError, OSError):
            return None  # asked again, and written anew

    def write(self, name: str, answer: Tensor) -> None:
        """Write an answer, whole or not at all."""
        self.own.mkdir(parents=True, exist_ok=True)
        tensors = {"estimates": answer.contiguous()}
        aside(self.path(name), lambda path: save_ordered(tensors, path, {"format": "xattn"}))


class EstimateStore(Answers):
    """A folder with the clean estimates of each subset of the words, a file each.

    Files belong to the question: its prompt, words, states, and what the model answers to the
    whole prompt. Another model, seed or level makes a folder of its own beside it.
    """

    def open_for(self, texts: Texts, states: States, full: Tensor) -> None:
        """Name the folder of a question.

        Args:
            texts: the prompt and its words.
            states: the noised latents.
            full: the whole prompt's estimates.
        """
        said = (texts.prompt.text, texts.absent, [p.positions for p in texts.players])
        self.open(said, states.levels, states.latents, full)


def bits(subset: Sequence[bool]) -> str:
    """Return a subset as a file's name: a digit for each word."""
    return "".join("1" if had else "0" for had in subset)


def digest(value: Any) -> str:
    """Return a name for a value made of texts, numbers, tensors and pictures."""
    found = hashlib.sha256()
    for part in _parts(value):
        found.update(str(len(part)).encode() + b":" + part)
    return found.hexdigest()[:16]


def _parts(value: Any) -> list[bytes]:
    """Return the bytes of a value's parts, each behind the name of its kind."""
    kind = type(value).__name__.encode()
    if isinstance(value, Mapping):
        return [kind, *(part for item in value.items() for part in _parts(list(item)))]
    if isinstance(value, list | tuple):
        return [kind, str(len(value)).encode(), *(part for each in value for part in _parts(each))]
    if isinstance(value, Tensor):
        value = value.detach().float().cpu().numpy()
    if isinstance(value, Generator):
        return [kind, value.get_state().numpy().tobytes()]
    if isinstance(value, np.ndarray | Image.Image):
        array = np.ascontiguousarray(value)
        return [kind, str(array.shape).encode(), array.tobytes()]
    return [kind, repr(value).encode()]
