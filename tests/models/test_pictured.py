"""Prompts that hold pictures: words stand beside them, and maps are the dense softmax's."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

import xattn
from tests.models.attending import dense, tokens_read
from tests.tiny import pictured
from tests.tiny.classes import find
from xattn.edits.kinds import Replace
from xattn.models import family_of

LAWN, BOAT = "a red car on a green lawn", "the blue boat"
OWN = 12 * 8
GRADIENT = Image.linear_gradient("L").convert("RGB")
PICTURES = [GRADIENT.resize((64, 96)), GRADIENT.resize((64, 64))]


HOW: dict[str, Any] = {"keep": ("step", "layer", "head"), "dtype": torch.float32}


@pytest.fixture(scope="module")
def qwen() -> Any:
    return pictured.qwen21()


def draw(pipe: Any, prompt: Any = LAWN, **options: Any) -> Tensor:
    given: dict[str, Any] = {
        "height": 192,
        "width": 128,
        "num_inference_steps": 2,
        "output_type": "latent",
    }
    given |= {"prompt": prompt, "generator": torch.Generator().manual_seed(0), **options}
    images = pipe(**given)
    assert isinstance(images.images, Tensor)
    return images.images


@pytest.mark.parametrize("kept", [True, False], ids=["kept keys", "all keys anew"])
def test_words_stand_behind_qwens_given_pictures(qwen: Any, kept: bool) -> None:
    options = {"image": PICTURES, "output_resolution": 96, "use_kv_cache": kept}
    names = {f"transformer_blocks.{n}.attn" for n in range(2)}
    with tokens_read(qwen.text_encoder) as given, dense(qwen.transformer, names) as truth:
        plain = draw(qwen, **options)
    ids, slot = given[0][0].tolist()[qwen._drop_idx :], qwen._img_token_id
    # where each position stands once its pictures are four latents each
    keys = [n + 3 * ids[:n].count(slot) for n in range(len(ids))]
    assert ids.count(slot) == 8 + 9
    with xattn.record(qwen, **HOW, words=range(len(ids))) as trace:
        image = draw(qwen, **options)
    assert torch.equal(image, plain)
    for n, layer in enumerate(trace.run.layers):
        calls = torch.stack([each for each in truth[layer.name] if each.shape[2] == OWN])
        assert calls.shape[-1] == len(ids) + 3 * 17 + OWN
        right = calls[..., keys].transpose(-1, -2)
        torch.testing.assert_close(trace.run.maps(n).flatten(-2).double(), right, atol=1e-5, rtol=0)
    (prompt,) = trace.run.prompts
    assert [word.text for word in prompt.words] == LAWN.split()
    assert all(ids[token.position] == token.id for token in prompt.tokens)


def test_an_edit_between_given_pictures_is_refused(qwen: Any) -> None:
    options = {"height": 64, "width": 64, "output_type": "latent", "num_inference_steps": 2}
    given: dict[str, Any] = {"image": PICTURES[:1], "output_resolution": 96, **options}
    with (
        xattn.editing(qwen, LAWN, Replace("red", "blue")) as session,
        pytest.raises(RuntimeError, match="draw from a prompt without pictures"),
    ):
        qwen(prompt=session.prompts, **given)


EDITS: dict[str, tuple[Any, Any]] = {
    "Edit": (diffusers.QwenImageEditPipeline, PICTURES[0]),
    "Edit Plus": (diffusers.QwenImageEditPlusPipeline, PICTURES),
}


@pytest.fixture
def editor(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any], Any]:
    """Return a builder of Edit pipelines that see and draw 96 x 64 pixels, not a million."""

    def build(cls: Any) -> Any:
        plus = cls is diffusers.QwenImageEditPlusPipeline
        size = (64, 96) if plus else (64, 96, None)
        monkeypatch.setattr(f"{cls.__module__}.calculate_dimensions", lambda *_: size)
        return pictured.qwen_edit(cls)

    return build


def redraw(pipe: Any, image: Any, prompt: Any = LAWN, **options: Any) -> Tensor:
    given = {"image": image, "height": None, "width": None, "true_cfg_scale": 2.0}
    return draw(pipe, prompt, **given, negative_prompt="boat", **options)


@pytest.mark.parametrize("name", EDITS)
def test_words_stand_behind_the_pictures_of_an_instruction(name: str, editor: Any) -> None:
    cls, image = EDITS[name]
    pipe = editor(cls)
    names = {f"transformer_blocks.{n}.attn" for n in range(2)}
    with tokens_read(pipe.text_encoder) as given, dense(pipe.transformer, names) as truth:
        plain = redraw(pipe, image)
    ids = given[0][0].tolist()[pipe.prompt_template_encode_start_idx :]
    with xattn.record(pipe, **HOW, words=range(len(ids))) as trace:
        recorded = redraw(pipe, image)
    assert torch.equal(recorded, plain)
    own = plain.shape[1]
    for n, layer in enumerate(trace.run.layers):
        calls = torch.stack(truth[layer.name][::2])  # of each step the prompt's, then the negative
        right = calls[..., len(ids) : len(ids) + own, : len(ids)].transpose(-1, -2)
        torch.testing.assert_close(trace.run.maps(n).flatten(-2).double(), right, atol=1e-5, rtol=0)
    (prompt,) = trace.run.prompts
    assert [word.text for word in prompt.words] == LAWN.split()
    assert all(ids[token.position] == token.id for token in prompt.tokens)


@pytest.mark.parametrize("listed", [False, True], ids=["a picture", "a list of one"])
def test_source_and_sibling_of_an_instruction_see_one_picture(listed: bool, editor: Any) -> None:
    pipe = editor(diffusers.QwenImageEditPipeline)
    image = [PICTURES[0].resize((64, 96))] if listed else PICTURES[0]
    plain = redraw(pipe, image)
    other = redraw(pipe, image, LAWN.replace("car", "boat"))
    options = {"num_inference_steps": 2, "true_cfg_scale": 2.0, "negative_prompt": "boat"}
    result = xattn.edit(
        pipe,
        LAWN,
        Replace("car", "boat"),
        image=image,
        generator=torch.Generator().manual_seed(0),
        output_type="latent",
        **options,
    )
    torch.testing.assert_close(result.source, plain[0], atol=1e-4, rtol=0)
    changed = (result.images[0] - plain[0]).norm()
    assert 0 < changed < (other[0] - plain[0]).norm()  # it follows the source


def test_edits_of_a_pipeline_that_takes_one_prompt_are_refused(editor: Any) -> None:
    pipe = editor(diffusers.QwenImageEditPlusPipeline)
    with pytest.raises(ValueError, match="draws one prompt at a time"):
        xattn.edit(pipe, LAWN, Replace("car", "boat"), image=PICTURES[0])


def test_the_images_affinity_is_what_it_gives_to_its_own_keys(qwen: Any) -> None:
    names = {f"transformer_blocks.{n}.attn" for n in range(2)}
    with dense(qwen.transformer, names) as truth:
        draw(qwen)
    with xattn.record(qwen, affinity=True) as trace:
        draw(qwen)
    calls = [each for found in truth.values() for each in found if each.shape[2] == OWN]
    right = torch.stack(calls)[..., -OWN:].mean((0, 2))[0]
    assert trace.run.affinity is not None
    found = trace.run.affinity[0].reshape(OWN, OWN).double()
    torch.testing.assert_close(found, right / right.sum(-1, keepdim=True), atol=1e-3, rtol=0)


def test_a_text_that_reads_itself_alone_gives_nothing_to_places(qwen: Any) -> None:
    with (
        pytest.raises(ValueError, match="direction='text' needs joint attention"),
        xattn.record(qwen, direction="text"),
    ):
        pass


def test_flex_attention_is_refused(qwen: Any) -> None:
    own = dict(qwen.transformer.attn_processors)
    module = "diffusers.models.transformers.transformer_qwenimage21"
    flex = find("QwenImage21FlexAttnProcessor", module)
    qwen.transformer.set_attn_processor(flex())
    try:
        with (
            pytest.raises(TypeError, match="FlexAttnProcessor computes attention in flex_att"),
            xattn.record(qwen),
        ):
            draw(qwen)
    finally:
        qwen.transformer.set_attn_processor(own)


JOY = {"height": 12 * 16, "width": 8 * 16}
LONG = "a blue boat on a green lawn and a red car and a dog"
JOYS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "from text": ({}, {"prompt": [LAWN, BOAT], "guidance_scale": 1.0}),
    "with a picture": ({}, {"image": PICTURES[1], "negative_prompt": LONG}),
    "with a picture, padded in front": (
        {"side": "left"},
        {"image": PICTURES[1], "prompt": [LAWN, BOAT], "guidance_scale": 1.0},
    ),
    "Plus": ({"plus": True}, {"images": PICTURES, "negative_prompt": LONG}),
    "Plus, padded in front": (
        {"plus": True, "side": "left"},
        {"images": [PICTURES, PICTURES], "prompt": [LAWN, BOAT], "guidance_scale": 1.0},
    ),
}


@pytest.mark.parametrize("name", JOYS)
def test_words_of_joyimage_are_found_and_maps_are_the_dense_softmaxs(name: str) -> None:
    how, options = JOYS[name]
    pipe, options = pictured.joy(**how), {**JOY, **options}
    prompts = options.get("prompt", LAWN)
    prompts = [prompts] if isinstance(prompts, str) else prompts
    guided = 1 if options.get("guidance_scale") else 2
    names = {layer.name for layer in family_of(pipe.transformer).layers(pipe.transformer)}
    torch.manual_seed(0)  # a picture's latents are drawn without the generator
    with tokens_read(pipe.text_encoder) as given, dense(pipe.transformer, names) as truth:
        plain = draw(pipe, **options)
    keys = "multiple_images" if "image" in options or "images" in options else "image"
    ids = given[0][:, pipe.prompt_template_encode_start_idx[keys] :]
    count = ids.shape[1]
    torch.manual_seed(0)
    with xattn.record(pipe, **HOW, words=range(count)) as trace:
        image = draw(pipe, **options)
    assert torch.equal(image, plain)
    sharpest = 0.0
    for n, layer in enumerate(trace.run.layers):
        # guidance is a call of its own, or the first half of the batch
        calls = torch.stack(truth[layer.name][:: 1 if "Plus" in name else guided])
        images = _images(pipe, options)
        right = calls[:, -len(prompts) :, :, :OWN, images : images + count].transpose(-1, -2)
        torch.testing.assert_close(trace.run.maps(n).flatten(-2).double(), right, atol=1e-5, rtol=0)
        sharpest = max(sharpest, float((right.amax(-1) - right.amin(-1)).max()))
    assert sharpest > 0.02
    assert trace.prompts == tuple(prompts)
    for prompt, row in zip(trace.run.prompts, ids.tolist(), strict=True):
        assert [word.text for word in prompt.words] == prompt.text.split()
        assert all(row[token.position] == token.id for token in prompt.tokens)


def _images(pipe: Any, options: dict[str, Any]) -> int:
    """How many positions the drawn image and given pictures have."""
    if "image" in options:
        return 2 * OWN  # of the same size
    pictures = options.get("images", [])
    one = pictures[0] if pictures and isinstance(pictures[0], list) else pictures
    return OWN + sum(p.width // 16 * (p.height // 16) for p in one)


def test_prompts_of_joyimage_with_different_numbers_of_pictures_are_refused() -> None:
    pipe = pictured.joy(plus=True)
    with pytest.raises(ValueError, match="draw them one by one"), xattn.record(pipe):
        draw(pipe, [LAWN, BOAT], **JOY, images=[PICTURES, PICTURES[:1]])


def test_an_edit_of_joyimages_pictures_changes_the_sibling_alone() -> None:
    pipe = pictured.joy(plus=True)
    seed = torch.Generator().manual_seed(0)
    options = {**JOY, "images": PICTURES, "num_inference_steps": 2, "output_type": "latent"}
    result = xattn.edit(pipe, LAWN, Replace("red", "blue"), trace=False, generator=seed, **options)
    seeds = [torch.Generator().manual_seed(0) for _ in range(2)]
    both = draw(pipe, [LAWN, LAWN], **{**options, "images": [PICTURES] * 2}, generator=seeds)
    assert torch.equal(result.source, both[0])
    assert not torch.equal(result.images[0], both[0])
    with pytest.raises(ValueError, match="draws one image of a prompt"):
        xattn.edit(pipe, LAWN, Replace("red", "blue"), generator=[seed, seed], **options)


OMNI: dict[str, dict[str, Any]] = {
    "from text": {"prompt": [LAWN, BOAT]},
    "with pictures": {
        "prompt": "a red <img><|image_2|></img> car on <img><|image_1|></img>",
        "input_images": PICTURES,
    },
}


@pytest.fixture(scope="module")
def omnigen() -> Any:
    return pictured.omnigen()


@pytest.mark.parametrize("name", OMNI)
def test_omnigens_words_stand_between_its_pictures(omnigen: Any, name: str) -> None:
    names = {f"layers.{n}.self_attn" for n in range(2)}
    torch.manual_seed(0)  # pictures' latents are drawn without the generator
    with (
        tokens_read(omnigen.transformer.embed_tokens) as given,
        dense(omnigen.transformer, names) as truth,
    ):
        plain = draw(omnigen, **OMNI[name])
    torch.manual_seed(0)
    count, before = given[0].shape[1], omnigen.multimodal_processor
    with xattn.record(omnigen, **HOW, words=range(count)) as trace:
        image = draw(omnigen, **OMNI[name])
    assert torch.equal(image, plain)
    assert omnigen.multimodal_processor is before
    texts = OMNI[name]["prompt"]
    texts = [texts] if isinstance(texts, str) else texts
    assert trace.prompts == tuple(texts)
    for n, layer in enumerate(trace.run.layers):
        calls = torch.stack(truth[layer.name])[:, : len(texts)]
        assert calls.shape[-1] == count + 1 + OWN
        right = calls[..., -OWN:, :count].transpose(-1, -2)
        torch.testing.assert_close(trace.run.maps(n).flatten(-2).double(), right, atol=1e-5, rtol=0)
    for prompt, ids in zip(trace.run.prompts, given[0].tolist(), strict=False):
        assert [word.text for word in prompt.words] == prompt.text.split()
        assert all(ids[token.position] == token.id for token in prompt.tokens)


def test_omnigens_negative_prompt_is_its_processors_own(omnigen: Any) -> None:
    with xattn.record(omnigen, negative=True) as trace:
        draw(omnigen)
    assert trace.prompts[0] == LAWN
    assert trace.prompts[1].startswith("low quality, jpeg artifacts")


def test_omnigens_last_preview_is_its_image(omnigen: Any) -> None:
    with xattn.record(omnigen, previews=True) as trace:
        image = draw(omnigen)
    assert trace.run.estimates is not None
    torch.testing.assert_close(trace.run.estimates[-1].float(), image, atol=5e-2, rtol=1e-2)


def test_what_omnigen_cant_do_is_refused(omnigen: Any) -> None:
    with pytest.raises(ValueError, match="its time token is a key of neither"):
        xattn.edit(omnigen, LAWN, Replace("red", "blue"))
    text = "a car on <img><|image_1|></img>"
    with (
        pytest.raises(ValueError, match="OmniGen as it is called: it guides by three rows"),
        xattn.record(omnigen, previews=True),
    ):
        draw(omnigen, text, input_images=[PICTURES[0]])
    pictures = [[PICTURES[0]], [PICTURES[1]]]
    with pytest.raises(ValueError, match="draw them one by one"), xattn.record(omnigen):
        draw(omnigen, [text, text], input_images=pictures)


def test_a_pipeline_copied_inside_a_block_reads_prompts_as_before(omnigen: Any) -> None:
    plain = draw(omnigen)
    with xattn.record(omnigen):
        twin = copy.deepcopy(omnigen)
        pickled = pickle.loads(pickle.dumps(omnigen.multimodal_processor))
    for processor in (twin.multimodal_processor, pickled):
        assert isinstance(processor, pictured.OmniGenReader)
    assert torch.equal(draw(twin), plain)


def test_vital_passes_the_prompt_by_name_where_a_picture_comes_first() -> None:
    found = xattn.vital(pictured.joy(), [LAWN], height=64, width=64, num_inference_steps=1)
    assert found.layers
    assert set(found.layers) <= {f"double_blocks.{n}.attn" for n in range(2)}


def test_an_edit_with_a_picture_of_the_pipelines_own_inverts_nothing() -> None:
    pipe = pictured.joy()
    given = {"image": PICTURES[1], "num_inference_steps": 2, "output_type": "pt"}
    seeded = {"height": 32, "width": 32, "generator": torch.Generator().manual_seed(0)}
    torch.manual_seed(1)  # of the picture's latents, which the pipeline draws without a generator
    plain = pipe(prompt=LAWN, **given, **seeded).images[0]
    torch.manual_seed(1)
    seeded["generator"] = torch.Generator().manual_seed(0)
    result = xattn.edit(pipe, LAWN, Replace("red", "blue"), [], **given, **seeded)
    assert result.inversion is None
    assert "encode" not in vars(pipe.vae)
    torch.testing.assert_close(result.source, plain, atol=1e-5, rtol=0)
    torch.testing.assert_close(result.images[1], result.source, atol=1e-5, rtol=0)
    assert not torch.allclose(result.images[0], result.source, atol=1e-4)


def test_pictures_of_the_pipelines_own_have_their_name() -> None:
    with pytest.raises(ValueError, match=r"its own pictures are images=\[...\]"):
        xattn.edit(pictured.joy(plus=True), LAWN, Replace("red", "blue"), image=PICTURES[1])
