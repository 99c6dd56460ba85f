"""LTX-2: Gemma's words in cross-attention of its own, over the frames of a video with sound."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from xattn.models.family import NOTHING, Axis, DenoiserCall
from xattn.models.ltx_video import LTXVideo
from xattn.text.tokenize import PLAIN, Template


@dataclass(frozen=True)
class LTX2(LTXVideo):
    """The family of LTX-2 (Lightricks 2026); recorded is what the video reads, not the sound.

    Between ``encode_prompt`` and the denoiser a small transformer moves the valid positions to the
    front and fills the axis up with learned registers, which are keys, too. Guidance of its own
    (``stg_scale``, ``modality_scale``) calls the denoiser again: those calls aren't recorded.
    Given frames and references stand behind the video's positions.
    """

    classes: tuple[str, ...] = ("LTX2VideoTransformer3DModel",)
    draws: str = "LTX-2"
    pipelines: str = "LTX2Pipeline, LTX2ImageToVideoPipeline or LTX2ConditionPipeline"

    @contextmanager
    def watching(self, pipe: Any) -> Iterator[None]:
        """Note which text the connectors' output is of."""

        def note(_: Any, args: tuple[Any, ...], given: dict[str, Any], output: Any) -> None:
            _encoded[output[0]] = args[0] if args else given["text_encoder_hidden_states"]

        hook = pipe.connectors.register_forward_hook(note, with_kwargs=True)
        try:
            yield
        finally:
            hook.remove()

    def read(self, arguments: Mapping[str, Any], component: str = "") -> DenoiserCall:
        """Read a call, by the text that was encoded."""
        call = super().read(arguments, component)
        perturbed = arguments.get("spatio_temporal_guidance_blocks") is not None
        if perturbed or arguments.get("isolate_modalities"):
            return replace(call, kind="guidance")
        return replace(call, states=_encoded.get(call.states, call.states))

    def _fits(self, own: slice, whole: slice) -> bool:
        """Return whether a sequence can have a video's positions there: at its beginning."""
        return bool(own.start == 0 and own.stop <= whole.stop)

    def axes(
        self, pipe: Any, states: Tensor | None = None, given: Mapping[str, Any] = NOTHING
    ) -> tuple[Axis, ...]:
        """Return Gemma's positions, from the first valid one on."""
        moved = pipe.connectors.video_connector.learnable_registers is not None
        template = PLAIN if moved else Template(left=True)

        def convert(text: str, tokenizer: Any) -> str:
            return text.strip()

        return (Axis((pipe.tokenizer,), convert=convert, template=template),)


_encoded: Any = WeakIdKeyDictionary()  # what the connectors made of a text, and that text
