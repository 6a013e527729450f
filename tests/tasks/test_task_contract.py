"""What every task does alike: batches, scores, and the count of what was read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rlprune_edge.errors import UserError
from rlprune_edge.records import MetricSpec
from rlprune_edge.tasks.digits import DigitsTask


@pytest.fixture
def task() -> DigitsTask:
    return DigitsTask()


def test_a_seed_gives_the_same_shuffled_batches_again(task: DigitsTask) -> None:
    def targets(seed: int | None, limit: int | None = None) -> list[int]:
        batches = task.batches("train", 32, augment=True, seed=seed, limit=limit)
        return torch.cat([y for _, y in batches]).tolist()

    inputs = [torch.cat([x for x, _ in task.batches("train", 64, augment=True, seed=5)]) for _ in range(2)]
    assert torch.equal(*inputs)
    assert targets(1) == targets(1)
    assert targets(1) != targets(2)
    assert sorted(targets(1)) == sorted(targets(None))
    assert targets(1, limit=40) == targets(1)[:40]


def test_augmentation_is_off_unless_asked_for(task: DigitsTask) -> None:
    plain, again = (torch.cat([x for x, _ in task.batches("train", 100)]) for _ in range(2))
    changed = torch.cat([x for x, _ in task.batches("train", 100, augment=True)])
    assert torch.equal(plain, again)
    assert not torch.equal(plain, changed)


@pytest.mark.parametrize(("split", "batch_size", "limit"), [("tset", 1, None), ("test", 0, None), ("test", 1, 0)])
def test_wrong_arguments_are_our_own_mistake(task: DigitsTask, split: str, batch_size: int, limit: int | None) -> None:
    with pytest.raises(ValueError, match=r"no split|at least 1"):
        task.batches(split, batch_size, limit=limit)
    assert task.reads["test"] == 0


def test_every_read_is_counted(task: DigitsTask) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    task.size("test")
    task.example_input()
    task.score(model, "search")
    assert task.reads == {"search": 1}
    task.score(model, "test")
    task.batches("test", 10)
    assert task.reads == {"search": 1, "test": 2}


def test_score_is_the_share_of_right_answers_and_leaves_the_modes_alone(task: DigitsTask) -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64), nn.Linear(64, 10))
    model.train()
    model[1].eval()
    before = model[1].running_mean.clone()
    quality = task.score(model, "validation", limit=77)
    assert [module.training for module in (model, model[0], model[1], model[2])] == [True, True, False, True]
    assert torch.equal(model[1].running_mean, before)
    model.eval()
    (x, y), *rest = task.batches("validation", 77, limit=77)
    right = int((model(x).argmax(1) == y).sum())
    assert rest == []
    assert (quality.metric, quality.examples) == (100 * right / 77, 77)
    assert quality.loss == pytest.approx(task.loss(model(x), y).item(), rel=1e-5)


def test_another_metric_has_to_say_how_it_is_computed() -> None:
    class Judged(DigitsTask):
        metric = MetricSpec("f1", higher_is_better=True)

    with pytest.raises(UserError, match=r"judged by f1.*Judged has to override figure"):
        Judged().score(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), "search")
