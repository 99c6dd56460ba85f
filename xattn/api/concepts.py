"""Words that nobody prompted, encoded by a pipeline's own text encoder."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch

from xattn.instruments.concepts import Concept
from xattn.models.denoisers import ASKED
from xattn.records.concepts import BACKGROUND
from xattn.session.pipeline import PipelineOrigin
from xattn.text.matching import check_text, words


def concept_names(also: str | Sequence[str] | None) -> list[str]:
    """Return the concepts to look for, each once, the background last; none where none is asked.

    Raises:
        ValueError: a concept is not a text with a word in it.
    """
    if also is None:
        return []
    several = [also] if isinstance(also, str) else list(also)
    for text in several:
        if not isinstance(text, str) or not words(check_text(text, "a concept")):
            raise ValueError(f"also={also!r}: each concept is a text with a word in it")
    named = [text for text in dict.fromkeys(several) if text != BACKGROUND]
    if not named:
        raise ValueError(f"also={also!r} has no concept beside the background; name one")
    return [*named, BACKGROUND]


@torch.no_grad()
def encoded_concepts(pipe: Any, names: Sequence[str]) -> list[Concept]:
    """Encode each concept as a prompt of its own; the background is the empty prompt.

    Raises:
        TypeError: there is no text encoder, as in a loop of one's own.
        ValueError: how the model's layers would read the concepts isn't known.
    """
    if not hasattr(pipe, "encode_prompt"):
        raise TypeError("also= needs a pipeline, whose text encoder reads the concepts")
    texts = ["" if name == BACKGROUND else name for name in names]
    origin = PipelineOrigin(pipe)
    if not set(origin.family.classes).intersection(ASKED):
        raise ValueError(
            f"also= can't be had with {type(origin.denoiser).__name__}: how layers read a text of "
            f"its own is known for {', '.join(ASKED)} alone; leave it out"
        )
    result = encode_prompts(pipe, texts, torch.device(pipe._execution_device))
    asked = origin.asked_of(texts, result)
    assert asked.embeds is not None
    found = []
    for name, prompt, states in zip(names, asked.prompts, asked.embeds, strict=True):
        own = prompt.own_positions or (0 if prompt.end is None else prompt.end,)
        found.append(Concept(name, states.clone(), tuple(own)))
    return found


def encode_prompts(pipe: Any, texts: Sequence[str], device: torch.device) -> Any:
    """Call the pipeline's ``encode_prompt`` for the prompts alone, without guidance."""
    known = inspect.signature(type(pipe).encode_prompt).parameters
    given = {
        "prompt": list(texts),
        "prompt_2": None,
        "prompt_3": None,
        "device": device,
        "num_images_per_prompt": 1,
        "do_classifier_free_guidance": False,
    }
    return pipe.encode_prompt(**{name: each for name, each in given.items() if name in known})
