"""Pipelines by name: the bundled model, a folder or a hub model, on a device, in a dtype."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any, Literal

Offload = Literal["model", "sequential"]


DTYPES = ("float32", "float16", "bfloat16")


def load_pipeline(
    model: str | None = None,
    *,
    device: str | None = None,
    dtype: str | None = None,
    offload: Offload | None = None,
) -> Any:
    """Load a text-to-image pipeline, ready for use.

    Args:
        model: a folder, a hub id, or a bundled Toyland model: "unet" (the default),
            "contextual" or "mmdit"; a folder of such a name goes before.
        device: a name such as "cpu" or "cuda:1"; accelerate's choice by default.
        dtype: "float32", "float16" or "bfloat16"; half precision on an accelerator by default.
        offload: "model" keeps weights in CPU memory and moves each model to the device for its
            turn; "sequential" moves layer by layer: slow, with the least memory.

    Raises:
        ValueError: the model, device or dtype does not exist, or the installed diffusers is too
            old for the model.
    """
    import torch

    from xattn.devices import usual_device

    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is not one of {', '.join(DTYPES)}")
    try:
        place = torch.device(device) if device else usual_device()
    except RuntimeError:
        raise ValueError(f"device={device!r} is not a device; use cpu, cuda:1 or mps") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: there is no CUDA device here; omit it, or use cpu")
    if offload and place.type == "cpu":
        raise ValueError(f"offload={offload!r} needs an accelerator to offload from; this is a CPU")
    kind = getattr(torch, dtype or ("float32" if place.type == "cpu" else "float16"))
    pipe = _named(model, kind)
    if offload == "model":
        pipe.enable_model_cpu_offload(device=place)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=place)
    else:
        pipe = pipe.to(place)
    return pipe


def _named(model: str | None, dtype: Any) -> Any:
    from xattn.devices import DTYPE, no_bars
    from xattn.toyland.bundle import MODELS, demo

    name: Any = model or "unet"
    folder = Path(name).expanduser()
    if model is None or (name in MODELS and not folder.exists()):
        return demo(name, "cpu", dtype)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ValueError(
            f"model={model!r} has no model_index.json: it is not the folder of a diffusers pipeline"
        )
    from diffusers import DiffusionPipeline  # AutoPipeline... would import every family

    try:
        name = str(folder) if folder.exists() else name
        with no_bars():
            return DiffusionPipeline.from_pretrained(name, **_absent(folder), **{DTYPE: dtype})
    except (AttributeError, ImportError, RuntimeError) as error:
        if not (lacking := _lacking(error)):
            raise
        raise ValueError(f"model={name!r} cannot be loaded: {lacking}") from error
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        if folder.exists():
            raise ValueError(f"model={model!r} cannot be loaded: {reason}") from error
        raise ValueError(
            f"model={model!r} is not a folder here, and the hub doesn't have it or can't be "
            f"reached ({reason})"
        ) from error


def _lacking(error: Exception) -> str:
    """Return what the installed diffusers lacks for a model; empty for any other error."""
    import diffusers
    import transformers

    text = " ".join(str(error).split())
    missing = re.match(r"module '?diffusers\S* has no attribute '?(\w+)", text)
    if not missing and not text.startswith("Failed to import diffusers"):
        return ""
    return (
        f"diffusers {diffusers.__version__} with transformers {transformers.__version__} "
        f"{f'lacks {missing[1]}' if missing else f'does not have it ({text})'}; try "
        "`pip install --upgrade diffusers transformers`"
    )


def _absent(folder: Path) -> dict[str, None]:
    """Return the text encoders and tokenizers that a pipeline's folder was saved without.

    ``from_pretrained`` asks for Stable Diffusion 3's T5 unless it is told to go without.
    """
    index = folder / "model_index.json"
    if not index.is_file():
        return {}
    entries = json.loads(index.read_text(encoding="utf-8"))
    text = (name for name in entries if name.startswith(("text_encoder", "tokenizer")))
    return {name: None for name in text if entries[name] == [None, None]}
