"""The example in docs/own-task.md: the same as the file, and it runs from end to end."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

from rlprune_edge.tasks import weights
from rlprune_edge.tasks.catalog import load_own_model, load_task
from rlprune_edge.tasks.task import SPLITS

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"
PAGE = Path(__file__).resolve().parents[2] / "docs" / "own-task.md"


def test_the_page_shows_the_file() -> None:
    shown = re.search(r"```python\n(.*?)```", PAGE.read_text(), flags=re.DOTALL)
    assert shown is not None
    assert shown[1] == (EXAMPLES / "own_task.py").read_text()


def test_the_example_trains_scores_and_is_fine_tuned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    task = load_task("own_task:Bars", data=None, seed=0, cache_dir=tmp_path)
    assert [task.size(split) for split in SPLITS] == [600, 100, 100, 200]
    loaded = task.model(None, weights=None, cache_dir=tmp_path)
    before = task.score(loaded.module, "search")
    assert before.metric > 80
    assert before.loss < task.chance_loss

    optimizer = torch.optim.AdamW(loaded.module.train().parameters(), lr=1e-3)
    for x, y in task.batches("train", task.recipe.batch_size, augment=True, seed=1):
        optimizer.zero_grad()
        task.loss(loaded.module(x), y).backward()
        optimizer.step()
    assert task.score(loaded.module, "search").loss < before.loss
    assert task.reads["test"] == 0


def test_the_example_network_takes_weights_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(EXAMPLES)
    task = load_task("own_task:Bars", data=None, seed=0, cache_dir=tmp_path)
    trained = task.model(None, weights=None, cache_dir=tmp_path).module
    file = tmp_path / "bars.safetensors"
    weights.save(trained, file, about={})
    loaded = load_own_model("own_task:network", task=task, weights=file, seed=0, cache_dir=tmp_path)
    assert task.score(loaded.module, "validation") == task.score(trained, "validation")
    assert task.model("small", weights=file, cache_dir=tmp_path).source == "file bars.safetensors"
