"""``live(unet)``: heat maps with gradients, inside the user's own denoiser calls."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from xattn.guidance.teaching import SupervisedMaps
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


@contextmanager
def supervised(
    model: Any,
    *,
    prompt: str | Sequence[str],
    tokenizer: Any = None,
    words: str | int | Sequence[str | int] | None = None,
    layers: str | Sequence[str] | None = None,
    rows: slice | None = None,
) -> Iterator[SupervisedMaps]:
    """Teach a denoiser where words belong: ``live`` with losses against masks, for training.

    Put it around the denoiser's call of a training step; with accelerate pass the unwrapped model.
    Gradients reach LoRA or weights, also with gradient accumulation and checkpointing.

    Args:
        model: as for ``live``.
        prompt: as for ``live``.
        tokenizer: as for ``live``.
        words: as for ``live``.
        layers: as for ``live``; TokenCompose teaches the middle block and the decoder's layers.
        rows: as for ``live``.

    Yields:
        ``SupervisedMaps`` of the latest call: live maps with ``token_loss`` and ``pixel_loss``.

    Raises:
        MemoryError: before a call, if its maps would not fit.
        TypeError: the model is of no known family.
        ValueError: an argument is missing, or a word is in none of the prompts.

    Example:
        >>> with xattn.supervised(unet, tokenizer=tokenizer, prompt=captions) as maps:
        ...     loss = F.mse_loss(unet(noisy, t, states).sample, noise)
        ...     loss = loss + 1e-3 * maps.token_loss(masks) + 5e-5 * maps.pixel_loss(masks)
        ...     loss.backward()
    """
    wanted = [words] if isinstance(words, str | int) else words
    recorder = LiveRecorder(wanted, layers)
    with opened(CallsOrigin(model, tokenizer, prompt, rows), [recorder]):
        yield SupervisedMaps(recorder)
