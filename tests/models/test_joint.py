"""Families of joint attention: exact images, dense maps, words, guidance; a row for each below."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

import xattn
from tests.models.attending import dense, tokens_read
from tests.tiny import chats, pictured, singles
from tests.tiny import joint as tiny
from tests.tiny.transformers import flux, flux_transformer
from xattn.models import family_of
from xattn.models.chat import chat_template
from xattn.models.flux2 import Flux2
from xattn.models.hunyuan_image import order
from xattn.results.trace import Trace
from xattn.text.tokenize import tokenize

LAWN = "a red car on a green lawn"
BOAT = "the blue boat"
HEIGHT, WIDTH = 48, 32
OWN = 12 * 8
"""Positions of the image."""
T5 = {"max_sequence_length": 24}
CHAT = {"max_sequence_length": 40, "text_encoder_out_layers": (1, 2)}
PICTURE = Image.linear_gradient("L").resize((WIDTH, HEIGHT)).convert("RGB")
MASK = Image.new("L", (WIDTH, HEIGHT), 255)


@dataclass(frozen=True)
class Case:
    """A tiny pipeline, and what is expected of it.

    Attributes:
        build: makes it.
        options: of its calls.
        text: how many text positions there are for the prompt; keys after ``before`` of them.
        before: positions in front of text and image.
        text_first: whether text stands in front of the image.
        guided: options that turn guidance on.
        passes: denoiser calls in a step with guidance.
        steps: steps that are drawn of the two.
        dropped: positions of the encoder's in front of the axis.
        encoder: the text encoder that the words are of, or what it gives their ids to.
        previews: whether there are any.
        extra: positions of references and padding behind the image.
        index: where the axis' positions stand, if not one after the other.
        alone: whether the image asks in a call of its own, behind the text's.
    """

    build: Callable[..., Any]
    text: int
    options: dict[str, Any] = field(default_factory=dict)
    before: int = 0
    text_first: bool = True
    guided: dict[str, Any] = field(default_factory=dict)
    passes: int = 1
    steps: int = 2
    dropped: Callable[[Any], int] = lambda pipe: 0
    encoder: str = "text_encoder"
    previews: bool = False
    extra: int = 0
    index: tuple[int, ...] = ()
    alone: bool = False

    @property
    def keys(self) -> Any:
        if self.index:
            return list(self.index)
        start = self.before + (0 if self.text_first else OWN + self.extra)
        return slice(start, start + self.text)

    @property
    def queries(self) -> slice:
        start = self.before + self.text if self.text_first and not self.alone else 0
        return slice(start, start + OWN)

    def calls(self, found: list[Tensor], passes: int) -> Tensor:
        """A layer's calls in which the image asks, of the prompts' passes."""
        asked = [each for each in found if each.shape[2] == OWN] if self.alone else found
        return torch.stack(asked[::passes])


def kin(name: str, channels: int = 16) -> Callable[..., Any]:
    """Return a builder of one of FLUX.1's pipelines."""
    config = {"in_channels": channels, "out_channels": 16}
    return lambda: flux(cls=getattr(diffusers, name), transformer=flux_transformer(**config))


def template(pipe: Any) -> int:
    return int(pipe.prompt_template_encode_start_idx)


