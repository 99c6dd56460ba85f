"""All families of transformers: exact images, maps of the dense softmax, each guidance's layout.

A family is a row of the table below.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

import xattn
from tests.models.attending import ROUNDING, dense
from tests.tiny import crossed, films, streams
from xattn.models import family_of
from xattn.results.trace import Trace

LAWN = "a Red car on a green lawn"
WORDS = ("a", "Red", "car", "on", "a", "green", "lawn")


@dataclass(frozen=True)
class Case:
    """A tiny pipeline, and what is expected of it.

    Attributes:
        build: makes it.
        options: of its calls.
        grid: (height, width) of its maps.
        text: how many text positions there are.
        first: the positions of the first word, one on each axis.
        rows: which rows of a guided batch follow the prompts: "last", "first", "all".
        passes: denoiser calls in a step with guidance.
        queries: where the image's queries begin and end.
        keys: where the text's keys begin and end.
        images: how many images of a prompt diffusers' pipeline can draw with guidance.
        count: how many text positions a row of its own length has, of pipeline and prompt.
        filled: how many positions stand before the text in such a row; 0 where it is first.
        unguided: options that turn guidance off.
        previews: whether the clean latents of a step are known.
    """

    build: Callable[..., Any]
    options: dict[str, Any]
    grid: tuple[int, int]
    text: int
    first: tuple[int, ...] = (0,)
    rows: str = "last"
    passes: int = 1
    queries: tuple[int, int | None] = (0, None)
    keys: tuple[int, int | None] = (0, None)
    images: int = 2
    count: Callable[[Any, str], int] | None = None
    filled: int = 0
    unguided: dict[str, Any] = field(default_factory=lambda: {"guidance_scale": 1.0})
    previews: bool = True


def lumina2_count(pipe: Any, text: str) -> int:
    return len(pipe.tokenizer(f"the old dog <Prompt Start> {text}").input_ids)


def z_image_count(pipe: Any, text: str) -> int:
    whole = f"<|im_start|>user\n{text}<|im_end|>\n<|im_start|>assistant\n"
    return len(pipe.tokenizer(whole).input_ids)


_INSTRUCTION = ["the old", "dog: "]
CASES = {
    "PixArt": Case(
        crossed.pixart,
        {
            "height": 48,
            "width": 32,
            "max_sequence_length": 24,
            "use_resolution_binning": False,
            "clean_caption": False,
        },
        (12, 8),
        24,
        previews=False,
    ),
    "Sana": Case(
        crossed.sana,
        {
            "height": 64,
            "width": 32,
            "max_sequence_length": 24,
            "use_resolution_binning": False,
            "complex_human_instruction": _INSTRUCTION,
        },
        (32, 16),
        24,
        first=(1,),
    ),
    "Sana 1.5": Case(
        lambda: crossed.sana(scale=0.001),
        {
            "height": 32,
            "width": 64,
            "max_sequence_length": 24,
            "use_resolution_binning": False,
            "complex_human_instruction": None,
        },
        (16, 32),
        24,
    ),
    "Sana Sprint": Case(
        lambda: crossed.sana(sprint=True),
        {
            "height": 64,
            "width": 32,
            "max_sequence_length": 24,
            "use_resolution_binning": False,
            "complex_human_instruction": _INSTRUCTION,
        },
        (32, 16),
        24,
        first=(1,),
        rows="all",
        previews=False,
    ),
    "Hunyuan-DiT": Case(
        crossed.hunyuan_dit,
        {"height": 96, "width": 64, "use_resolution_binning": False},
        (6, 4),
        77 + 256,
        first=(1, 77),
    ),
    "Lumina-Next": Case(
        crossed.lumina_next,
        {"height": 96, "width": 64, "clean_caption": False},
        (6, 4),
        8,
        rows="first",
        previews=False,
    ),
    "Lumina 2": Case(
        streams.lumina2,
        {"height": 96, "width": 64, "max_sequence_length": 32},
        (6, 4),
        32,
        first=(18,),
        passes=2,
        count=lumina2_count,
        previews=False,
    ),
    "Z-Image": Case(
        streams.z_image,
        {"height": 48, "width": 48, "max_sequence_length": 64},
        (12, 12),
        64,
        first=(5,),
        rows="first",
        count=z_image_count,
        filled=160,
        unguided={"guidance_scale": 0.0},
        previews=False,
    ),
    "PRX": Case(
        streams.prx,
        {"height": 48, "width": 32, "use_resolution_binning": False},
        (12, 8),
        32,
        keys=(0, 32),
        images=1,
    ),
    "Cosmos 2": Case(
        films.cosmos2,
        {"height": 96, "width": 64, "max_sequence_length": 24, "negative_prompt": "a dog"},
        (6, 4),
        24,
        passes=2,
        previews=False,
    ),
    "Kandinsky 5": Case(
        streams.kandinsky5,
        {"height": 96, "width": 64},
        (6, 4),
        15,
        passes=2,
        keys=(0, 15),
        previews=False,
    ),
}
every = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def pipes() -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def pipe(name: str) -> Any:
        if name not in made:
            made[name] = CASES[name].build()
        return made[name]

    return pipe


def draw(pipe: Any, case: Case, prompt: str | list[str] = LAWN, **options: Any) -> Any:
    given = {"num_inference_steps": 2, "output_type": "latent", **case.options, **options}
    out = pipe(prompt, generator=torch.Generator().manual_seed(0), **given)
    return out.images if hasattr(out, "images") else out.image


def recorded(
    pipe: Any, case: Case, *args: Any, record: Any = None, **options: Any
) -> tuple[Trace, Any]:
    with xattn.record(pipe, **(record or {})) as trace:
        image = draw(pipe, case, *args, **options)
    return trace, image


def denoiser(pipe: Any) -> nn.Module:
    (found,) = family_of(pipe.transformer).denoisers(pipe)
    return found


def processors(pipe: Any) -> dict[str, Any]:
    return {n: m.processor for n, m in denoiser(pipe).named_modules() if hasattr(m, "processor")}


def spans(case: Case, pipe: Any, text: str) -> tuple[slice, slice]:
    """Return the image's queries and the text's keys of a row."""
    if case.count is None:
        return slice(*case.queries), slice(*case.keys)
    area, length = case.grid[0] * case.grid[1], case.count(pipe, text)
    start = 0 if case.filled else length
    return slice(start, start + area), slice(case.filled, case.filled + length)


@every
@pytest.mark.parametrize("guided", [True, False], ids=["guided", "unguided"])
def test_maps_are_the_dense_softmaxs_and_the_image_is_unchanged(
    pipes: Any, name: str, guided: bool
) -> None:
    case, pipe = CASES[name], pipes(name)
    images = case.images if guided else 2
    options = {"num_images_per_prompt": images, **({} if guided else case.unguided)}
    layers = family_of(pipe.transformer).layers(pipe.transformer)
    names = {layer.name for layer in layers if layer.reads_text}
    before = processors(pipe)
    with dense(denoiser(pipe), names) as truth:
        plain = draw(pipe, case, **options)
    how = {"keep": ("step", "layer", "head"), "dtype": torch.float32, "words": range(case.text)}
    trace, image = recorded(pipe, case, record=how, **options)
    run = trace.run
    assert torch.equal(image, plain)
    assert processors(pipe) == before
    assert {layer.name for layer in run.layers} == set(truth)
    sharpest = 0.0
    for n, layer in enumerate(run.layers):
        kept = run.maps(n)  # (steps, images, heads, tokens, height, width)
        assert kept.shape[-2:] == case.grid
        calls = torch.stack(truth[layer.name][:: case.passes if guided else 1])
        doubled = guided and case.rows == "last" and case.passes == 1
        rows = slice(images, 2 * images) if doubled else slice(0, images)
        queries, keys = spans(case, pipe, LAWN)
        right = calls[:, rows, :, queries, keys].transpose(-1, -2)
        found = kept.flatten(-2).double()
        torch.testing.assert_close(found[..., : right.shape[-2], :], right, atol=ROUNDING, rtol=0)
        assert not found[..., right.shape[-2] :, :].any()
        sharpest = max(sharpest, float((right.amax(-1) - right.amin(-1)).max()))
    assert sharpest > 0.02  # flat attention would prove little


@every
def test_words_stand_where_the_familys_tokenizers_say(pipes: Any, name: str) -> None:
    case, pipe = CASES[name], pipes(name)
    trace, _ = recorded(pipe, case, ["the Boat at sea", LAWN], **case.unguided)
    first, second = trace.run.prompts
    assert [word.text for word in first.words] == ["the", "Boat", "at", "sea"]
    assert tuple(word.text for word in second.words) == WORDS
    assert second.words[0].positions == case.first
    red = set(second.positions("red"))  # behind a space, if that is a token
    assert all({place + 1, place + 2} & red for place in case.first)
    assert not red & set(case.first)
    assert trace.heatmap("sea", 0).array.shape == trace.run.latent
    assert trace.run.done == 2
    steps = torch.tensor(trace.timesteps)
    torch.testing.assert_close(steps, pipe.scheduler.timesteps[:2].float())


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.count])
def test_texts_of_several_lengths_have_places_of_their_own(pipes: Any, name: str) -> None:
    case, pipe = CASES[name], pipes(name)
    texts = ["a boat", LAWN]
    # Lumina 2's pipeline gives images of one prompt the masks of several
    images = 2 if name == "Z-Image" else 1
    (*_, layer) = family_of(pipe.transformer).layers(pipe.transformer)
    with dense(denoiser(pipe), {layer.name}) as truth:
        plain = draw(pipe, case, list(texts), num_images_per_prompt=images)
    how = {"keep": ("step", "layer", "head"), "dtype": torch.float32, "words": range(case.text)}
    trace, image = recorded(pipe, case, list(texts), record=how, num_images_per_prompt=images)
    assert torch.equal(image, plain)
    assert trace.prompts == tuple(texts)
    how["direction"] = "text"
    other, _ = recorded(pipe, case, list(texts), record=how, num_images_per_prompt=images)
    calls, found = torch.stack(truth[layer.name][:: case.passes]), trace.run.maps(-1)
    given = other.run.maps(-1)
    assert found.shape[1] == 2 * images
    for row, prompt in enumerate(trace.run.prompt_of):
        queries, keys = spans(case, pipe, texts[prompt])
        right = calls[:, row, :, queries, keys].transpose(-1, -2)
        mine = found[:, row].flatten(-2).double()
        torch.testing.assert_close(mine[..., : right.shape[-2], :], right, atol=ROUNDING, rtol=0)
        assert not mine[..., right.shape[-2] :, :].any()
        right, mine = calls[:, row, :, keys, queries], given[:, row].flatten(-2).double()
        torch.testing.assert_close(mine[..., : right.shape[-2], :], right, atol=ROUNDING, rtol=0)
        assert not mine[..., right.shape[-2] :, :].any()


@pytest.mark.parametrize("name", [name for name, case in CASES.items() if case.passes == 2])
def test_the_same_prompt_twice_in_a_block_makes_two_runs(pipes: Any, name: str) -> None:
    case, pipe = CASES[name], pipes(name)
    with xattn.record(pipe) as trace:
        first, second = draw(pipe, case), draw(pipe, case)
    assert torch.equal(first, second)
    assert [run.done for run in trace.runs] == [2, 2]


@every
def test_previews_end_in_the_final_latents_or_are_refused(pipes: Any, name: str) -> None:
    case, pipe = CASES[name], pipes(name)
    if not case.previews:
        with pytest.raises(ValueError, match="previews=True can't be had with"):
            recorded(pipe, case, record={"previews": True})
        return
    trace, image = recorded(pipe, case, record={"previews": True})
    assert trace.run.estimates is not None
    torch.testing.assert_close(trace.run.estimates[-1].float(), image, atol=5e-2, rtol=1e-2)


@pytest.mark.parametrize("name", ["PixArt", "PRX"])
def test_where_the_text_has_no_queries_the_other_direction_is_refused(
    pipes: Any, name: str
) -> None:
    with pytest.raises(ValueError, match="the text doesn't: leave it out"):
        recorded(pipes(name), CASES[name], record={"direction": "text"})


@pytest.mark.parametrize("name", ["Lumina 2", "Z-Image"])
def test_edits_are_refused_before_anything_is_drawn(pipes: Any, name: str) -> None:
    with pytest.raises(ValueError, match="can be recorded, and not edited yet"):
        xattn.edit(pipes(name), LAWN, xattn.Replace("red", "blue"))


def test_several_images_of_prx_with_guidance_are_refused(pipes: Any) -> None:
    with pytest.raises(RuntimeError, match="with guidance it draws one image at a time"):
        recorded(pipes("PRX"), CASES["PRX"], [LAWN, LAWN])
