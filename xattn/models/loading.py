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
        model: a folder or a hub id; the bundled Toyland model by default.
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
    if model is None:
        from xattn.toyland import demo

        return demo("cpu", dtype)
    folder = Path(model).expanduser()
    if folder.exists() and not (folder / "model_index.json").is_file():
        raise ValueError(
            f"model={model!r} has no model_index.json: it is no folder of a diffusers pipeline"
        )
    from diffusers import DiffusionPipeline  # AutoPipeline... imports every family there is

    from xattn.devices import DTYPE, no_bars

    try:
        name = str(folder) if folder.exists() else model
        with no_bars():
            return DiffusionPipeline.from_pretrained(name, **{DTYPE: dtype})
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())
        if folder.exists():
            raise ValueError(f"model={model!r} can't be loaded: {reason}") from error
        raise ValueError(
            f"model={model!r}: there is no such folder, and the hub gives no such model ({reason})"
        ) from error