FLUX: dict[str, Any] = {"text": 24, "encoder": "text_encoder_2"}
DOG = {"negative_prompt": "a dog"}
CASES = {
    "Qwen-Image": Case(
        tiny.qwen, 18, guided={"true_cfg_scale": 2.0, **DOG}, passes=2, dropped=template
    ),
    "Qwen-Image img2img": Case(
        lambda: tiny.qwen(cls=diffusers.QwenImageImg2ImgPipeline),
        18,
        {"image": PICTURE, "strength": 0.5},
        guided={"true_cfg_scale": 2.0, **DOG},
        passes=2,
        steps=1,
        dropped=template,
    ),
    "Qwen-Image 2.1": Case(
        pictured.qwen21,
        21,
        {"height": 12 * 16, "width": 8 * 16},
        guided={"true_cfg_scale": 2.0, **DOG},
        passes=2,
        dropped=lambda pipe: pipe._drop_idx,
        alone=True,
    ),
    "Qwen-Image 2.1 without kept keys": Case(
        pictured.qwen21,
        21,
        {"height": 12 * 16, "width": 8 * 16, "use_kv_cache": False},
        dropped=lambda pipe: pipe._drop_idx,
        alone=True,
    ),
    "Chroma": Case(tiny.chroma, 24, T5, guided={"guidance_scale": 2.0, **DOG}, passes=2),
    "Bria": Case(tiny.bria, 24, T5, guided={"guidance_scale": 2.0, **DOG}),
    "AuraFlow": Case(
        tiny.aura_flow,
        24,
        T5,
        before=8,
        guided={"guidance_scale": 2.0, **DOG},
        previews=True,
    ),
    "CogView3+": Case(tiny.cogview3, 24, T5, guided={"guidance_scale": 2.0, **DOG}, previews=True),
    "CogView4": Case(tiny.cogview4, 16, guided={"guidance_scale": 2.0, **DOG}, passes=2),
    "FLUX.1 img2img": Case(
        kin("FluxImg2ImgPipeline"),
        options={"image": PICTURE, "strength": 0.5, **T5},
        steps=1,
        guided={"true_cfg_scale": 2.0, **DOG},
        passes=2,
        **FLUX,
    ),
    "FLUX.1 inpaint": Case(
        kin("FluxInpaintPipeline"),
        options={"image": PICTURE, "mask_image": MASK, "strength": 1.0, **T5},
        guided={"true_cfg_scale": 2.0, **DOG},
        passes=2,
        **FLUX,
    ),
    "FLUX.1 Fill": Case(
        kin("FluxFillPipeline", 16 + 16 + 16),
        options={"image": PICTURE, "mask_image": MASK, **T5},
        **FLUX,
    ),
    "FLUX.1 Control": Case(
        kin("FluxControlPipeline", 32), options={"control_image": PICTURE, **T5}, **FLUX
    ),
    "FLUX.1 Kontext": Case(
        kin("FluxKontextPipeline"),
        options={"image": PICTURE, "_auto_resize": False, "max_area": HEIGHT * WIDTH, **T5},
        guided={"true_cfg_scale": 2.0, **DOG},
        passes=2,
        extra=OWN,
        **FLUX,
    ),
    "FLUX.2": Case(chats.flux2, 40, CHAT),
    "FLUX.2 with a reference": Case(
        chats.flux2, 40, {"image": [PICTURE.resize((64, 64))], **CHAT}, extra=16 * 16
    ),
    "FLUX.2 Klein": Case(
        lambda: chats.flux2(klein=True, side="left"),
        40,
        CHAT,
        guided={"guidance_scale": 2.0},
        passes=2,
    ),
    "Ovis-Image": Case(
        chats.ovis,
        40,
        {"max_sequence_length": 40},
        guided={"guidance_scale": 2.0, **DOG},
        passes=2,
        dropped=lambda pipe: pipe.user_prompt_begin_id,
    ),
    "Bria FIBO": Case(
        chats.bria_fibo,
        8,
        {"height": 12 * 16, "width": 8 * 16},
        guided={"guidance_scale": 2.0, **DOG},
    ),
    "Krea 2": Case(
        chats.krea2,
        40,
        {"max_sequence_length": 40},
        guided={"guidance_scale": 2.0, **DOG},
        passes=2,
        dropped=template,
    ),
    "LongCat-Image": Case(
        chats.longcat,
        24,
        {"enable_prompt_rewrite": False},
        guided={"guidance_scale": 2.0, **DOG},
        passes=2,
        dropped=lambda pipe: len(pipe.tokenizer(pipe.prompt_template_encode_prefix).input_ids),
    ),
    "Nucleus-Image": Case(
        singles.nucleus,
        192,  # most of them the system message's
        text_first=False,
        guided={"guidance_scale": 2.0, **DOG},
        passes=2,
    ),
    # a longer negative prompt fills the batch up
    "ERNIE-Image": Case(
        singles.ernie_image,
        8,
        text_first=False,
        guided={"guidance_scale": 2.0, "negative_prompt": f"{LAWN} and a dog"},
        previews=True,
        extra=3,
        index=tuple(range(OWN, OWN + 8)),
    ),
    # guidance is another model's
    "Ideogram 4": Case(
        singles.ideogram4,
        40,
        {"max_sequence_length": 40, "guidance_schedule": None},
        guided={"guidance_scale": 2.0},
        encoder="text_encoder.language_model.embed_tokens",
    ),
    "HiDream-I1": Case(
        chats.hidream,
        3 * 24,
        T5,
        text_first=False,
        guided={"guidance_scale": 2.0, **DOG},
        encoder="text_encoder_3",
        previews=True,
        extra=256 - OWN,
    ),
    # 14 valid positions, then 24 of glyphs that there aren't, then padding
    "HunyuanImage": Case(
        chats.hunyuan_image,
        40,
        text_first=False,
        guided=DOG,
        passes=2,
        dropped=template,
        extra=24,
        index=(*range(OWN, OWN + 14), *range(OWN + 14 + 24, OWN + 40 + 24)),
    ),
}
pytestmark = pytest.mark.filterwarnings("ignore:.*FluxPosEmbed:FutureWarning")  # Chroma's own
every = pytest.mark.parametrize("name", CASES)


