"""IP-Adapter: a prompt's images, and the attention calls that they add to a layer's own.

The image prompt has keys and values of its own, which the text's queries attend to in a softmax of
their own; the result is scaled and added to the text's (Ye et al. 2023, section 3.2).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from xattn.models.family import AttentionLayer, ImagePrompt
from xattn.processors.image_prompt import AddedCall, Source


def adapts(layer: AttentionLayer) -> bool:
    """Return whether an IP-Adapter is loaded into a layer."""
    return hasattr(getattr(layer.module, "processor", None), "to_k_ip")


def read_image_prompts(arguments: Mapping[str, Any]) -> tuple[ImagePrompt, ...]:
    """Return the image prompt of a UNet's call, one entry for each adapter."""
    more = arguments.get("added_cond_kwargs") or {}
    given = more.get("image_embeds")
    config = getattr(arguments.get("self"), "config", None)
    # diffusers sets the attribute when an adapter is loaded, and not the entry
    if given is None or getattr(config, "encoder_hid_dim_type", None) != "ip_image_proj":
        return ()
    embeds = given if isinstance(given, list | tuple) else [given[:, None]]
    masks = (arguments.get("cross_attention_kwargs") or {}).get("ip_adapter_masks")
    if masks is None:
        masks = [None] * len(embeds)
    elif isinstance(masks, Tensor):
        masks = list(masks[:, None])  # the older form: (adapters, 1, height, width)
    return tuple(
        ImagePrompt(int(each.shape[1]), mask) for each, mask in zip(embeds, masks, strict=True)
    )


def sources_of(layer: AttentionLayer, prompts: Sequence[ImagePrompt]) -> tuple[Source, ...]:
    """Return the images of all adapters, with their tokens on one axis behind one another.

    Raises:
        TypeError: the layer's processor is not one whose image tokens can be told apart.
    """
    processor: Any = layer.module.processor
    counts = getattr(processor, "num_tokens", None)
    if counts is None or not processor.__class__.__name__.endswith("2_0"):
        raise TypeError(
            f"words='image' knows IPAdapterAttnProcessor2_0 of UNets; layer {layer.name} has "
            f"{processor.__class__.__name__}, whose image tokens are not recorded: leave 'image' "
            "out of words="
        )
    found, start = [], 0
    for adapter, (prompt, tokens) in enumerate(zip(prompts, counts, strict=True)):
        for image in range(prompt.images):
            found.append(Source(adapter, image, slice(start, start + tokens)))
            start += tokens
    return tuple(found)


def added_calls(
    layer: AttentionLayer, prompts: Sequence[ImagePrompt], sources: Sequence[Source]
) -> tuple[AddedCall, ...]:
    """Return the attention calls that adapters add to a layer's, in their order.

    An adapter at scale 0 makes none, one with masks makes a call for each of its images.

    Args:
        layer: the layer.
        prompts: the image prompt of each adapter.
        sources: its images on the kept token axis.
    """
    processor: Any = layer.module.processor
    calls: list[AddedCall] = []
    for adapter, (prompt, scale) in enumerate(zip(prompts, processor.scale, strict=True)):
        own = tuple(n for n, source in enumerate(sources) if source.adapter == adapter)
        scales = scale if isinstance(scale, list) else [scale] * len(own)
        if not any(scales):
            continue
        if prompt.mask is None:
            calls.append(AddedCall(own, float(scales[0])))
            continue
        calls += [
            AddedCall((n,), float(scales[image]), prompt.mask[:, image])
            for image, n in enumerate(own)
        ]
    return tuple(calls)


def on_queries(mask: Tensor, queries: int) -> Tensor:
    """Return a region's mask at a layer's queries as diffusers brings it there, (queries,)."""
    from diffusers.image_processor import IPAdapterMaskProcessor

    found: Tensor = IPAdapterMaskProcessor.downsample(mask, 1, queries, 1)  # (1, queries, 1)
    return found[0, :, 0]
