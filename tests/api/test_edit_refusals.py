"""What can't be edited is refused before sampling, in words that say what to do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

import xattn
from tests import tiny
from tests.helpers import CAR, LATENT, TOKENIZER, never, run
from xattn.api.edit import edit, sweep
from xattn.api.editing import editing
from xattn.edits.kinds import LocalBlend, Replace
from xattn.session.loop import Loop


@pytest.mark.parametrize(
    ("edits", "options", "says"),
    [
        ([], {}, "nothing to edit"),
        ([Replace("gold", "blue")], {}, "'gold' is not in the prompt"),
        ([Replace("red", "very blue")], {}, "use Refine"),
        ([LocalBlend("car")], {}, "edits nothing"),
        (
            [[Replace("red", "blue"), LocalBlend(mask=torch.ones(5, 7))]],
            {},
            "mask is 5 x 7 .*32 x 32 or the latents' 16 x 16",
        ),
        ([[]], {"prompt_embeds": torch.zeros(1, 77, 32)}, "prompt_embeds= cannot be edited"),
        ([[]], {"prompt_2": "a dog"}, "prompt_2"),
        ([[]], {"negative_prompt": ["a", "b"]}, "negative_prompt has 2 texts"),
        ([[]], {"latents": torch.zeros(3, 4, LATENT, LATENT)}, "latents has 3 rows"),
        ([[]], {"generator": [torch.Generator()] * 2, "num_images_per_prompt": 3}, "2 generators"),
        ([[]], {"trace": {"wrods": ["car"]}}, "'wrods' is none of"),
        ([[]], {"trace": {"words": ["gold"]}}, "'gold' is not in the prompt"),
        ([[]], {"trace": {"layers": []}}, "layers=\\[\\] records nothing"),
        ([[]], {"side": 0}, "side=0 must be a whole number"),
        ([[]], {"side": 16.0}, "side=16.0 must be a whole number"),
        ([[]], {"image": Image.new("RGB", (64, 64))}, "height= cannot be had with a photograph"),
        ([[]], {"guidance_scal": 3.0}, r"guidance_scal= .* did you mean guidance_scale\b"),
        ([[]], {"steps": 5}, r"steps= is not .* did you mean num_inference_steps\?$"),
        ([[]], {"source": "car.jpg"}, "source must be a result of edit or an inversion, not str"),
        ([[]], {"nonsense": 1}, r"nonsense= is not an option of StableDiffusionPipeline$"),
        (
            [[Replace("red", "blue"), LocalBlend("car", start=0.9)]],
            {},
            r"start=0\.9 never acts in a run of 5 steps, whose last begins at 0\.8",
        ),
        (
            [[Replace("red", "blue"), LocalBlend(mask=torch.ones(LATENT, LATENT))]],
            {"num_inference_steps": 1},
            r"start=0\.2 never acts in a run of 1 step, whose last begins at 0: ",
        ),
    ],
)
def test_bad_requests_are_refused_before_sampling(
    edits: list[Any], options: dict[str, Any], says: str
) -> None:
    pipe = tiny.sd1()
    pipe.unet.forward = never
    before = dict(pipe.unet.attn_processors)
    with pytest.raises((ValueError, TypeError), match=says):
        run(pipe, *edits, **options)
    after = pipe.unet.attn_processors
    assert all(after[name] is processor for name, processor in before.items())


def test_a_seed_is_pointed_to_the_generator() -> None:
    with pytest.raises(ValueError, match=r"seed= .*generator=torch\.Generator\(\)\.manual_seed"):
        xattn.edit(tiny.sd1(), "a red car", [], seed=1)


def test_options_that_a_subclass_hands_on_are_the_pipelines() -> None:
    from diffusers import StableDiffusionPipeline

    class HandsOn(StableDiffusionPipeline):
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            return super().__call__(*args, **kwargs)

    pipe = tiny.sd1(cls=HandsOn)
    assert run(pipe, [], guidance_scale=3.0, num_inference_steps=1).images
    with pytest.raises(ValueError, match=r"strength= is not an option of HandsOn.*image-to-image"):
        run(pipe, [], strength=0.5)


def test_a_misspelt_option_of_a_sweep_is_refused() -> None:
    pipe = tiny.sd1()
    pipe.unet.forward = never
    with pytest.raises(ValueError, match="did you mean num_inference_steps"):
        sweep(pipe, CAR, "red", [2.0], num_inference_step=3)


def test_sliced_attention_is_refused_with_advice() -> None:
    pipe = tiny.sd1()
    pipe.enable_attention_slicing(1)
    pipe.unet.forward = never
    with pytest.raises(TypeError, match="disable_attention_slicing"):
        run(pipe, Replace("red", "blue"))


def test_pipelines_without_text_cross_attention_are_refused() -> None:
    class Other:
        pass

    with pytest.raises(TypeError, match="Other has no denoiser with a text encoder"):
        edit(Other(), CAR, Replace("red", "blue"))
    with pytest.raises(TypeError, match="for a UNet"):
        edit(tiny.unet(), CAR, Replace("red", "blue"))
    with pytest.raises(ValueError, match="adds the text's keys to the image's own"), editing(
        Loop(tiny.added_kv_unet(), tokenizer=TOKENIZER, scheduler=tiny.make_scheduler()), CAR, []
    ):  # fmt: skip
        pass
    with pytest.raises(TypeError, match=r"xattn\.Loop"), editing(tiny.unet(), CAR, []):
        pass
    with pytest.raises(ValueError, match="needs its scheduler"), editing(
        Loop(tiny.unet(), tokenizer=TOKENIZER), CAR, []
    ):  # fmt: skip
        pass
