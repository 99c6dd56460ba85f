"""How a tiny pipeline is put together of its parts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

LANGUAGE: dict[str, Any] = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "initializer_range": 0.3,  # so that words differ
}
"""The sizes of a language model."""

VISION: dict[str, Any] = {
    "depth": 1,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_heads": 2,
    "out_hidden_size": 16,
}
"""The sizes of what reads its pictures."""

SINGLES: dict[str, Any] = {
    "num_layers": 1,
    "num_single_layers": 1,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
}
"""A block of text and image in two streams, and one in a single stream."""


def quiet(pipe: Any) -> Any:
    pipe.set_progress_bar_config(disable=True)
    return pipe


def flow() -> FlowMatchEulerDiscreteScheduler:
    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def multistep_flow() -> UniPCMultistepScheduler:
    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def readers(*pairs: tuple[Any, Any]) -> dict[str, Any]:
    """Return tokenizers and their encoders by pipelines' names for the first, the second ..."""
    found: dict[str, Any] = {}
    for n, (tok, encoder) in enumerate(pairs, start=1):
        end = f"_{n}" if n > 1 else ""
        found |= {f"tokenizer{end}": tok, f"text_encoder{end}": encoder}
    return found


def assembled(
    cls: Any,
    transformer: Any,
    vae: Any,
    texts: Mapping[str, Any],
    given: Mapping[str, Any],
    *,
    scheduler: Any = None,
    **others: Any,
) -> Any:
    """Return a pipeline.

    Args:
        cls: its class.
        transformer: the denoiser.
        vae: the autoencoder.
        texts: what reads its prompts; see ``readers``.
        given: parts that take the place of these.
        scheduler: by default flow matching's.
        **others: further parts.
    """
    parts = {"transformer": transformer, "vae": vae, "scheduler": scheduler or flow()}
    return quiet(cls(**(parts | dict(texts) | others | dict(given))))
