"""The baselines that need no data of the user's are trained on the spot, learn, and are kept."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlprune_edge.tasks.catalog import load_task


@pytest.mark.parametrize(("name", "least"), [("digits", 95.0), ("toy-text", 90.0), ("toy-speech", 80.0)])
def test_a_baseline_learns_and_is_not_trained_again(name: str, least: float, cache: Path) -> None:
    told: list[int] = []

    def count(done: int, _total: int, _loss: float) -> None:
        told.append(done)

    task = load_task(name, data=None, seed=0, cache_dir=cache)
    loaded = task.model(None, weights=None, cache_dir=cache, progress=count)
    metric = task.score(loaded.module, "validation").metric
    right = metric if task.metric.higher_is_better else 100 - metric
    assert right > least
    assert any((cache / "models").iterdir())
    told.clear()
    again = task.model(None, weights=None, cache_dir=cache, progress=count)
    assert told == []
    assert task.score(again.module, "validation").metric == metric
