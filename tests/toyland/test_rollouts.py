"""Lessons where the student's own drawings are."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from xattn.toyland.training.loop import Batch
from xattn.toyland.training.recipes import RECIPES
from xattn.toyland.training.rollouts import GUIDANCE, LAST_LEVEL, STEPS, Rollouts
from xattn.toyland.training.teacher import RELIABLE, Lesson
from xattn.toyland.training.transformer import Transformer

CLEAN = torch.randn(4, 8, 16, 16, generator=torch.Generator().manual_seed(1))


def batch(turn: int, rows: int = 4) -> Batch:
    """Captions that tell in which turn they were offered."""
    return Batch(CLEAN[:rows], torch.full((rows, 32), turn), torch.arange(rows) % 2 == 1)


def test_drawings_follow_the_predicted_velocity_and_begin_anew_at_their_end() -> None:
    def straight(noisy: Tensor, levels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        velocity = (noisy - CLEAN) / levels.view(-1, 1, 1, 1)
        return velocity, velocity

    rollouts, random = Rollouts(), torch.Generator().manual_seed(0)
    noise, begun = CLEAN, torch.zeros(4)
    steps = []
    for turn in range(60):
        met, hard = rollouts.meet(batch(turn), straight, random)
        new = met.levels == 1
        noise = torch.where(new.view(-1, 1, 1, 1), met.noisy, noise)
        steps += (turn - begun)[new & (begun < turn)].tolist()
        begun = torch.where(new, turn, begun)
        on_the_way = torch.lerp(CLEAN, noise, met.levels.view(-1, 1, 1, 1))
        torch.testing.assert_close(met.noisy, on_the_way, rtol=0, atol=1e-4)
        assert torch.equal(met.ids[:, 0], begun.long())
        assert torch.equal(hard, batch(0).hard)
        assert float(met.levels.min()) >= LAST_LEVEL - 1 / STEPS[0]
        assert not met.taught.any()
    # a picture is left at the first level below the last: so many of its steps were taken
    shortest, longest = ((1 - LAST_LEVEL) * each for each in STEPS)
    assert steps
    assert all(shortest <= each <= longest + 2 for each in steps)


def test_drawings_are_guided() -> None:
    def asked(noisy: Tensor, levels: Tensor, ids: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(noisy), torch.zeros_like(noisy)

    rollouts, random = Rollouts(), torch.Generator().manual_seed(0)
    first, _ = rollouts.meet(batch(0), asked, random)
    second, _ = rollouts.meet(batch(1), asked, random)
    strides = first.levels - second.levels
    guidance = (first.noisy - second.noisy).mean((1, 2, 3)) / strides
    assert GUIDANCE[0] <= float(guidance.min()) < float(guidance.max()) <= GUIDANCE[1]


class Pretender:
    """A teacher that calls every velocity one, and zero without a caption."""

    def __init__(self) -> None:
        self.hard: Tensor | None = None

    def correct(self, lesson: Lesson, hard: Tensor) -> Lesson:
        self.hard = hard
        sure = (lesson.levels > RELIABLE[0]) & (lesson.levels < RELIABLE[1])
        one = torch.ones_like(lesson.noisy)
        return Lesson(lesson.noisy, lesson.levels, lesson.ids, one, 0 * one, sure)


def test_half_of_the_lessons_are_at_the_models_own_drawings() -> None:
    model: Any = RECIPES["mmdit"].build()
    assert isinstance(model, Transformer)
    random, teacher = torch.Generator().manual_seed(0), Pretender()
    lessons = [model._taught(teacher, batch(turn), random) for turn in range(8)]  # type: ignore[arg-type]
    # at first the drawings are noise alone, of which no teacher knows anything
    assert len(lessons[0]) == 2
    assert len(lessons[-1]) == 4
    assert lessons[-1].taught[2:].all()
    own = torch.stack([lesson.levels[2:] for lesson in lessons if len(lesson) == 4])
    assert torch.all(own.diff(dim=0) < 0)
    # scenes keep their captions of the turn, drawings those that they began with
    assert lessons[-1].ids[:, 0].tolist() == [7, 7, 0, 0]
    assert teacher.hard is not None
    assert teacher.hard.tolist() == batch(7).hard.tolist()


def test_a_drawings_caption_is_asked_of_the_teacher_that_knows_its_kind() -> None:
    model: Any = RECIPES["mmdit"].build()
    random, teacher = torch.Generator().manual_seed(0), Pretender()
    first, later = batch(0), batch(1)
    model._taught(teacher, replace(first, hard=torch.tensor([False, False, True, True])), random)
    model._taught(teacher, replace(later, hard=torch.tensor([False, True, False, False])), random)
    assert teacher.hard is not None
    assert teacher.hard.tolist() == [False, True, True, True]


def test_a_batch_of_one_is_a_scene_and_a_drawing() -> None:
    model: Any = RECIPES["mmdit"].build()
    random = torch.Generator().manual_seed(0)
    lessons = [model._taught(Pretender(), batch(turn, rows=1), random) for turn in range(8)]
    assert [len(each) for each in lessons[::7]] == [1, 2]