@pytest.fixture(scope="module")
def pipes() -> Callable[[str], Any]:
    made: dict[str, Any] = {}

    def pipe(name: str) -> Any:
        if name not in made:
            made[name] = CASES[name].build()
        return made[name]

    return pipe


def draw(pipe: Any, case: Case, prompt: Any = LAWN, **options: Any) -> Any:
    given = {"height": HEIGHT, "width": WIDTH, "num_inference_steps": 2, "output_type": "latent"}
    generator = torch.Generator().manual_seed(0)
    return pipe(prompt=prompt, generator=generator, **(given | case.options | options)).images


def recorded(pipe: Any, case: Case, *args: Any, **options: Any) -> tuple[Trace, Any]:
    record = options.pop("record", {})
    with xattn.record(pipe, **record) as trace:
        image = draw(pipe, case, *args, **options)
    return trace, image


def processors(model: Any) -> dict[str, Any]:
    return {n: m.processor for n, m in model.named_modules() if hasattr(m, "processor")}


def check(pipe: Any, case: Case, guided: bool, prompts: list[str]) -> None:
    off = {"guidance_scale": 1.0} if "guidance_scale" in case.guided else {}
    images = 2 // len(prompts)
    options = {"num_images_per_prompt": images, **(case.guided if guided else off)}
    layers = family_of(pipe.transformer).layers(pipe.transformer)
    before = processors(pipe.transformer)
    with (
        tokens_read(attrgetter(case.encoder)(pipe)) as given,
        dense(pipe.transformer, {layer.name for layer in layers}) as truth,
    ):
        plain = draw(pipe, case, prompts, **options)
    how = {"keep": ("step", "layer", "head"), "dtype": torch.float32, "words": range(case.text)}
    trace, image = recorded(pipe, case, prompts, record=how, **options)
    run = trace.run
    assert torch.equal(image, plain)
    assert processors(pipe.transformer) == before
    assert {layer.name for layer in run.layers} == set(truth)
    assert run.timesteps == tuple(pipe.scheduler.timesteps[-case.steps :].tolist())
    sharpest = 0.0
    for n, layer in enumerate(run.layers):
        calls = case.calls(truth[layer.name], case.passes if guided else 1)
        assert calls.shape[-1] == case.before + case.text + OWN + case.extra
        right = calls[:, -2:, :, case.queries, case.keys].transpose(-1, -2)
        kept = run.maps(n)  # (steps, images, heads, tokens, height, width)
        assert kept.shape[-2:] == (12, 8)
        torch.testing.assert_close(kept.flatten(-2).double(), right, atol=1e-5, rtol=0)
        sharpest = max(sharpest, float((right.amax(-1) - right.amin(-1)).max()))
    assert sharpest > 0.02  # flat attention would prove little
    read = [row for ids in given for row in ids]
    if case.alone:  # padding in front of a text isn't on the axis
        read = [ids[ids != pipe.processor.tokenizer.pad_token_id] for ids in read]
    check_words(trace, prompts, read, case.dropped(pipe))


def check_words(trace: Trace, prompts: list[str], read: list[Tensor], dropped: int) -> None:
    assert trace.prompts == tuple(prompts)
    for prompt, ids in zip(trace.run.prompts, read[: len(prompts)], strict=True):
        assert [word.text for word in prompt.words] == prompt.text.split()
        for token in prompt.tokens:
            assert int(ids[token.position + dropped]) == token.id


