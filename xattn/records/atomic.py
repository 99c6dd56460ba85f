"""Files written whole or not at all."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file


def aside(path: Path, write: Callable[[str], Any]) -> None:
    """Write to a new file beside ``path``, then rename it: whole, or not at all."""
    tmp = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        tmp.touch()
        usual = tmp.stat().st_mode  # safetensors creates files that only their owner can read
        write(str(tmp))
        tmp.chmod(usual)
        tmp.replace(path)
    finally:
        tmp.unlink(missing_ok=True)


def save_ordered(
    tensors: Mapping[str, torch.Tensor], path: str, metadata: Mapping[str, str]
) -> None:
    """Write a safetensors file whose bytes depend only on its content.

    The library itself writes the metadata in a random order.
    """
    save_file(dict(tensors), path, metadata=dict(metadata))
    with open(path, "r+b") as file:
        size = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(size))
        header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
        text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
        if len(text) <= size:  # padded with spaces, like the library does
            file.seek(8)
            file.write(text.ljust(size))


def write_bytes(data: bytes, path: str) -> None:
    """Write bytes to a path."""
    Path(path).write_bytes(data)
