"""Learning from the uncut network block by block."""

from __future__ import annotations

import copy

import torch
from torch import nn

from rlprune_edge.prune.features import FeatureMatch
from rlprune_edge.prune.recover import FineTuning, fine_tune


class Block(nn.Module):
    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(width, inner), nn.Linear(inner, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.second(torch.relu(self.first(x)))
        return out


def _net(width: int = 8, inner: int = 16) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(Block(width, inner), Block(width, inner), nn.Linear(width, 3))


def test_equal_networks_do_not_differ_and_a_missing_block_shows() -> None:
    teacher, x = _net(), torch.randn(4, 8)
    student = copy.deepcopy(teacher)
    with FeatureMatch(student, teacher) as match:
        student(x), teacher(x)
        same = match.loss()
        assert match.loss() is None  # every pair of outputs counts once
        student[0] = nn.Identity()
    with FeatureMatch(student, teacher) as match:
        student(x), teacher(x)
        without = match.loss()
    assert same is not None
    assert without is not None
    assert float(same.detach()) == 0.0
    guide = teacher[1](teacher[0](x))
    assert torch.isclose(without, ((teacher[1](x) - guide) ** 2).mean() / (guide**2).mean())


def test_outputs_that_were_cut_do_not_count() -> None:
    teacher, student = _net(), _net(width=6)
    with FeatureMatch(student, teacher) as match:
        student(torch.randn(4, 6)), teacher(torch.randn(4, 8))
        assert match.loss() is None


def test_a_network_without_blocks_is_watched_layer_by_layer() -> None:
    teacher = nn.Sequential(nn.Linear(4, 5), nn.ReLU(), nn.Linear(5, 3))
    student = copy.deepcopy(teacher)
    nn.init.zeros_(student[0].weight)
    x = torch.randn(2, 4)
    with FeatureMatch(student, teacher) as match:
        student(x), teacher(x)
        difference = match.loss()
    assert difference is not None
    assert float(difference.detach()) > 0


def test_no_hook_stays_behind() -> None:
    teacher = _net()
    student = copy.deepcopy(teacher)
    with FeatureMatch(student, teacher):
        assert student[0]._forward_hooks
    assert not student[0]._forward_hooks
    assert not teacher[0]._forward_hooks


def test_features_heal_what_the_last_layer_alone_does_not() -> None:
    teacher = _net()
    inputs = [torch.randn(32, 8, generator=torch.Generator().manual_seed(n)) for n in range(40)]

    def healed(weight: float) -> float:
        """How far the first surviving block is off after the same training."""
        student = copy.deepcopy(teacher)
        student[0] = nn.Identity()
        settings = FineTuning(epochs=1, learning_rate=1e-2, warmup_steps=0, feature_weight=weight)
        fine_tune(
            student,
            teacher,
            epoch_batches=lambda _: [(x, teacher(x).argmax(1)) for x in inputs],
            steps_per_epoch=len(inputs),
            loss=nn.functional.cross_entropy,
            settings=settings,
        )
        x = torch.randn(256, 8, generator=torch.Generator().manual_seed(99))
        with torch.no_grad():
            return float(((student[1](x) - teacher[1](teacher[0](x))) ** 2).mean())

    assert healed(1000.0) < 0.7 * healed(0.0)
