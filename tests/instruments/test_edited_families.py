"""Edits of further transformers against the dense reference: whole runs, a row for each family.

The bound is that of ``test_joint_editing``: 1e-5 of the latents' size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor

import xattn
from tests.dense import Blend, Partners, Sibling, by_alignment, by_words
from tests.joint_dense import CrossDense, JointDense, Layout, joined, placed
from tests.tiny import chats, crossed, joint, pictured, singles, streams
from tests.tiny.classes import skip_before_torch
from xattn.edits.kinds import LocalBlend, Refine, Replace, Reweight
from xattn.models import family_of
from xattn.text.prompt import Prompt

SOURCE = "a red zebra on a lawn"  # zebra has more tokens than boat
NIGHT, BOAT = "a red zebra on a lawn at night", "a red boat on a lawn"
STEPS, RUN = 3, 1e-5
CELLS = 8 * 12


@dataclass(frozen=True)
class Case:
    """A tiny pipeline, and what is expected of it.

    Attributes:
        build: makes it.
        options: of its calls.
        latent: (height, width) of its latents.
        guided: whether guidance has the negative prompts in front of the batch.
        image: how many of the image's positions come first; 0 if the text does.
        alone: whether the image asks in a call of its own, behind the text's.
        crossed: whether the text has layers of its own.
        blends: whether there is LocalBlend.
        steps: of its schedule.
    """

    build: Callable[..., Any]
    options: dict[str, Any] = field(default_factory=dict)
    latent: tuple[int, int] = (16, 24)
    guided: bool = False
    image: int = 0
    alone: bool = False
    crossed: bool = False
    blends: bool = True
    steps: int = STEPS


CFG: dict[str, Any] = {"negative_prompt": "a dog", "guidance_scale": 2.0}
T5: dict[str, Any] = {"max_sequence_length": 16}
CHAT: dict[str, Any] = {"max_sequence_length": 40, "text_encoder_out_layers": (1, 2)}
GEMMA: dict[str, Any] = {
    "max_sequence_length": 24,
    "use_resolution_binning": False,
    "complex_human_instruction": ["the old", "dog: "],
    "width": 64,
}
LARGE: dict[str, Any] = {"height": 64, "width": 96}
WIDE: dict[str, Any] = {"height": 128, "width": 192}
CASES = {
    "FLUX.2": Case(chats.flux2, CHAT),
    "FLUX.2 Klein": Case(
        lambda: chats.flux2(klein=True, side="left"), {**CHAT, "guidance_scale": 2.0}
    ),
    "Chroma": Case(joint.chroma, {**T5, **CFG}),
    "Bria": Case(joint.bria, {**T5, **CFG}, guided=True),
    "LongCat-Image": Case(
        chats.longcat, {"enable_prompt_rewrite": False, "guidance_scale": 1.0}, blends=False
    ),
    "Ovis-Image": Case(chats.ovis, {"max_sequence_length": 40, **CFG}),
    "Qwen-Image": Case(joint.qwen, {"negative_prompt": "a dog", "true_cfg_scale": 2.0}),
    "Qwen-Image 2.1": Case(
        pictured.qwen21,
        {**WIDE, "negative_prompt": "a dog", "true_cfg_scale": 2.0},
        (8, 12),
        alone=True,
    ),
    "Nucleus-Image": Case(singles.nucleus, CFG, image=CELLS),
    # with guidance its pipeline draws one image
    "PRX": Case(streams.prx, {"guidance_scale": 1.0, "use_resolution_binning": False}, alone=True),
    "JoyImage Edit": Case(pictured.joy, {**CFG, **WIDE}, image=CELLS, blends=False),
    "JoyImage Edit Plus": Case(
        lambda: pictured.joy(plus=True),
        {**CFG, **WIDE},
        guided=True,
        image=CELLS,
        blends=False,
    ),
    "Bria FIBO": Case(chats.bria_fibo, {**WIDE, **CFG}, guided=True, blends=False),
    "Krea 2": Case(chats.krea2, {"max_sequence_length": 40, **CFG}),
    "ERNIE-Image": Case(
        singles.ernie_image,
        {
            **CFG,
            "negative_prompt": "a red car on a green lawn and a dog",
        },  # longer than the prompts
        (8, 12),
        guided=True,
        image=CELLS,
    ),
    "Ideogram 4": Case(
        singles.ideogram4,
        {"max_sequence_length": 40, "guidance_schedule": None, "guidance_scale": 2.0},
        blends=False,
    ),
    "CogView3+": Case(joint.cogview3, {**T5, **CFG}, guided=True),
    "CogView4": Case(joint.cogview4, CFG),
    "HiDream-I1": Case(chats.hidream, {**T5, **CFG}, guided=True, image=256),
    "PixArt": Case(
        crossed.pixart,
        {**T5, **CFG, "use_resolution_binning": False, "clean_caption": False},
        guided=True,
        crossed=True,
        blends=False,
    ),
    "Sana": Case(crossed.sana, {**GEMMA, **CFG}, (16, 32), guided=True, crossed=True),
    "Sana Sprint": Case(lambda: crossed.sana(sprint=True), GEMMA, (16, 32), crossed=True, steps=2),
    "Hunyuan-DiT": Case(
        crossed.hunyuan_dit,
        {**LARGE, **CFG, "use_resolution_binning": False},
        (8, 12),
        guided=True,
        crossed=True,
    ),
    "Lumina-Next": Case(
        crossed.lumina_next, {**LARGE, **CFG, "clean_caption": False}, (8, 12), crossed=True
    ),
    "Kandinsky 5": Case(streams.kandinsky5, {**LARGE, **CFG}, (8, 12), crossed=True, blends=False),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")  # Chroma's own


def partners(rule: Callable[..., Partners], one: Prompt, two: Prompt, length: int) -> Partners:
    """Partners on the whole axis; a prompt's stretches are those of its encoders."""
    found, offset = [], 0
    for a, b in zip((one, *one.also), (two, *two.also), strict=True):
        found.append(placed(rule, a.moved(-offset), b.moved(-offset)))
        offset = a.length
    return joined(*found, length=length)


