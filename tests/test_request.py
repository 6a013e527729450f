"""What can be asked for, and what the answer is where it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlprune_edge import request
from rlprune_edge.errors import UserError


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ({"target_speedup": 0.9}, "--target-speedup 0.9 would make it slower"),
        ({"target_speedup": 1.0}, "above 1"),
        ({"target_speedup": 2.0, "target_latency_ms": 3.0}, "contradict each other"),
        ({"target_latency_ms": 0.0}, "--target-latency must be above 0"),
        ({"max_memory_mb": -1.0}, "--max-memory must be above 0"),
        ({"max_drop": -0.5}, "asks for a gain"),
        ({"budget": 0}, "--budget 0 leaves nothing to try"),
        ({"agent": "sac"}, "--agent sac is not known: choose ppo, ppo-cold, dqn"),
        ({"importance": "l2"}, "choose taylor, fisher, magnitude"),
        ({"final_mode": "fast"}, "choose reward, verify, report"),
        ({"seed": -1}, "--seed"),
        ({"target_speedup": float("nan")}, "--target-speedup nan is not a finite number"),
        ({"target_latency_ms": float("inf")}, "not a finite number"),
        ({"step": 1.5}, "--step"),
        ({"threads": 0}, "--threads"),
    ],
)
def test_contradictions_are_refused(words: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        request.make(words)


def test_flags_win_over_the_file_and_unknown_keys_are_named(tmp_path: Path) -> None:
    file = tmp_path / "r.toml"
    file.write_text('task = "cifar10"\nbudget = 7\nseed = 3\n')
    made = request.make({"budget": 9, "model": None}, file)
    assert (made.task, made.budget, made.seed, made.agent) == ("cifar10", 9, 3, "ppo")
    file.write_text("budgets = 7\n")
    with pytest.raises(UserError, match="unknown key 'budgets'"):
        request.make({}, file)
    file.write_text("budget = = 7\n")
    with pytest.raises(UserError, match="not valid TOML"):
        request.make({}, file)
    with pytest.raises(UserError, match="No such file"):
        request.make({}, tmp_path / "absent.toml")


def test_a_request_is_kept_whole(tmp_path: Path) -> None:
    made = request.make({"target_latency_ms": 30.0, "model": 'odd "name"\\ \U0001f600', "distillation": False})
    made.save(tmp_path)
    assert request.load(tmp_path) == made
    with pytest.raises(UserError, match="holds no run to resume"):
        request.load(tmp_path / "nowhere")


def test_command_line_of_a_request() -> None:
    made = request.make({"task": "cifar10", "target_latency_ms": 30.0, "distillation": False, "budget": 9})
    assert made.command() == "rlprune-edge compress --task cifar10 --target-latency 30ms --budget 9 --no-distillation"
    assert request.make({"data": "my data"}).command() == "rlprune-edge compress --data 'my data'"


@pytest.mark.parametrize(("text", "value"), [("30ms", 30.0), ("30", 30.0), ("0.03s", 30.0), (" 1.5 ms ", 1.5)])
def test_milliseconds(text: str, value: float) -> None:
    assert request.milliseconds(text) == pytest.approx(value)


def test_quantities_that_are_not_understood() -> None:
    with pytest.raises(UserError, match="30ms"):
        request.milliseconds("30 minutes")
    with pytest.raises(UserError, match="200MB"):
        request.megabytes("-3MB")
    assert request.megabytes("0.2GB") == pytest.approx(200.0)


def test_what_is_asked_of_a_baselines_training_goes_by_the_recipes_names(tmp_path: Path) -> None:
    asked = request.make({"task": "imdb", "train_epochs": 4, "train_dropout": 0.0, "sequence_length": 64})
    assert asked.training == {"epochs": 4, "dropout": 0.0}
    assert request.make({}).training is None
    assert "--train-epochs 4 --train-dropout 0.0" in asked.command()
    assert "--sequence-length 64" in asked.command()
    asked.save(tmp_path)
    assert request.load(tmp_path) == asked
