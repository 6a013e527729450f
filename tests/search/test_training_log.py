"""What PPO tells of its training: for TensorBoard, and for the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from planted import Planted
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from rlprune_edge.records import Target
from rlprune_edge.search.agents import search


@pytest.mark.parametrize("agent", ["ppo", "ppo-cold"])
def test_every_update_is_there_for_both(agent: str, tmp_path: Path) -> None:
    planted = Planted(seed=0)
    env = planted.env(Target(speedup=2.0), 40, sensitivity=planted.sensitivity() if agent == "ppo" else None)
    end = search(agent, env, seed=0, budget=40, log=tmp_path / "log")
    lines = [json.loads(line) for line in (tmp_path / "log" / "progress.json").read_text().splitlines()]
    assert len(lines) >= 3
    evaluated = [line["search/evaluated"] for line in lines]
    assert evaluated == sorted(evaluated)
    assert evaluated[-1] <= len(end.trials)
    assert all(line["train/entropy_loss"] < 0 for line in lines), "the entropy, negated"
    best = [line["search/best_reward"] for line in lines if "search/best_reward" in line]
    assert best == sorted(best)
    seen = EventAccumulator(str(tmp_path / "log"))
    seen.Reload()
    told = [event.value for event in seen.Scalars("search/evaluated")]
    assert told == evaluated


def test_logging_changes_nothing(tmp_path: Path) -> None:
    found = []
    for log in (None, tmp_path / "log"):
        env = Planted(seed=1).env(Target(speedup=2.0), 24)
        end = search("ppo", env, seed=0, budget=24, log=log)
        found.append([trial.plan.key for trial in end.trials])
    assert found[0] == found[1]


def test_what_was_expected_of_a_candidate_is_from_before_it_was_measured() -> None:
    env = Planted(seed=2).env(Target(speedup=2.0), 20)
    end = search("random", env, seed=0, budget=20)
    measured = [t for t in end.trials if t.measurement is not None]
    assert list(env.predicted) == [t.plan.key for t in measured]
    errors = [abs(env.predicted[t.plan.key] / env.judged_ms(t) - 1) for t in measured]
    now = [abs(env.model.predict_ms(t.plan) / env.judged_ms(t) - 1) for t in measured]
    assert sum(errors) > sum(now), "by now it has learned what they take"
