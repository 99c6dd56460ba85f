"""Dissection: IoU as by brute force, a planted head, and what weights of heads do."""

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
from tests.helpers import assert_restored, draw, picture
from tests.tiny import transformers
from tests.tiny.classes import skip_before_torch
from xattn.attribution.dissect import iou, on_grid
from xattn.attribution.maps import head_maps
from xattn.attribution.marked import Marked, from_coco, marked, run_lengths
from xattn.edits import codec
from xattn.results.concepts import Segmentation
from xattn.results.dissection import Dissection, Head

PROMPT = "a red car"


def half(left: bool) -> Any:
    mask = np.zeros((16, 16), dtype=bool)
    mask[:, :8] = left
    mask[:, 8:] = not left
    return mask


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sd1()


@pytest.fixture(scope="module")
def pictures() -> list[Marked]:
    masks = [{"red": half(True), "car": half(False)}, {"car": half(True)}]
    return [Marked(picture(16, 16), PROMPT, each) for each in masks]


def test_iou_is_counted_over_all_pictures_as_by_hand(pipe: Any, pictures: list[Marked]) -> None:
    table = xattn.dissect(pipe, pictures, levels=(0.5,))
    assert table.concepts == ("car", "red")
    assert table.counts.tolist() == [2, 1]
    for h, head in enumerate(table.heads[:3]):
        both = either = 0
        for n, each in enumerate(pictures):
            trace = xattn.probe(
                pipe, [p.image for p in pictures], [PROMPT] * 2, levels=0.5, keep=("layer", "head")
            )[n]
            heat = head_maps(trace.run, "car", head.layer)[head]
            for cell in np.ndindex(*heat.shape):
                above = heat[cell] > 2 * heat.mean()
                inside = on_grid(each.masks["car"], heat.shape)[cell]
                both, either = both + int(above and inside), either + int(above or inside)
        assert table.values[h, 0] == pytest.approx(both / either)


def test_a_planted_head_is_found() -> None:
    rng = np.random.default_rng(0)
    masks = [rng.random((8, 8)) > 0.8 for _ in range(4)]
    noise = [rng.random((8, 8)).astype(np.float32) for _ in masks]
    planted = [
        mask.astype(np.float32) + 0.1 * each for mask, each in zip(masks, noise, strict=True)
    ]
    assert iou(planted, masks) == 1.0
    assert iou(noise, masks, limit=0.8) < 0.3
    assert iou([], []) == 0.0


def test_all_heads_make_the_default_map(pipe: Any, pictures: list[Marked]) -> None:
    table = xattn.dissect(pipe, pictures, levels=(0.5,))
    trace = xattn.probe(pipe, picture(16, 16), PROMPT, levels=0.5, keep=("layer", "head"))
    default = np.asarray(trace.heatmap("red"))
    np.testing.assert_allclose(
        np.asarray(trace.heatmap("red", heads=table.every)), default, rtol=1e-5
    )
    few = np.asarray(trace.heatmap("red", heads=table["red"]))
    assert not np.allclose(few, default)
    one = table.order("red")[0]
    alone = head_maps(trace.run, "red", one.layer)[one]
    found = trace.heatmap("red", heads={one.layer: [one.head]})
    np.testing.assert_allclose(np.asarray(found), alone, rtol=1e-5)
    with pytest.raises(ValueError, match="was not recorded"):
        trace.heatmap("red", heads={"nowhere": [0]})


def test_relevance_in_joint_attention_is_of_the_prompts_own_words(
    pictures: list[Marked],
) -> None:
    skip_before_torch("2.7", "shares at a tie fall to the other side")
    concepts = {"colour": ["red"], "thing": ["car"]}
    own = transformers.sd3(t5=False)
    table = xattn.dissect(own, pictures, by="relevance", concepts=concepts, levels=(0.5,))
    trace = xattn.probe(
        own, [picture(16, 16)] * 2, [PROMPT] * 2, levels=0.5, keep=("layer", "head")
    )
    points = []  # car's share is above that of red, or not, in each head
    for head in table.heads:
        points.append([0, 0])
        for each in trace:
            red, car = (head_maps(each.run, word, head.layer)[head] for word in ("red", "car"))
            points[-1][int((car / np.maximum(red + car, 1e-12)).mean() > 0.5)] += 1
    wanted = np.array(points) / np.maximum(np.mean(points, axis=0), 1e-12)
    np.testing.assert_allclose(table.values, wanted)