def at(prompt: Prompt, *words: str) -> list[int]:
    return sorted({p for w in prompt.words if w.text in words for p in w.positions})


def given(case: Case) -> dict[str, Any]:
    return {"height": 32, "width": 48, "num_inference_steps": case.steps, **case.options}


def draw(pipe: Any, case: Case, texts: list[str], **options: Any) -> Tensor:
    output = pipe(prompt=texts, output_type="latent", **seeded(case, len(texts)), **options)
    images = output.images if hasattr(output, "images") else output.image
    assert isinstance(images, Tensor)
    return images


def seeded(case: Case, count: int) -> dict[str, Any]:
    options = given(case)
    if "negative_prompt" in options:
        options["negative_prompt"] = [options["negative_prompt"]] * count
    options["generator"] = [torch.Generator().manual_seed(0) for _ in range(count)]
    return options


def apart(one: Tensor, two: Tensor) -> float:
    return float((one.double() - two.double()).abs().max())


def edits_of(case: Case) -> list[Any]:
    swap = Replace("zebra", "boat", cross_steps=0.7, self_steps=0.4)
    night = [Refine(NIGHT, cross_steps=1.0, self_steps=0.4), Reweight({"night": -2.0, "red": 3.0})]
    blend = [LocalBlend("boat", threshold=0.9, subtract="lawn")] if case.blends else []
    return [night, [swap, *blend]]


def siblings_of(case: Case, prompts: list[Prompt], length: int) -> list[Sibling]:
    one, night, boat = prompts
    weights = dict.fromkeys(at(night, "night"), -2.0) | dict.fromkeys(at(night, "red"), 3.0)
    added = partners(by_alignment, one, night, length)
    swapped = partners(by_words, one, boat, length)
    words, less = (at(one, "zebra"), at(boat, "boat")), (at(one, "lawn"), at(boat, "lawn"))
    blend = Blend(words[0], words[1], less[0], less[1], threshold=0.9) if case.blends else None
    return [
        Sibling(added, (0, 1), (0, 0.4), weights=weights),
        Sibling(swapped, (0, 0.7), (0, 0.4), blend=blend),
    ]


def dense_of(case: Case, siblings: list[Sibling], length: int) -> JointDense:
    text = slice(case.image, case.image + length)
    own = slice(0, CELLS) if case.image else slice(length, length + CELLS)
    image = slice(0, case.image) if case.image else own
    where = Layout(text, image, slice(0, CELLS) if case.alone else own)
    kind = CrossDense if case.crossed else JointDense
    return kind(siblings, case.steps, case.latent, guided=case.guided, layout=where)


@pytest.mark.parametrize("name", CASES)
def test_runs_follow_the_definitions(name: str) -> None:
    if name == "Bria FIBO":
        skip_before_torch("2.7", "the dense reference is no number")
    case = CASES[name]
    pipe, edits = case.build(), edits_of(case)
    one = torch.Generator().manual_seed(0)
    got = xattn.edit(
        pipe, SOURCE, *edits, trace=False, generator=one, output_type="latent", **given(case)
    )
    prompts = [got.plan.source, *(sibling.prompt for sibling in got.plan.siblings)]
    texts = [SOURCE, NIGHT, BOAT]
    assert [prompt.text for prompt in prompts] == texts
    length = got.plan.length
    dense = dense_of(case, siblings_of(case, prompts, length), length)
    want = dense.latents(pipe, texts, **seeded(case, len(texts)))
    alone = draw(pipe, case, texts)
    size = float(want.abs().max())
    assert torch.equal(got.source, alone[0])
    for n, image in enumerate(got.images, start=1):
        assert apart(image, want[n]) <= RUN * size, f"edit {n}"
        assert apart(image, alone[n]) > 100 * RUN * size, f"edit {n} has no effect"
    if case.blends:
        assert got.masks[-1] is not None
        assert torch.equal(got.masks[-1][-1], dense.masks[-1][-1])
        assert 0.01 < float(got.masks[-1][-1].float().mean()) < 0.99


def test_a_blend_of_latents_that_arent_known_is_refused() -> None:
    pipe = streams.kandinsky5()
    assert "blend" not in family_of(pipe.transformer).edits
    with pytest.raises(ValueError, match="LocalBlend can't be had with Kandinsky5Transformer3DM"):
        xattn.edit(pipe, SOURCE, [Replace("zebra", "car"), LocalBlend("car")])