@every
def test_maps_are_the_dense_softmaxs_and_the_image_is_unchanged(pipes: Any, name: str) -> None:
    """With guidance, where it can have any; words stand where the text encoder read them."""
    check(pipes(name), CASES[name], bool(CASES[name].guided), [LAWN])


@pytest.mark.parametrize("name", ["Qwen-Image", "Chroma", "AuraFlow", "HunyuanImage"])
def test_the_other_direction_is_what_the_text_gives_to_the_image(pipes: Any, name: str) -> None:
    case, pipe = CASES[name], pipes(name)
    prompts = [LAWN] if case.index else [LAWN, BOAT]
    off = {"guidance_scale": 1.0} if "guidance_scale" in case.guided else {}
    options = off if off or not case.index else case.guided
    names = {layer.name for layer in family_of(pipe.transformer).layers(pipe.transformer)}
    with dense(pipe.transformer, names) as truth:
        plain = draw(pipe, case, prompts, **options)
    how: dict[str, Any] = {"keep": ("step", "layer", "head"), "dtype": torch.float32}
    how |= {"words": range(case.text), "direction": "text"}
    trace, image = recorded(pipe, case, prompts, record=how, **options)
    assert torch.equal(image, plain)
    for n, layer in enumerate(trace.run.layers):
        calls = torch.stack(truth[layer.name][:: 1 if off or not options else case.passes])
        right = calls[:, -len(prompts) :, :, case.keys, case.queries]
        torch.testing.assert_close(trace.run.maps(n).flatten(-2).double(), right, atol=1e-5, rtol=0)
    assert trace.heatmap("car").array.max() > 0
    with pytest.raises(ValueError, match="no place's shares of words"):
        trace.at((0.5, 0.5))


@pytest.mark.parametrize("name", ["Qwen-Image", "Qwen-Image 2.1", "Chroma", "Bria", "CogView4"])
def test_two_prompts_without_guidance_have_maps_and_words_too(pipes: Any, name: str) -> None:
    check(pipes(name), CASES[name], False, [LAWN, BOAT])


def test_cogview4s_words_are_found_with_padding_on_both_sides() -> None:
    check(tiny.cogview4(side="right"), CASES["CogView4"], False, [LAWN, BOAT])


@pytest.mark.parametrize("name", ["Qwen-Image", "Chroma"])
def test_a_negative_prompt_that_equals_the_prompt_is_not_recorded(pipes: Any, name: str) -> None:
    case, pipe = CASES[name], pipes(name)
    trace, _ = recorded(pipe, case, **{**case.guided, "negative_prompt": LAWN})
    assert trace.words == ("a", "red", "car", "on", "green", "lawn")
    assert trace.run.done == 2


@every
def test_edits_and_unknown_previews_are_refused(pipes: Any, name: str) -> None:
    case, pipe = CASES[name], pipes(name)
    family = family_of(pipe.transformer)
    if not family.edits:
        with pytest.raises(ValueError, match="can be recorded, and not edited yet"):
            xattn.edit(pipe, LAWN, xattn.Replace("red", "blue"))
    if case.previews:
        trace, image = recorded(pipe, case, record={"previews": True}, **case.guided)
        assert trace.run.estimates is not None
        last = trace.run.estimates[-1].float()
        torch.testing.assert_close(last, image, atol=5e-2, rtol=5e-2)
    else:
        none = torch.zeros(0, 4, 2, 2)
        with pytest.raises(ValueError, match="previews=True can't be had with"):
            family.clean(pipe.scheduler, none, none, 1000.0)


def test_a_word_of_hidream_stands_at_three_places(pipes: Any) -> None:
    trace, _ = recorded(pipes("HiDream-I1"), CASES["HiDream-I1"], BOAT, record={"words": ["blue"]})
    prompt = trace.run.prompts[0]
    assert prompt.positions("the") == (0, 24, 48)
    spans = pipes("HiDream-I1").tokenizer_4(BOAT, return_offsets_mapping=True)["offset_mapping"]
    llama = [n for n, (start, end) in enumerate(spans) if start < 8 and end > 4 and end > start]
    assert llama
    assert prompt.positions("blue") == (1, *(24 + n for n in llama), *(48 + n for n in llama))
    assert trace.words == ("blue",)


