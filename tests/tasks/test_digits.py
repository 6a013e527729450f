"""The default task: real digits, disjoint splits, a network that learns them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from sklearn.datasets import load_digits

from rlprune_edge.errors import UserError
from rlprune_edge.tasks import weights
from rlprune_edge.tasks.digits import DigitsTask, network
from rlprune_edge.tasks.task import SPLITS
from rlprune_edge.tasks.training import Training

QUICK = Training(epochs=1, batch_size=32, learning_rate=0.02, weight_decay=5e-4)


def test_splits_are_disjoint_complete_and_the_same_every_time() -> None:
    task, again = DigitsTask(), DigitsTask()
    rows = [image.flatten().tolist() for split in SPLITS for image in task.tensors(split)[0]]
    assert sorted(rows) == sorted(image.flatten().tolist() for image in load_digits().images)
    assert [task.size(split) for split in SPLITS] == [1078, 180, 180, 359]
    assert all(torch.equal(task.tensors(split)[0], again.tensors(split)[0]) for split in SPLITS)


def test_every_digit_is_in_every_split_by_its_share() -> None:
    counts = torch.stack([torch.bincount(DigitsTask().tensors(split)[1], minlength=10) for split in SPLITS])
    shares = counts / counts.sum(0)
    assert torch.allclose(shares, torch.tensor([[0.6], [0.1], [0.1], [0.2]]), atol=0.01)


def test_preprocessing_says_what_the_task_does() -> None:
    task = DigitsTask()
    raw = load_digits().images
    (x, y), *_ = task.batches("test", 1)
    how = task.preprocessing
    prepared = (torch.tensor(raw) * how["scale"] - how["mean"][0]) / how["std"][0]
    assert list(x.shape) == [1, 1, *how["size"]]
    assert str(x.dtype) == f"torch.{how['dtype']}"
    assert any(torch.allclose(image.float(), x[0, 0], atol=1e-5) for image in prepared[load_digits().target == int(y)])


def test_one_epoch_teaches_most_digits_and_the_result_is_kept(tmp_path: Path) -> None:
    task = DigitsTask(dataclasses.replace(QUICK, epochs=9))
    told: list[tuple[int, int]] = []
    asked: dict[str, Any] = {"weights": None, "cache_dir": tmp_path}
    first = task.model("resnet26:train=1", **asked, progress=lambda done, of, _: told.append((done, of)))
    kept = DigitsTask(QUICK).model(None, **asked, progress=lambda done, of, _: told.append((done, of)))
    assert told == [(1, 1)]
    assert task.score(first.module, "validation").metric > 50
    assert task.score(first.module, "validation") == task.score(kept.module, "validation")
    assert (first.name, first.source, first.module.training) == ("resnet26", "trained here, 1 epoch", False)


def test_weights_come_from_a_file(tmp_path: Path) -> None:
    module = network()
    weights.save(module, tmp_path / "mine.safetensors", about={})
    loaded = DigitsTask().model(None, weights=tmp_path / "mine.safetensors", cache_dir=tmp_path)
    assert loaded.source == "file mine.safetensors"
    assert torch.equal(loaded.module.state_dict()["linear.weight"], module.linear.weight)


@pytest.mark.parametrize(
    ("name", "weights", "said"),
    [
        ("resnet56", None, "no model 'resnet56'; it has resnet26"),
        ("resnet26:trained", None, "no model 'resnet26:trained'"),
        ("resnet26:train=0", None, "'0' is no number of epochs"),
        ("resnet26:train", "mine.safetensors", "contradict each other: write --model resnet26"),
    ],
)
def test_a_wrong_model_is_refused_with_those_there_are(
    name: str, weights: str | None, said: str, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said):
        DigitsTask().model(name, weights=Path(weights) if weights else None, cache_dir=tmp_path)


def test_an_untrained_network_says_so_and_is_the_same_every_time(tmp_path: Path) -> None:
    one, other = (
        DigitsTask().model("resnet26:untrained", weights=None, cache_dir=tmp_path, progress=None) for _ in range(2)
    )
    assert "untrained" in one.description
    assert "the network is untrained" in one.notes[0]
    assert torch.equal(one.module.state_dict()["linear.weight"], other.module.state_dict()["linear.weight"])
