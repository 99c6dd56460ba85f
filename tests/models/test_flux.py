"""FLUX.1: text first, packed latents, guidance distilled or in two passes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import xattn
from tests.models.test_sd3 import projected
from tests.tiny import transformers as tiny
from xattn.models import family_of
from xattn.results.trace import Trace

LAWN = "a red car on a green lawn"
T5 = 24
"""Positions of the text in these tests."""


def draw(pipe: Any, prompt: str | list[str] = LAWN, **options: Any) -> Any:
    given: dict[str, Any] = {
        "height": 48,
        "width": 32,
        "num_inference_steps": 2,
        "max_sequence_length": T5,
        "output_type": "latent",
    }
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, generator=generator, **(given | options)).images


def recorded(pipe: Any, *args: Any, record: Any = None, **options: Any) -> tuple[Trace, Any]:
    with xattn.record(pipe, **(record or {})) as trace:
        image = draw(pipe, *args, **options)
    return trace, image


@contextmanager
def dense(pipe: Any) -> Iterator[dict[str, list[Tensor]]]:
    """Compute each layer's probabilities in float64 from what the layer was given.

    Yields:
        For each layer and call, (rows, heads, image queries, text keys).
    """
    found: dict[str, list[Tensor]] = {}
    ids: list[Tensor] = []

    def begin(_: Any, args: Any, given: dict[str, Any]) -> None:
        ids[:] = [torch.cat([given["txt_ids"], given["img_ids"]])]

    hooks = [pipe.transformer.register_forward_pre_hook(begin, with_kwargs=True)]
    for name, module in pipe.transformer.named_modules():
        if name.endswith(".attn"):

            def hook(attn: Any, args: Any, given: dict[str, Any], name: str = name) -> None:
                text = given.get("encoder_hidden_states")
                probs = joint(attn, given["hidden_states"], text, ids[0])
                found.setdefault(name, []).append(probs)

            hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield found
    finally:
        for each in hooks:
            each.remove()


def joint(attn: Any, states: Tensor, text: Tensor | None, ids: Tensor) -> Tensor:
    query = projected(attn.to_q, attn.norm_q, states, attn.heads)
    key = projected(attn.to_k, attn.norm_k, states, attn.heads)
    if text is not None:
        own = projected(attn.add_q_proj, attn.norm_added_q, text, attn.heads)
        query = torch.cat([own, query], 2)
        own = projected(attn.add_k_proj, attn.norm_added_k, text, attn.heads)
        key = torch.cat([own, key], 2)
    query, key = rotated(query, ids), rotated(key, ids)
    weights = (query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5).exp()
    return (weights / weights.sum(-1, keepdim=True))[:, :, T5:, :T5]


def rotated(states: Tensor, ids: Tensor) -> Tensor:
    """Turn each pair of channels by its position times its frequency (Su et al. 2021)."""
    angles = []
    for axis, size in enumerate((4, 4, 8)):
        frequencies = 10000.0 ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)
        angles.append(ids[:, axis].double()[:, None] * frequencies)
    angle = torch.cat(angles, 1)  # (positions, pairs)
    pairs = torch.view_as_complex(states.unflatten(-1, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.polar(torch.ones_like(angle), angle)).flatten(-2)


@pytest.mark.parametrize(
    ("options", "passes"),
    [({"num_images_per_prompt": 2}, 1), ({"negative_prompt": "a dog", "true_cfg_scale": 2.0}, 2)],
    ids=["distilled", "two passes"],
)
def test_maps_are_the_dense_softmaxs_columns(options: dict[str, Any], passes: int) -> None:
    pipe = tiny.flux()
    plain = draw(pipe, **options)
    how = {"keep": ("step", "layer", "head"), "dtype": torch.float32, "words": range(T5)}
    with dense(pipe) as probs:
        trace, image = recorded(pipe, record=how, **options)
    run = trace.run
    assert torch.equal(image, plain)
    assert trace.prompts == (LAWN,)
    assert [layer.name for layer in run.layers] == list(probs)
    for n, layer in enumerate(run.layers):
        kept = run.maps(n).flatten(-2)  # (steps, images, heads, tokens, queries)
        truth = torch.stack(probs[layer.name])[::passes]
        torch.testing.assert_close(kept.double(), truth.transpose(-1, -2), atol=1e-5, rtol=0)
    assert max(float(p.max()) for each in probs.values() for p in each) > 0.05


def test_bfloat16_keeps_the_image_and_finds_each_step() -> None:
    pipe = tiny.flux().to(torch.bfloat16)
    plain = draw(pipe, num_inference_steps=7)
    trace, image = recorded(pipe, num_inference_steps=7)
    assert torch.equal(image, plain)
    assert trace.timesteps == tuple(pipe.scheduler.timesteps.tolist())


def test_words_are_t5s_of_the_second_prompt() -> None:
    pipe = tiny.flux()
    trace, _ = recorded(pipe, prompt_2="the blue boat")
    assert trace.words == ("the", "blue", "boat")
    (position,) = trace.run.prompts[0].positions("blue")
    ids = pipe.tokenizer_2("the blue boat").input_ids
    assert pipe.tokenizer_2.decode([ids[position]]).strip() == "blue"


def test_a_reference_behind_the_image_has_keys_and_no_queries_of_the_grid() -> None:
    family, model = family_of(model := tiny.flux_transformer()), model
    layer = family.layers(model)[0]
    ids = torch.tensor([[k, y, x] for k in (0, 1) for y in range(3 + k) for x in range(2)])
    call = family.read(
        {
            "hidden_states": torch.zeros(1, 14, 16),
            "encoder_hidden_states": torch.zeros(1, 5, 32),
            "timestep": torch.tensor([0.5]),
            "img_ids": ids.float(),
        }
    )
    assert (call.latent, float(call.timestep)) == ((6, 4), 500.0)
    places = family.places(call, layer, 19, 19)
    assert places is not None
    assert places[0].queries == slice(5, 11)
    assert (places[0].text, places[0].image) == (slice(0, 5), slice(5, 19))
    with pytest.raises(RuntimeError, match="20 queries and 20 keys where 5 of the text and 14"):
        family.places(call, layer, 20, 20)


@pytest.mark.parametrize("options", [{"previews": True}, {"negative": True}])
def test_what_it_lacks_is_refused_in_words(options: dict[str, bool]) -> None:
    (name,) = options
    with pytest.raises(ValueError, match=f"{name}=True"):
        recorded(tiny.flux(), record=options)
