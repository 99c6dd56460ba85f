"""Stable Diffusion 3: words at two places, image and text in one attention."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusion3Img2ImgPipeline
from PIL import Image
from torch import Tensor

import xattn
from tests.tiny import transformers as tiny
from xattn.models import family_of
from xattn.results.trace import Trace

LAWN = "a red car on a green lawn"
T5 = 24
"""Positions of T5's in these tests, behind the CLIPs' 77."""


def draw(pipe: Any, prompt: str | list[str] = LAWN, **options: Any) -> Any:
    given: dict[str, Any] = {
        "height": 48,
        "width": 32,
        "num_inference_steps": 3,
        "guidance_scale": 5.0,
        "max_sequence_length": T5,
        "output_type": "latent",
    }
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt, generator=generator, **(given | options)).images


def recorded(pipe: Any, *args: Any, record: Any = None, **options: Any) -> tuple[Trace, Any]:
    with xattn.record(pipe, **(record or {})) as trace:
        image = draw(pipe, *args, **options)
    return trace, image


# -- exactness


@contextmanager
def dense(pipe: Any) -> Iterator[dict[str, list[Tensor]]]:
    """Compute each joint layer's probabilities in float64 from what the layer was given.

    Yields:
        For each layer and call, (rows, heads, image queries, text keys).
    """
    found: dict[str, list[Tensor]] = {}
    hooks = []
    for name, module in pipe.transformer.named_modules():
        if name.endswith(".attn"):

            def hook(attn: Any, args: Any, given: dict[str, Any], name: str = name) -> None:
                probs = joint(attn, given["hidden_states"], given["encoder_hidden_states"])
                found.setdefault(name, []).append(probs[..., given["hidden_states"].shape[1] :])

            hooks.append(module.register_forward_pre_hook(hook, with_kwargs=True))
    try:
        yield found
    finally:
        for each in hooks:
            each.remove()


def joint(attn: Any, image: Tensor, text: Tensor) -> Tensor:
    query = projected(attn.to_q, attn.norm_q, image, attn.heads)
    keys = [
        projected(attn.to_k, attn.norm_k, image, attn.heads),
        projected(attn.add_k_proj, attn.norm_added_k, text, attn.heads),
    ]
    key = torch.cat(keys, 2)
    logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
    weights = logits.exp()
    return weights / weights.sum(-1, keepdim=True)  # (rows, heads, image, image and text)


def projected(linear: Any, norm: Any, states: Tensor, heads: int) -> Tensor:
    out = states.double() @ linear.weight.double().T + linear.bias.double()
    out = out.unflatten(-1, (heads, -1)).transpose(1, 2)
    if norm is not None:
        size = (out.square().mean(-1, keepdim=True) + norm.eps).sqrt()
        out = out / size * norm.weight.double()
    return out


@pytest.mark.parametrize(
    ("config", "t5", "options"),
    [
        ({}, True, {}),
        ({"qk_norm": None, "dual_attention_layers": ()}, True, {"num_images_per_prompt": 2}),
        ({}, False, {"guidance_scale": 1.0, "height": 32}),
    ],
    ids=["SD3.5", "SD3", "without T5 and guidance"],
)
def test_maps_are_the_dense_softmaxs_columns(
    config: dict[str, Any], t5: bool, options: dict[str, Any]
) -> None:
    pipe = tiny.sd3(t5=t5, transformer=tiny.sd3_transformer(**config))
    plain = draw(pipe, **options)
    how = {"keep": ("step", "layer", "head"), "dtype": torch.float32, "words": range(77 + T5 * t5)}
    with dense(pipe) as probs:
        trace, image = recorded(pipe, record=how, **options)
    run = trace.run
    assert torch.equal(image, plain)
    assert [layer.name for layer in run.layers] == list(probs)
    sharpest = 0.0
    for n, layer in enumerate(run.layers):
        kept = run.maps(n).flatten(-2)  # (steps, images, heads, tokens, queries)
        truth = torch.stack(probs[layer.name])[:, -len(run.prompt_of) :, ..., : len(run.positions)]
        assert kept.shape[-1] == layer.area == 12 * 8 or options.get("height") == 32
        torch.testing.assert_close(kept.double(), truth.transpose(-1, -2), atol=1e-5, rtol=0)
        sharpest = max(sharpest, float(truth.max()))
    assert sharpest > 0.05  # flat attention would prove little


@pytest.mark.parametrize(
    "options",
    [
        {"prompt": [LAWN, "a boat at sea"]},
        {"output_type": "pil"},
        {"skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0},
        {"negative_prompt": "a dog", "prompt_3": "a cat"},
    ],
    ids=["prompts", "pictures", "skip-layer guidance", "texts"],
)
def test_recording_leaves_images_and_processors_unchanged(options: dict[str, Any]) -> None:
    pipe = tiny.sd3()
    before = dict(pipe.transformer.attn_processors)
    plain = draw(pipe, **options)
    trace, image = recorded(pipe, **options)
    if isinstance(plain, Tensor):
        assert torch.equal(image, plain)
    else:
        assert image[0].tobytes() == plain[0].tobytes()
        assert trace.run.images == image
    assert trace.run.done == 3
    after = pipe.transformer.attn_processors
    assert all(after[name] is processor for name, processor in before.items())


@pytest.mark.parametrize("images", [1, 2])
def test_affinity_is_the_images_share_of_itself(images: int) -> None:
    pipe = tiny.sd3(transformer=tiny.sd3_transformer(dual_attention_layers=()))
    how: dict[str, Any] = {"num_images_per_prompt": images}
    plain = draw(pipe, **how)
    found: list[Tensor] = []
    hooks = [
        module.register_forward_pre_hook(
            lambda attn, args, given: found.append(
                joint(attn, given["hidden_states"], given["encoder_hidden_states"])
            ),
            with_kwargs=True,
        )
        for name, module in pipe.transformer.named_modules()
        if name.endswith(".attn")
    ]
    trace, image = recorded(pipe, record={"affinity": True}, **how)
    for hook in hooks:
        hook.remove()
    assert torch.equal(image, plain)
    mean = torch.stack([probs[images:, :, :, :96].mean(1) for probs in found]).mean(0)
    truth = (mean / mean.sum(-1, keepdim=True)).view(images, 12, 8, 12, 8)
    assert trace.run.affinity is not None
    torch.testing.assert_close(trace.run.affinity.double(), truth, atol=2e-5, rtol=1e-3)
    assert trace.heatmap("car", refined=True).array.shape == trace.heatmap("car").array.shape


def test_a_pass_of_skip_layer_guidance_is_not_recorded() -> None:
    pipe = tiny.sd3()
    how: dict[str, Any] = {"num_inference_steps": 1}
    trace, _ = recorded(pipe, **how)
    skipping, _ = recorded(pipe, skip_guidance_layers=[1], skip_layer_guidance_start=-0.1, **how)
    for n in range(3):
        assert torch.equal(skipping.run.maps(n), trace.run.maps(n))


def test_image_to_image_begins_where_its_strength_says() -> None:
    pipe = tiny.sd3(cls=StableDiffusion3Img2ImgPipeline)
    picture = Image.effect_noise((32, 48), 60).convert("RGB")
    options: dict[str, Any] = {"image": picture, "strength": 0.7, "num_inference_steps": 4}
    plain = draw(pipe, **options)
    trace, image = recorded(pipe, **options)
    assert torch.equal(image, plain)
    assert trace.timesteps == tuple(pipe.scheduler.timesteps[-len(trace.timesteps) :].tolist())
    assert len(trace.timesteps) == trace.run.done < 4


def test_negative_prompts_are_recorded_as_further_images() -> None:
    trace, _ = recorded(tiny.sd3(), negative_prompt="a dog", record={"negative": True})
    assert trace.prompts == (LAWN, "a dog")
    assert trace.heatmap("dog", 1).meta["positions"] == [2, 77 + 1]


def test_previews_end_in_the_final_latents() -> None:
    trace, image = recorded(tiny.sd3(), record={"previews": True})
    assert trace.run.estimates is not None
    assert trace.run.estimates.shape == (3, 1, 4, 24, 16)
    torch.testing.assert_close(trace.run.estimates[-1].float(), image, atol=2e-2, rtol=1e-3)


# -- words


def test_a_word_has_positions_on_both_axes() -> None:
    pipe = tiny.sd3()
    trace, _ = recorded(pipe, record={"words": ["green"]})
    (clip, t5) = trace.run.positions
    for tokenizer, position in ((pipe.tokenizer, clip), (pipe.tokenizer_3, t5 - 77)):
        ids = tokenizer(LAWN).input_ids
        assert tokenizer.decode([ids[position]]).strip() == "green"
    assert trace.words == ("green",)
    both = trace.heatmap("green")
    alone = [trace.heatmap([p]) for p in (clip, t5)]
    torch.testing.assert_close(
        torch.tensor(both.array), torch.tensor((alone[0].array + alone[1].array) / 2)
    )


def test_words_are_said_once() -> None:
    trace, _ = recorded(tiny.sd3())
    assert trace.words == ("a", "red", "car", "on", "green", "lawn")
    assert trace.run.prompts[0].positions("a") == (1, 5, 77, 81)


def test_without_t5_its_zeros_have_no_words() -> None:
    trace, _ = recorded(tiny.sd3(t5=False))
    assert trace.run.prompts[0].positions("red") == (2,)


def test_what_the_clips_cut_off_is_t5s_alone() -> None:
    text = "a red car " * 26 + "and a dog"
    trace, _ = recorded(tiny.sd3(), text, max_sequence_length=96, record={"words": ["dog"]})
    (position,) = trace.run.positions
    assert position == 77 + len(text.split()) - 1


def test_another_text_for_t5_has_no_words_of_the_prompt() -> None:
    trace, _ = recorded(tiny.sd3(), prompt_3="a cat")
    assert trace.run.prompts[0].positions("red") == (2,)
    with pytest.raises(ValueError, match="'cat' is not in the prompt"):
        trace.heatmap("cat")


def test_files_keep_both_axes_and_the_default_layers(tmp_path: Path) -> None:
    trace, _ = recorded(tiny.sd3())
    trace.save(tmp_path / "run.safetensors")
    again = xattn.load(tmp_path / "run.safetensors")
    assert again.run.prompts == trace.run.prompts
    assert again.run.map_layers == ("*",)
    assert (again.heatmap("red").array == trace.heatmap("red").array).all()


# -- limits


def test_another_layout_is_refused_with_both_numbers() -> None:
    model = tiny.sd3_transformer()
    family = family_of(model)
    layer = family.layers(model)[0]
    states = torch.zeros(2, 77, 64)
    given = {"hidden_states": torch.zeros(2, 4, 24, 16), "encoder_hidden_states": states}
    call = family.read({**given, "timestep": torch.tensor(1.0)})
    places = family.places(call, layer, 96 + 77, 96 + 77)
    assert places is not None
    assert [place.text for place in places] == [slice(96, 173)] * 2
    with pytest.raises(RuntimeError, match="180 queries and 180 keys where 96 of the image and 77"):
        family.places(call, layer, 180, 180)
