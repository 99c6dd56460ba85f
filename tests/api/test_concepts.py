"""Words that nobody prompted: nothing else changes, and each form is what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import xattn
from tests import tiny
from tests.tiny import transformers
from xattn.instruments.streams import check_blocks
from xattn.maps import daam
from xattn.results.concepts import Segmentation

PROMPT = "a red car"
SIZE = {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "np"}
BUILT: dict[str, Any] = {
    "sd1": tiny.sd1,
    "sd3": lambda: transformers.sd3(t5=False),
    "flux": transformers.flux,
}


@pytest.fixture(scope="module", params=list(BUILT))
def pair(request: pytest.FixtureRequest) -> tuple[xattn.Trace, Any, xattn.Trace, Any]:
    """A trace with its picture, without concepts and with them."""
    pipe = BUILT[request.param]()
    more = {"max_sequence_length": 8} if request.param == "flux" else {}
    found: list[Any] = []
    for also in (None, ["boat", "a green lawn"]):
        generator = torch.Generator().manual_seed(0)
        with xattn.record(pipe, also=also, dtype=torch.float32) as trace:
            found += [trace, pipe(PROMPT, generator=generator, **SIZE, **more).images[0]]
    return tuple(found)


def test_asking_changes_neither_the_image_nor_the_other_maps(pair: Any) -> None:
    plain, before, asked, after = pair
    np.testing.assert_array_equal(before, after)
    for n in range(len(plain.run.layers)):
        assert torch.equal(plain.run.maps(n), asked.run.maps(n))


def test_every_form_has_a_map_of_each_concept(pair: Any, tmp_path: Path) -> None:
    trace = pair[2]
    forms = list(trace.run.concepts)
    assert forms in (["attention", "competition"], ["attention", "output"])
    for form in forms:
        maps = trace.concepts(form=form)
        assert list(maps) == ["boat", "a green lawn"]
        assert maps.form == form
        assert all(heat.maximum > 0 for heat in maps.values())
    assert trace.concepts().form == forms[-1]
    assert trace.nbytes > trace.run.store.nbytes
    trace.save(tmp_path / "trace.safetensors")
    read = xattn.load(tmp_path / "trace.safetensors")
    assert len(read) == 1
    np.testing.assert_array_equal(read.concepts()["boat"], trace.concepts()["boat"])


def test_outputs_share_each_place_among_the_concepts_named(pair: Any) -> None:
    trace = pair[2]
    if "output" not in trace.run.concepts:
        pytest.skip("only joint attention has outputs to compare with")
    for names in (["boat", "a green lawn"], ["boat", "background"]):
        total = sum(np.asarray(heat) for heat in trace.concepts(names).values())
        np.testing.assert_allclose(total, 1, atol=1e-4)


def test_the_prompts_own_words_give_the_recorded_maps() -> None:
    pipe = tiny.sd1()
    with xattn.record(pipe, also=[PROMPT], dtype=torch.float32) as trace:
        pipe(PROMPT, generator=torch.Generator().manual_seed(0), **SIZE)
    run, own = trace.run, trace.run.concepts["attention"]
    # before the maps are resized and clamped: a mean of clamped maps is not the mean's clamped map
    for layer in range(len(run.layers)):
        want = daam.layer_maps(run, layer, run.positions).mean(0)
        np.testing.assert_allclose(daam.layer_maps(own, layer, [0])[0], want, atol=1e-5)
    (shown,) = daam.token_maps(own, [0])
    np.testing.assert_allclose(trace.concepts(PROMPT, form="attention")[PROMPT], shown, atol=1e-5)


def test_competition_is_attention_times_the_share_in_each_head() -> None:
    """By hand, in one layer: softmax over concepts of the logits, head by head."""
    from xattn.processors.call import AttentionCall
    from xattn.processors.concepts import TextKeys

    g = torch.Generator().manual_seed(0)
    query, keys = torch.randn(1, 2, 6, 4, generator=g), torch.randn(2, 2, 3, 4, generator=g)
    handler = TextKeys()
    handler.rows, handler.keys = (slice(0, 1),), list(keys)
    handler.tokens = [torch.tensor([1]), torch.tensor([1, 2])]
    handler.buffers = (torch.zeros(1, 1, 2, 2, 3), torch.zeros(1, 1, 2, 2, 3))
    handler.observe(AttentionCall(query, query, query, None, 0.5, None))
    logits = torch.einsum("hqd,chtd->chqt", query[0], keys) / 2  # (concepts, heads, queries, t)
    probs = logits.softmax(-1)
    attention = torch.stack([probs[0, ..., 1], probs[1, ..., 1:].mean(-1)])
    share = torch.stack([logits[0, ..., 1], logits[1, ..., 1:].mean(-1)]).softmax(0)
    for buffer, want in zip(handler.buffers, (attention, attention * share), strict=True):
        torch.testing.assert_close(buffer[0, 0].flatten(1), want.mean(1))


def test_a_given_image_is_asked_with_an_empty_prompt() -> None:
    pipe = tiny.sd1()
    photos = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    options: dict[str, Any] = {"levels": 0.5, "size": (16, 16), "also": ["car", "sky"]}
    both = xattn.probe(pipe, photos, "", seed=[3, 4], **options)
    alone = xattn.probe(pipe, photos[1], "", seed=4, **options)
    np.testing.assert_allclose(both[1].concepts()["car"], alone.concepts()["car"], atol=1e-5)
    assert both[0].concepts().segmentation().labels.shape == (16, 16)


@pytest.mark.parametrize("also", [[""], ["car", 3], [], "...", ["background"]])
def test_a_concept_of_no_words_is_refused(also: Any) -> None:
    with pytest.raises(ValueError, match="also="):
        xattn.probe(tiny.sd1(), Image.new("RGB", (16, 16)), "", also=also)


def test_what_was_not_asked_is_told(pair: Any) -> None:
    plain, _, asked, _ = pair
    with pytest.raises(ValueError, match="no concepts were asked for"):
        plain.concepts()
    with pytest.raises(ValueError, match="'wheel' was not asked for; those asked are: boat, a gre"):
        asked.concepts(["boat", "wheel"])
    with pytest.raises(ValueError, match="form='best' is none of attention"):
        asked.concepts(form="best")
    pipe = tiny.sd1()
    loop = xattn.Loop(pipe.unet, tokenizer=pipe.tokenizer, prompt=PROMPT)
    block = xattn.record(loop, also="boat")
    with pytest.raises(TypeError, match="also= needs a pipeline"):
        block.__enter__()


def test_blocks_that_are_not_known_are_refused_in_a_sentence() -> None:
    check_blocks(transformers.flux_transformer())
    with pytest.raises(ValueError, match="also= can't be had with Linear"):
        check_blocks(torch.nn.Linear(1, 1))


def test_a_segmentation_becomes_masks_and_cocos_json(tmp_path: Path) -> None:
    labels = np.array([[0, 1, 1], [2, 1, 0]], np.uint8)
    found = Segmentation(labels, ("car", "sky", "boat"))
    masks = found.masks()
    assert masks["car"].sum() == 3
    assert not masks["boat"].any()
    told = found.to_coco()
    assert [each["name"] for each in told["categories"]] == ["car", "sky", "boat"]
    car, sky = told["annotations"]
    assert (car["area"], car["bbox"]) == (3, [1, 0, 2, 2])
    assert car["segmentation"] == {"size": [2, 3], "counts": [2, 3, 1]}  # by columns
    assert sky["segmentation"]["counts"] == [1, 1, 4]
    assert found.overlay().width > found.overlay(legend=False).width == 3
    with pytest.raises(ValueError, match=r"a folder of masks; for one picture use .overlay\(\)"):
        found.save(tmp_path / "masks.png")
    assert not list(tmp_path.iterdir())
    found.save(tmp_path / "masks")
    assert json.loads((tmp_path / "masks/coco.json").read_text())["annotations"] == [car, sky]
    with Image.open(tmp_path / "masks/labels.png") as picture:
        np.testing.assert_array_equal(np.asarray(picture), labels)
