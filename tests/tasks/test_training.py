"""Training once: reproducible, kept, and not fooled by a damaged or foreign cache file."""

from __future__ import annotations

import dataclasses
import logging
import math
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from rlprune_edge.errors import UserError
from rlprune_edge.records import MetricSpec
from rlprune_edge.tasks.arrays import InMemoryTask
from rlprune_edge.tasks.task import LoadedModel
from rlprune_edge.tasks.training import Training, train_once

HOW = Training(epochs=3, batch_size=20, learning_rate=0.1, weight_decay=0.0, schedule="onecycle")


class Signs(InMemoryTask):
    """Is the sum of four numbers positive?"""

    name = "signs"
    metric = MetricSpec("accuracy", higher_is_better=True)
    chance_loss = math.log(2)

    def tensors(self, split: str) -> tuple[Tensor, Tensor]:
        inputs = torch.randn(100, 4, generator=torch.Generator().manual_seed(len(split)))
        return inputs, (inputs.sum(1) > 0).long()

    def model(self, *_: object, **__: object) -> LoadedModel:
        raise AssertionError("not asked for here")


def train(cache: Path, told: list[float] | None = None, how: Training = HOW, data: str = "1") -> nn.Module:
    def progress(done: int, of: int, loss: float) -> None:
        assert 1 <= done <= of == how.epochs
        if told is not None:
            told.append(loss)

    return train_once(
        lambda: nn.Linear(4, 2), Signs(), how, name="linear", data=data, cache_dir=cache, progress=progress
    )


def test_training_is_done_once_and_leaves_the_callers_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    state = torch.get_rng_state()
    losses: list[float] = []
    first = train(tmp_path, losses)
    kept = train(tmp_path, losses)
    assert len(losses) == 3
    assert losses[-1] < losses[0] < 1.0
    assert torch.equal(first.weight, kept.weight)
    assert torch.equal(torch.get_rng_state(), state)
    assert len(list((tmp_path / "models").iterdir())) == 1


def test_the_same_recipe_gives_the_same_network_on_an_empty_cache(tmp_path: Path) -> None:
    assert torch.equal(train(tmp_path / "a").weight, train(tmp_path / "b").weight)


def test_other_data_or_another_recipe_mean_another_network(tmp_path: Path) -> None:
    train(tmp_path)
    train(tmp_path, data="2")
    train(tmp_path, how=dataclasses.replace(HOW, epochs=2, schedule="cosine"))
    assert len(list((tmp_path / "models").iterdir())) == 3


def test_a_damaged_cache_file_is_trained_again_and_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    first = train(tmp_path)
    (file,) = (tmp_path / "models").iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    with caplog.at_level(logging.WARNING):
        again = train(tmp_path)
    assert "training again" in caplog.text
    assert torch.equal(first.weight, again.weight)
    assert len(file.read_bytes()) == len(whole)


def test_a_training_that_diverges_says_so(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"diverged in epoch \d.*below 1e\+38"):
        train(tmp_path, how=dataclasses.replace(HOW, learning_rate=1e38))
    assert not (tmp_path / "models").exists()


def test_a_cache_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    (tmp_path / "models").write_text("in the way")
    with pytest.raises(UserError, match="could not be saved"):
        train(tmp_path)