def test_heads_are_labelled_drawn_and_told() -> None:
    heads = (Head("down_blocks.0.attn2", 0), Head("down_blocks.0.attn2", 1))
    table = Dissection(
        heads, ("red", "car"), np.array([[0.5, 0.1], [0.01, 0.02]]), np.array([3, 4])
    )
    assert table.detectors() == [(heads[0], "red", 0.5)]
    assert "knows 'red' best: IoU 0.500" in table.sentences()[0]
    assert "none of the concepts" in table.sentences()[1]
    assert "*0.500" in table.table()
    assert table.top("car", 1) == {"down_blocks.0.attn2": (0,)}
    assert sorted(table.random(1)) == sorted(heads)
    assert table.plot().height > 60
    with pytest.raises(ValueError, match="not one of the concepts"):
        table["boat"]


@pytest.mark.parametrize("make", [tiny.sd1, lambda: transformers.sd3(t5=False)])
def test_weakened_words_change_the_picture_and_a_weight_of_one_nothing(make: Any) -> None:
    own = make()
    pictures = [Marked(picture(16, 16), PROMPT, {"red": half(True)})]
    table = xattn.dissect(own, pictures, levels=(0.5,))
    plain = draw(own, PROMPT)
    with table.weaken(own, "red", weight=1.0):
        np.testing.assert_array_equal(draw(own, PROMPT), plain)
    with table.weaken(own, "red", count=len(table.heads)) as heads:
        weak = draw(own, PROMPT)
        np.testing.assert_array_equal(draw(own, "two cats"), draw(own, "two cats"))
    assert heads == table.every
    assert not np.allclose(weak, plain, atol=1e-4)
    np.testing.assert_array_equal(draw(own, PROMPT), plain)


def every_head(pipe: Any) -> dict[str, list[int]]:
    """Return all heads of all text layers."""
    keep = ("layer", "head")
    trace = xattn.probe(pipe, picture(16, 16), PROMPT, levels=0.5, layers="*", keep=keep)
    return {layer.name: list(range(layer.heads)) for layer in trace.run.layers}


def edited(pipe: Any, *edits: Any, **options: Any) -> list[Any]:
    result = xattn.edit(
        pipe, PROMPT, *edits, num_inference_steps=3, height=32, width=32,
        generator=torch.Generator().manual_seed(0), output_type="np", **options,
    )  # fmt: skip
    return [np.asarray(image) for image in (result.source, *result.images)]


@pytest.mark.parametrize("make", [tiny.sd1, lambda: transformers.sd3(t5=False)])
def test_a_weight_in_every_head_is_the_words_weight(make: Any) -> None:
    skip_before_torch("2.7", "rounding grows faster than the other heads' share")
    own = make()
    heads = every_head(own)
    source, plain, same, few = edited(
        own,
        xattn.Reweight("red", 3.0),
        xattn.Reweight("red", 3.0, heads=heads),
        xattn.Reweight("red", 3.0, heads={next(iter(heads)): [0]}),
    )
    # rounding grows over three sharp steps, and stays far below what the other heads do
    assert np.abs(same - plain).max() < 0.1 * np.abs(few - plain).max()
    assert not np.allclose(few, source, atol=1e-5)


def test_a_weight_of_heads_goes_with_other_edits_and_into_json(pipe: Any) -> None:
    heads = every_head(pipe)
    swap = xattn.Replace("red", "blue")
    _, both, same = edited(
        pipe,
        [swap, xattn.Reweight("blue", 2.0)],
        [swap, xattn.Reweight("blue", 2.0, heads=heads)],
    )
    np.testing.assert_allclose(same, both, atol=1e-3)
    edit = xattn.Reweight("red", 2.0, heads={"mid": (0, 2)})
    assert codec.from_json(codec.to_json(edit)).heads == {"mid": (0, 2)}
    assert "heads" not in repr(xattn.Reweight("red", 2.0))
    with pytest.raises(ValueError, match="heads of layers"):
        xattn.Reweight("red", 2.0, heads={})
    with pytest.raises(ValueError, match="is not a layer with these heads"):
        edited(pipe, xattn.Reweight("red", 2.0, heads={"nowhere": [0]}))


