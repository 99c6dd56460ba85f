"""What each family does beside recording: steering, live maps, concepts and probes.

Each works, or is refused in a sentence before anything is drawn.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import xattn
from tests.models import test_families, test_joint
from xattn.models import family_of

LAWN = "a red car on a green lawn"
CASES: dict[str, Any] = {**test_joint.CASES, **test_families.CASES}
NAMES = (
    "Qwen-Image",  # remembers its positions between calls
    "HiDream-I1",  # has an argument whose first axis isn't the batch
    "Nucleus-Image",
    "Lumina 2",
    "PixArt",
    "Kandinsky 5",
)


def draw(pipe: Any, name: str) -> Tensor:
    case = CASES[name]
    given = {"height": 48, "width": 32, "num_inference_steps": 1, "output_type": "latent"}
    given |= case.options | getattr(case, "guided", {})
    out = pipe(prompt=LAWN, generator=torch.Generator().manual_seed(0), **given)
    found = out.images if hasattr(out, "images") else out.image
    assert isinstance(found, Tensor)
    return found


@pytest.mark.parametrize("name", NAMES)
def test_goals_move_the_latents_and_live_maps_have_words(name: str) -> None:
    pipe = CASES[name].build()
    with xattn.steer(pipe, xattn.Place("car", "left"), move=0.2) as steering:
        steered = draw(pipe, name)
    plain = draw(pipe, name)
    assert steering.gradient_steps > 0
    assert bool(steered.isfinite().all())
    assert not torch.equal(steered, plain)
    with xattn.live(pipe, prompt=LAWN):
        pass
    for refused, what in ((record_also, "also= can't be had with"), (probe, "can't be probed yet")):
        with pytest.raises((TypeError, ValueError), match=what):
            refused(pipe, name)


def record_also(pipe: Any, name: str) -> None:
    with xattn.record(pipe, also=["boat"]):
        pytest.fail("a model whose blocks aren't known was opened")


def probe(pipe: Any, name: str) -> None:
    xattn.probe(pipe, test_joint.PICTURE, LAWN)


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("Z-Image", "goals can't be had with this model, which is given"),
        ("Ideogram 4", "this pipeline can't be steered"),
    ],
)
def test_goals_are_refused_where_the_latents_arent_an_argument(name: str, why: str) -> None:
    pipe = CASES[name].build()
    with (
        pytest.raises((ValueError, RuntimeError), match=why),
        xattn.steer(pipe, xattn.Place("car", "left")),
    ):
        draw(pipe, name)


@pytest.mark.parametrize("name", ["Qwen-Image", "PixArt", "Lumina 2", "HiDream-I1"])
def test_a_bare_denoiser_whose_prompts_only_its_pipeline_can_read_is_refused(name: str) -> None:
    pipe = CASES[name].build()
    (model,) = family_of(pipe.transformer).denoisers(pipe)
    tokenizer = getattr(pipe, "tokenizer", None)
    with (
        pytest.raises(TypeError, match="pass the pipeline in its place"),
        xattn.live(model, tokenizer=tokenizer, prompt=LAWN),
    ):
        pytest.fail("the prompt was read")
