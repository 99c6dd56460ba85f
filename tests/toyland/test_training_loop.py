"""The loop that all denoisers share, around a made-up model."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from xattn.toyland.training.loop import Batch, Examples, Schedule, Trainable, train


class Slope(Trainable):
    """One weight, drawn to three; it remembers what it was shown."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.seen: list[int] = []
        self.installed = False

    def loss(self, batch: Batch, random: torch.Generator) -> torch.Tensor:
        assert self.installed
        assert self.training
        self.seen += batch.ids[:, 0].tolist()
        return (self.weight - 3).square()

    def begin(self, device: str) -> None:
        self.installed = True

    def end(self) -> None:
        self.installed = False


EXAMPLES = Examples(
    torch.zeros(50, 8, 16, 16),
    torch.arange(50)[:, None],
    torch.zeros(50).bool(),
    torch.zeros(1, 1).long(),
    dropout=0.0,
)


def trained(folder: Path, steps: int, seed: int = 0, **options: object) -> Slope:
    folder.mkdir(exist_ok=True)
    model = Slope()
    schedule = Schedule(steps, batch=4, peak_rate=0.1, warmup=1, save_every=2, seed=seed)
    train(model, "model", EXAMPLES, folder, schedule, autocast=False, **options)  # type: ignore[arg-type]
    return model


def test_a_seed_decides_which_scenes_come_when(tmp_path: Path) -> None:
    first, same, other = (
        trained(tmp_path / name, 3, seed).seen for name, seed in (("a", 0), ("b", 0), ("c", 1))
    )
    assert first == same
    assert first != other


def test_the_model_is_left_with_the_average_of_its_weights(tmp_path: Path) -> None:
    looked: list[float] = []

    def look(model: Trainable, step: int) -> None:
        assert isinstance(model, Slope)
        assert not model.installed
        assert not model.training
        looked.append(model.weight.item())

    model = trained(tmp_path, 20, look=look)
    last = torch.load(tmp_path / "model.pt", weights_only=True)["model"]["weight"]
    assert 0 < model.weight.item() < float(last) < 3  # behind, as an average of the past is
    assert looked[-1] == pytest.approx(model.weight.item())
    assert len(looked) == 10


def test_a_training_goes_on_where_it_was_left(tmp_path: Path) -> None:
    trained(tmp_path / "cut", 3)
    resumed = trained(tmp_path / "cut", 5)
    assert resumed.seen == trained(tmp_path / "whole", 5).seen[3 * 4 :]
