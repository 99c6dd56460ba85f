"""Relevance of heads: points by the authors' definition, beside the model's own attention."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

import xattn
from tests import tiny
from tests.helpers import picture
from xattn.attribution.marked import Marked
from xattn.processors.relevance import competed
from xattn.toyland import scene

PROMPT = "a red car"
CONCEPTS = {"colour": ["blue"], "thing": ["two cats"], "ground": ["lawn"]}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny.sd1()


@pytest.fixture(scope="module")
def pictures() -> list[Marked]:
    return [Marked(picture(16, 16), PROMPT, {}), Marked(picture(32, 16), "a blue boat", {})]


def test_each_head_points_to_the_word_it_attends_to_most(pipe: Any, pictures: list[Marked]) -> None:
    levels = (0.7, 0.3)
    table = xattn.dissect(pipe, pictures, by="relevance", concepts=CONCEPTS, levels=levels)
    wanted = {name: np.zeros((4, 3)) for name in {head.layer for head in table.heads}}
    seen: dict[str, torch.Tensor] = {}
    states = [tokens_of(pipe, *words) for words in CONCEPTS.values()]
    hooks = []
    for name in wanted:
        module = pipe.unet.get_submodule(name)

        def count(module: Any, args: Any, output: Any, name: str = name) -> None:
            queries = module.to_q(args[0] if args else seen["hidden"])
            for row in queries.unflatten(-1, (4, -1)):  # (places, heads, channels)
                for head in range(4):
                    logits = []
                    for each in states:
                        keys = module.to_k(each).unflatten(-1, (4, -1))[:, head]
                        logits.append(row[:, head] @ keys.T / keys.shape[-1] ** 0.5)
                    probs = torch.cat(logits, 1).softmax(1).mean(0)
                    parts = probs.split([each.shape[1] for each in logits])
                    best = int(torch.stack([part.mean() for part in parts]).argmax())
                    wanted[name][head, best] += 1

        hooks.append(module.register_forward_hook(count))
    for n, each in enumerate(pictures):
        xattn.probe(pipe, each.image, each.prompt, levels=levels, seed=0)
        assert n < 2
    for hook in hooks:
        hook.remove()
    points = np.concatenate([wanted[name] for name in dict.fromkeys(h.layer for h in table.heads)])
    np.testing.assert_allclose(table.values, points / np.maximum(points.mean(0), 1e-12))
    assert table.counts.tolist() == [2, 2, 2]


def tokens_of(pipe: Any, text: str) -> torch.Tensor:
    ids = pipe.tokenizer(text, padding="max_length", max_length=77, return_tensors="pt")
    with torch.no_grad():
        states = pipe.text_encoder(ids.input_ids)[0][0]
    return states[1 : int(ids.attention_mask.sum()) - 1]


def test_a_planted_head_wins_for_its_concept() -> None:
    queries = torch.zeros(1, 2, 4, 3)
    queries[0, 0, :, 0] = 5.0  # the first head looks for the first concept's key
    queries[0, 1, :3, 1] = 5.0  # the second for the second's, at three of four places
    queries[0, 1, 3:, 0] = 5.0
    keys = [torch.eye(3)[n].expand(2, 1 + n, 3) for n in range(2)]  # of one and of two tokens
    shares = competed(queries, keys)
    assert shares.argmax(-1).tolist() == [[0, 1]]
    assert float(shares[0, 0, 0] + 2 * shares[0, 0, 1]) == pytest.approx(1)


def test_words_are_drawn_anew_and_images_stay(pipe: Any, pictures: list[Marked]) -> None:
    many = {"colour": ["red", "blue"], "thing": ["two cats", "a lawn"]}
    options: dict[str, Any] = {"by": "relevance", "concepts": many, "levels": (0.5,)}
    tables = [xattn.dissect(pipe, pictures, seed=n, **options).values for n in (0, 0)]
    np.testing.assert_array_equal(*tables)
    with pytest.raises(ValueError, match="two concepts or more"):
        xattn.dissect(pipe, pictures, by="relevance", concepts={"a": ["red"]})


def test_toylands_words_are_concepts_by_their_kind() -> None:
    own = xattn.demo()
    table = xattn.dissect(own, [scene(1), scene(2)], levels=(0.5,))
    assert table.concepts[:3] == ("colour", "object", "ground")
    assert "red" in table.words["colour"]
    assert table["colour"]