def test_hunyuan_images_words_stand_between_glyphs_and_padding() -> None:
    words, glyphs = (torch.tensor(mask, dtype=torch.bool) for mask in ([1, 1, 1, 0, 0], [1, 0, 1]))
    axis = torch.arange(5)
    truth = torch.cat([-1 - axis[:2], axis[:3], -3 - axis[:1], axis[3:]])  # as the model orders it
    assert truth[order(words, glyphs)].tolist() == axis.tolist()
    assert order(words, None).tolist() == axis.tolist()


def test_longcat_reads_what_is_quoted_letter_by_letter(pipes: Any) -> None:
    trace, _ = recorded(pipes("LongCat-Image"), CASES["LongCat-Image"], "a 'red' boat")
    prompt = trace.run.prompts[0]
    assert [token.text for token in prompt.tokens][-6:-2] == ["r", "e", "d", "'"]
    assert len(prompt.positions("red")) == 3


def test_a_chat_that_does_not_write_the_prompt_is_refused() -> None:
    tok = tiny.qwen_tokenizer()
    tok.chat_template = "{% for m in messages %}{{ m.content | upper }}x{% endfor %}{}"
    with pytest.raises(ValueError, match="write a prompt once and unchanged"):
        chat_template(tok, [{"role": "user", "content": "{}"}])


@pytest.mark.parametrize("numbered", [False, True], ids=["Edit", "Edit Plus"])
def test_an_edited_images_tokens_stand_in_front_of_the_words(pipes: Any, numbered: bool) -> None:
    tok, count = pipes("Qwen-Image").tokenizer, 2 if numbered else 1
    picture = "<|vision_start|><|image_pad|><|vision_end|>"
    system, end = "<|im_start|>user\n", "<|im_end|>\n"
    pipe: Any = type("Pipe", (), {"tokenizer": tok, "prompt_template_encode_start_idx": 2})()
    pipe.prompt_template_encode = f"{system}{'' if numbered else picture}{{}}{end}"
    shown = "".join(f"Picture {n + 1}: {picture}" for n in range(2)) if numbered else picture
    expanded = f"{system}{shown}".replace("<|image_pad|>", "<|image_pad|>" * 5) + LAWN + end
    read = tok(expanded).input_ids[2:]  # what the text encoder leaves to the denoiser
    family = family_of(pipes("Qwen-Image").transformer)
    images = [PICTURE] * count if numbered else PICTURE
    (axis,) = family.axes(pipe, torch.zeros(1, len(read), 4), {"prompt": LAWN, "image": images})
    prompt = tokenize(tok, LAWN, max_length=len(read), template=axis.template)
    assert [word.text for word in prompt.words] == LAWN.split()
    assert all(read[token.position] == token.id for token in prompt.tokens)


def test_a_reference_of_qwen_is_behind_the_image(pipes: Any) -> None:
    family, model = family_of(pipes("Qwen-Image").transformer), pipes("Qwen-Image").transformer
    given = {
        "hidden_states": torch.zeros(2, 6 + 8, 16),
        "encoder_hidden_states": torch.zeros(2, 5, 16),
        "timestep": torch.tensor([0.5, 0.5]),
    }
    for shapes in ([[(1, 3, 2), (1, 4, 2)]] * 2, [(1, 3, 2)] * 2):
        call = family.read({**given, "img_shapes": shapes})
        assert (call.latent, call.timestep.tolist()) == ((6, 4), [500.0, 500.0])
        places = family.places(call, family.layers(model)[0], 19, 19)
        assert places is not None
        assert (places[1].queries, places[1].text) == (slice(5, 11), slice(0, 5))
        assert places[1].image == slice(5, 19)
    with pytest.raises(RuntimeError, match="20 queries and 20 keys where 5 of the text and 14"):
        family.places(call, family.layers(model)[0], 20, 20)


def test_pipelines_that_draw_several_pictures_in_one_are_refused(pipes: Any) -> None:
    visual: Any = type("VisualClozeGenerationPipeline", (), {})()
    visual.transformer = pipes("FLUX.1 Kontext").transformer
    with pytest.raises(TypeError, match="record another FLUX"):
        family_of(visual.transformer).denoisers(visual)
    with pytest.raises(RuntimeError, match="record Flux2KleinPipeline"):
        Flux2().read({"kv_cache_mode": "extract"})
    qwen = family_of(pipes("Qwen-Image").transformer)
    with pytest.raises(RuntimeError, match="layers of one"):
        qwen.read({"additional_t_cond": torch.zeros(1)})
