"""Ranking with a planted answer, BatchNorm recalibration, fine-tuning that can be broken off."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from rlprune_edge.prune import graph, importance, recover

BATCHES = [
    (torch.randn(32, 3, 8, 8, generator=torch.Generator().manual_seed(i)), torch.arange(32) % 4) for i in range(4)
]


def small_net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)
    ).eval()


@pytest.mark.parametrize("criterion", importance.CRITERIA)
def test_channels_that_nothing_reads_come_last(criterion: str) -> None:
    model = small_net()
    useless = [1, 4, 6]
    with torch.no_grad():
        model[5].weight[:, useless] = 0  # the classifier does not look at them
        if criterion == "magnitude":
            model[0].weight[useless] = 0
            model[1].weight[useless] = 0
            model[1].bias[useless] = 0
            model[0].bias[useless] = 0
    groups, _ = graph.find_groups(model, BATCHES[0][0][:1])
    order = importance.rank(model, groups, criterion=criterion, batches=BATCHES, loss=F.cross_entropy)["0"]
    assert sorted(order[-3:]) == useless
    assert all(p.grad is None for p in model.parameters())


def test_unknown_criterion_is_refused() -> None:
    with pytest.raises(ValueError, match="taylor, fisher, magnitude"):
        importance.rank(small_net(), (), criterion="random", batches=(), loss=F.cross_entropy)


def test_recalibration_gives_the_statistics_of_the_data() -> None:
    model = small_net()
    x = torch.cat([x for x, _ in BATCHES]) * 3 + 1
    assert recover.recalibrate_batchnorm(model, [x])
    with torch.no_grad():
        seen = model[0](x)
    assert torch.allclose(model[1].running_mean, seen.mean((0, 2, 3)), atol=1e-4)
    assert torch.allclose(model[1].running_var, seen.var((0, 2, 3)), rtol=1e-3)
    assert model[1].momentum == 0.1
    assert not model[1].training
    assert not recover.recalibrate_batchnorm(nn.Linear(2, 2), [x])


def settings(epochs: int) -> recover.FineTuning:
    return recover.FineTuning(epochs=epochs, learning_rate=1e-2, batch_size=32, warmup_steps=2)


def batches(_epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    yield from BATCHES


def tuned(
    epochs: int, checkpoint: Path | None = None, *, stop_after: int | None = None
) -> tuple[nn.Module, list[recover.Epoch]]:
    student = small_net()

    def broken_off(epoch: recover.Epoch) -> None:
        if epoch.number == stop_after:
            raise KeyboardInterrupt

    done = recover.fine_tune(
        student,
        small_net(),
        epoch_batches=batches,
        steps_per_epoch=len(BATCHES),
        loss=F.cross_entropy,
        settings=settings(epochs),
        checkpoint=checkpoint,
        on_epoch=broken_off,
    )
    return student, done


def test_fine_tuning_learns_and_is_the_same_after_being_broken_off(tmp_path: Path) -> None:
    whole, history = tuned(4)
    assert history[-1].train_loss < history[0].train_loss
    with pytest.raises(KeyboardInterrupt):
        tuned(4, tmp_path / "s.pt", stop_after=2)
    resumed, again = tuned(4, tmp_path / "s.pt")
    assert [e.train_loss for e in again] == [e.train_loss for e in history]
    assert all(
        torch.equal(a, b) for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True)
    )
    assert not resumed.training


def test_distillation_loss_is_zero_for_equal_and_matches_its_definition() -> None:
    a, b = torch.tensor([[1.0, 2.0, 0.5]]), torch.tensor([[0.2, 1.0, 3.0]])
    assert float(recover.distillation_loss(a, a, 4.0)) == pytest.approx(0.0, abs=1e-6)
    p, q = (np.exp(t.numpy() / 4) / np.exp(t.numpy() / 4).sum() for t in (b, a))
    assert float(recover.distillation_loss(a, b, 4.0)) == pytest.approx(16 * float((p * np.log(p / q)).sum()), rel=1e-4)
