"""Pipelines by name: the bundled model, a folder, a model of the hub; on a device, in a dtype."""

from __future__ import annotations

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
    """Gives a text-to-image pipeline that is ready to draw.

    Args:
        model: a folder, a hub id, or a bundled Toyland model: "unet" (the default),
            "contextual" or "mmdit"; a folder of such a name goes before.
        device: such as "cpu" or "cuda:1"; accelerate's choice by default.
        dtype: "float32", "float16" or "bfloat16"; half precision on an accelerator by default.
        offload: keeps the weights in the CPU's memory, and brings each "model" to the device when
            it is its turn, or each layer ("sequential", slow, and needs the least memory).

    Raises:
        ValueError: there is no such model, device or dtype.
    """
    import torch

    from xattn.devices import usual_device

    if dtype is not None and dtype not in DTYPES:
        raise ValueError(f"dtype={dtype!r} is none of {', '.join(DTYPES)}")
    try:
        place = torch.device(device) if device else usual_device()
    except RuntimeError:
        raise ValueError(f"device={device!r} is no device; give cpu, cuda, cuda:1, mps") from None
    if place.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device={device!r}: there is no CUDA device here; leave it out, or cpu")
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
    from xattn.toyland.bundle import DTYPE, MODELS, demo, no_bars

    name: Any = model or "unet"
    folder = Path(name).expanduser()
    if model is None or (name in MODELS and not folder.exists()):
        return demo(name, "cpu", dtype)
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ValueError(
            f"model={model!r} has no model_index.json: it is no folder of a diffusers pipeline"
        )
    from diffusers import DiffusionPipeline  # AutoPipeline... imports every family there is

    try:
        name = str(folder) if folder.exists() else name
        with no_bars():
            return DiffusionPipeline.from_pretrained(name, **{DTYPE: dtype})
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        if folder.exists():
            raise ValueError(f"model={model!r} can't be loaded: {reason}") from error
        raise ValueError(
            f"model={model!r}: there is no such folder, and the hub gives no such model ({reason})"
        ) from error


def size_of(text: str) -> tuple[int, int]:
    """Reads a size in pixels, "512" or "768x512" (width x height), as (height, width).

    Raises:
        ValueError: it is neither.
    """
    sides = text.lower().replace("×", "x").split("x")
    if len(sides) > 2 or not all(side.strip().isdecimal() and int(side) > 0 for side in sides):
        raise ValueError(f"{text!r} is no size: give 512, or 768x512 (width x height)")
    width, height = int(sides[0]), int(sides[-1])
    return height, width