def test_weakening_leaves_the_pipeline_as_it_was(pipe: Any) -> None:
    every = tuple(Head(name, n) for name, several in every_head(pipe).items() for n in several)
    table = Dissection(every, ("red",), np.ones((len(every), 1)), np.array([1]))
    before = dict(pipe.unet.attn_processors)
    with table.weaken(pipe, "red", heads=every[:3], weight=0.5) as heads:
        draw(pipe, PROMPT)
    assert sum(map(len, heads.values())) == 3
    assert_restored(pipe, before)


def test_a_folder_with_captions_is_read(tmp_path: Path) -> None:
    picture(16, 16).save(tmp_path / "one.png")
    Image.fromarray(half(True)).save(tmp_path / "red.png")
    line = {"image": "one.png", "prompt": PROMPT, "masks": {"red": "red.png"}}
    (tmp_path / "captions.jsonl").write_text(json.dumps(line) + "\n", "utf-8")
    (found,) = marked(tmp_path)
    assert found.prompt == PROMPT
    np.testing.assert_array_equal(found.masks["red"], half(True))
    (tmp_path / "captions.jsonl").write_text('{"image": "one.png"}\n', "utf-8")
    with pytest.raises(ValueError, match="line 1"):
        marked(tmp_path)
    with pytest.raises(ValueError, match=r"has no captions\.jsonl"):
        marked(tmp_path / "none")


def test_cocos_polygons_become_masks(tmp_path: Path) -> None:
    picture(16, 16).save(tmp_path / "one.png")
    data = {
        "images": [{"id": 1, "file_name": "one.png", "width": 16, "height": 16}],
        "categories": [{"id": 7, "name": "car"}],
        "annotations": [
            {"image_id": 1, "category_id": 7, "segmentation": [[0, 0, 7, 0, 7, 15, 0, 15]]}
        ],
    }
    (tmp_path / "coco.json").write_text(json.dumps(data), "utf-8")
    (found,) = from_coco(tmp_path / "coco.json", tmp_path)
    assert found.prompt == "a car"
    np.testing.assert_array_equal(found.masks["car"], half(True))


def packed(lengths: list[int]) -> str:
    """Pack run lengths as COCO's tools do, for a test of reading them."""
    text = ""
    for n, length in enumerate(lengths):
        left = length - (lengths[n - 2] if n > 2 else 0)
        more = True
        while more:
            bits, left = left & 31, left >> 5
            more = left != (-1 if bits & 16 else 0)
            text += chr(48 + bits + 32 * more)
    return text


def test_run_lengths_are_read_as_lists_and_as_text(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lengths = [0, 3, 200, 7, 90, 1000, 2]
    assert run_lengths(packed(lengths)) == lengths
    mask = rng.random((16, 16)) > 0.7
    picture(16, 16).save(tmp_path / "image.png")
    data = Segmentation(mask.astype(np.uint8), ("car",)).to_coco()
    for form in (list, packed):
        own = data["annotations"][0]["segmentation"]
        own["counts"] = form(own["counts"])
        (tmp_path / "coco.json").write_text(json.dumps(data), "utf-8")
        (found,) = from_coco(tmp_path / "coco.json", tmp_path)
        np.testing.assert_array_equal(found.masks["car"], mask)


def test_what_cannot_be_dissected_is_refused(pipe: Any, pictures: list[Marked]) -> None:
    with pytest.raises(ValueError, match="'iou' or 'relevance'"):
        xattn.dissect(pipe, pictures, by="magic")
    with pytest.raises(ValueError, match="no word of 'sky' has a mask"):
        xattn.dissect(pipe, pictures, concepts={"sky": ["night"]})
    with pytest.raises(ValueError, match="share of cells"):
        xattn.dissect(pipe, pictures, threshold=2.0)
    with pytest.raises(ValueError, match="scenes is empty"):
        xattn.dissect(pipe, [])
