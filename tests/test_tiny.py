from __future__ import annotations

import importlib
import pkgutil
import re
from pathlib import Path

import diffusers
import numpy as np
import PIL.Image
import pytest
import torch
import transformers
from packaging.version import Version

from tests import tiny
from tests.tiny import classes, vocabulary

PROMPT = "a red car on a green lawn"


def picture(value: int = 120) -> PIL.Image.Image:
    pixels = np.random.default_rng(0).integers(0, 2 * value, (32, 32, 3), dtype=np.uint8)
    return PIL.Image.fromarray(pixels)


def test_the_committed_vocabulary_is_what_its_script_makes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vocabulary, "HERE", tmp_path)
    vocabulary.main()
    for name in ("vocab.json", "merges.txt"):
        assert (tmp_path / name).read_bytes() == (tiny.HERE / name).read_bytes()


def test_each_listed_word_is_one_token() -> None:
    tok = tiny.tokenizer()
    assert [w for w in vocabulary.WORDS if len(tok.tokenize(w)) != 1] == []


@pytest.mark.parametrize("name", sorted(tiny.SCHEDULERS))
def test_every_scheduler_draws(name: str) -> None:
    images = tiny.sd1(name)(PROMPT, num_inference_steps=2, output_type="np").images
    assert images.shape == (1, 32, 32, 3)
    assert np.isfinite(images).all()


@pytest.mark.parametrize("name", ["sd1", "sd2", "sdxl"])
def test_every_family_draws_any_aspect(name: str) -> None:
    pipe = getattr(tiny, name)()
    images = pipe(PROMPT, num_inference_steps=2, height=32, width=48, output_type="np").images
    assert images.shape == (1, 32, 48, 3)
    assert images.std() > 0.05


@pytest.mark.parametrize(
    ("name", "given"),
    [
        ("sd1_img2img", {"image": picture(), "strength": 0.5}),
        ("sd1_inpaint", {"image": picture(), "mask_image": PIL.Image.new("L", (32, 32), 255)}),
        ("sdxl_img2img", {"image": picture(), "strength": 0.5}),
        ("sdxl_inpaint", {"image": picture(), "mask_image": PIL.Image.new("L", (32, 32), 255)}),
        ("controlnet", {"image": picture()}),
        ("pag", {"pag_scale": 3.0}),
    ],
)
def test_every_sibling_draws(name: str, given: dict[str, object]) -> None:
    images = getattr(tiny, name)()(PROMPT, num_inference_steps=4, output_type="np", **given).images
    assert images.shape == (1, 32, 32, 3)


def _draw(pipe: object, **given: object) -> np.ndarray:
    generator = torch.Generator().manual_seed(0)
    call = {"num_inference_steps": 2, "output_type": "np", "prompt": PROMPT, **given}
    return pipe(generator=generator, **call).images  # type: ignore[operator]


def test_words_adapters_and_loras_change_the_image() -> None:
    plain = _draw(tiny.sd1())
    assert np.abs(_draw(tiny.sd1(), prompt="a blue boat") - plain).max() > 1e-3
    pipe = tiny.sd1()
    embeds = tiny.load_ip_adapter(pipe)
    assert np.abs(_draw(pipe, ip_adapter_image_embeds=embeds) - plain).max() > 1e-3
    pipe.unload_ip_adapter()
    assert np.array_equal(_draw(pipe), plain)
    tiny.add_lora(pipe)
    assert np.abs(_draw(pipe) - plain).max() > 1e-3


def test_the_added_kv_unet_has_added_kv_processors() -> None:
    unet = tiny.added_kv_unet()
    kinds = {type(p).__name__ for p in unet.attn_processors.values()}
    assert any("AddedKV" in kind for kind in kinds)
    with torch.no_grad():
        assert unet(torch.randn(1, 4, 16, 24), 5, torch.randn(1, 77, 32)).sample.isfinite().all()


def test_an_inversion_of_three_vectors_is_three_tokens() -> None:
    pipe = tiny.sd1()
    tiny.add_inversion(pipe, "<toy>", 3)
    assert pipe.maybe_convert_prompt("a <toy> car", pipe.tokenizer) == "a <toy> <toy>_1 <toy>_2 car"
    assert _draw(pipe, prompt="a <toy> car").shape == (1, 32, 32, 3)


def pinned(name: str) -> Version:
    text = (Path(__file__).parent.parent / "constraints.txt").read_text(encoding="utf-8")
    (version,) = re.findall(rf"^{name}==(\S+)$", text, re.MULTILINE)
    return Version(version)


def test_no_test_is_skipped_for_a_class_on_the_pinned_versions() -> None:
    for module in pkgutil.iter_modules(tiny.__path__):
        importlib.import_module(f"tests.tiny.{module.name}")
    if all(Version(m.__version__) >= pinned(m.__name__) for m in (diffusers, transformers)):
        assert classes.LACKING == {}
    else:
        assert all(f"lacks {name}" in reason for name, reason in classes.LACKING.items())


@pytest.mark.parametrize("module", ["diffusers", "diffusers.pipelines.nonsense"])
def test_a_class_that_isnt_there_skips_and_is_named(
    module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classes, "LACKING", {})
    found = classes.find("NonsensePipeline", module)
    for use in (found, lambda: found.from_pretrained, lambda: classes.needed(found)):
        with pytest.raises(pytest.skip.Exception, match="lacks NonsensePipeline"):
            use()
    assert classes.LACKING.keys() == {"NonsensePipeline"}
    assert classes.needed(classes.find("DDIMScheduler")) is diffusers.DDIMScheduler
