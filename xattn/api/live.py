"""``live(unet)``: heat maps with gradients, inside the user's own denoiser calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from xattn.instruments.live import LiveMaps, LiveRecorder
from xattn.session.calls import CallsOrigin
from xattn.session.session import opened


@contextmanager
def live(
    model: Any,
    *,
    prompt: str | Sequence[str],
    tokenizer: Any = None,
    words: str | int | Sequence[str | int] | None = None,
    layers: str | Sequence[str] | None = None,
    rows: slice | None = None,
) -> Iterator[LiveMaps]:
    """Make differentiable heat maps of words inside single denoiser calls.

    The model's output stays its own, bit for bit. Gradients reach whatever the maps depend on and
    requires them: latents, embeddings, LoRA or weights. Only the words' columns of the attention
    are computed; go back along the maps inside the block, and before the next call.

    Args:
        model: a denoiser (UNet, SD3's or FLUX's transformer), or the pipeline that holds it.
        prompt: the text of the call's embeddings; several for a batch, one for each image.
        tokenizer: the model's tokenizer; for SDXL and SD3 all of the pipeline's, in a list. A
            pipeline has its own.
        words: the words, phrases or token positions to keep; all of the prompts' by default.
        layers: names or globs of layers; by default those that heat maps are made of.
        rows: the rows of the batch that follow the prompts. By default all, or the second half
            where there are twice as many rows as prompts.

    Yields:
        ``LiveMaps`` of the latest call: ``maps["car"]`` is (images, height, width).

    Raises:
        MemoryError: before a call, if its maps would not fit; ``maps.nbytes`` is what they keep.
        TypeError: the model is of no known family.
        ValueError: an argument is missing, or a word is in none of the prompts.

    Example:
        >>> with xattn.live(pipe, prompt="a red car") as maps:
        ...     pipe.unet(latents.requires_grad_(), t, states)
        ...     maps["car"].sum().backward()
    """
    wanted = [words] if isinstance(words, str | int) else words
    recorder = LiveRecorder(wanted, layers)
    with opened(CallsOrigin(model, tokenizer, prompt, rows), [recorder]):
        yield LiveMaps(recorder)
