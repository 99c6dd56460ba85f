"""The concepts' own stream through the blocks of a joint-attention transformer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from xattn.models.denoisers import STREAMED
from xattn.models.family import AttentionLayer, DenoiserCall
from xattn.processors.concepts import ConceptStream
from xattn.processors.wrapping import chain_of


def has_stream(layer: AttentionLayer) -> bool:
    """Return whether a joint layer gives the text outputs, which concepts' are found by."""
    module: Any = layer.module
    out = getattr(module, "to_add_out", None)
    only = getattr(module, "context_pre_only", None)
    return layer.role == "joint" and out is not None and not only


def check_blocks(denoiser: nn.Module) -> None:
    """Raise ValueError unless a transformer's blocks can pass a text of their own."""
    model: Any = getattr(denoiser, "_orig_mod", denoiser)
    if not {kind.__name__ for kind in type(model).__mro__}.intersection(STREAMED):
        raise ValueError(
            f"also= can't be had with {type(model).__name__}: how its blocks pass a text of their "
            f"own is known for {' and '.join(STREAMED)} alone"
        )


class ConceptPasses:
    """Hooks that run each block once more for the concepts, before its own call.

    Each block receives the concepts that the block before made, as it does with text; the image is
    what the block itself is about to receive, and what the extra pass makes of it is discarded.

    Args:
        denoiser: the transformer.
        streams: the handlers of its joint layers.
        call: the denoiser call about to be made.
        states: the concepts' embeddings, (concepts, channels).
    """

    def __init__(
        self,
        denoiser: nn.Module,
        streams: Mapping[AttentionLayer, ConceptStream],
        call: DenoiserCall,
        states: Tensor,
    ) -> None:
        model: Any = getattr(denoiser, "_orig_mod", denoiser)
        embedder = model.context_embedder
        self.rows = call.conditional[0]
        with torch.no_grad():
            self.concepts: Tensor = embedder(states.to(next(embedder.parameters()).dtype))[None]
        self.hooks = []
        for layer, stream in streams.items():
            stream.count = len(states)
            block = model.get_submodule(layer.name.rpartition(".")[0])
            hook = block.register_forward_pre_hook(self._before(stream), with_kwargs=True)
            self.hooks.append(hook)

    def remove(self) -> None:
        """Remove the hooks."""
        for hook in self.hooks:
            hook.remove()

    def _before(self, stream: ConceptStream) -> Any:
        def before(block: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            with torch.no_grad(), _Alone(block, stream):
                self.concepts = self._passed(block, stream, kwargs)

        return before

    def _passed(self, block: Any, stream: ConceptStream, kwargs: dict[str, Any]) -> Tensor:
        image: Tensor = kwargs["hidden_states"][self.rows]
        given = dict(kwargs)
        given["hidden_states"] = image
        given["encoder_hidden_states"] = self.concepts.expand(len(image), -1, -1).to(image.dtype)
        given["temb"] = kwargs["temb"][self.rows]
        rotary = kwargs.get("image_rotary_emb")
        if rotary is not None:  # all of the text stands at one place
            text = kwargs["encoder_hidden_states"].shape[1]
            given["image_rotary_emb"] = tuple(
                torch.cat([each[:1].expand(stream.count, -1), each[text:]]) for each in rotary
            )
        stream.image_first = rotary is None
        passed: Tensor = block.forward(**given)[0]
        return passed


class _Alone:
    """A context in which one handler alone is live in a block's layers."""

    def __init__(self, block: nn.Module, stream: ConceptStream) -> None:
        self.stream = stream
        found = [chain_of(getattr(module, "processor", None)) for module in block.modules()]
        self.chains = [chain for chain in found if chain is not None]
        self.before: list[tuple[Any, bool]] = []

    def __enter__(self) -> None:
        for chain in self.chains:
            self.before.append((chain, chain.live))
            for handler in chain.handlers:
                self.before.append((handler, handler.live))
                handler.live = handler is self.stream
            chain.wake()
        self.stream.asking = True

    def __exit__(self, *error: object) -> None:
        self.stream.asking = False
        for each, live in self.before:
            each.live = live
