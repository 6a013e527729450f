"""Warm-up and sample size: planted sequences of latencies."""

from __future__ import annotations

import random

from rlprune_agent.pace import is_steady, loop_for, narrow_enough


def _window(seed: int, speed: float, count: int = 60) -> list[int]:
    rng = random.Random(seed)
    return [int(1e6 * speed * rng.lognormvariate(0, 0.03)) for _ in range(count)]


def test_undisturbed_windows_are_nearly_always_steady() -> None:
    steady = sum(is_steady(_window(seed, 1.0), _window(seed + 1000, 1.0)) for seed in range(200))
    assert steady >= 180


def test_a_clock_still_rising_is_never_steady() -> None:
    assert not any(is_steady(_window(seed, 1.08), _window(seed + 1000, 1.0)) for seed in range(200))


def test_a_first_value_out_of_line_is_not_steady() -> None:
    later = _window(2, 1.0)
    assert is_steady(_window(1, 1.0), later)
    assert not is_steady(_window(1, 1.0), [2 * later[0], *later[1:]])


def test_short_runs_are_looped_until_they_fill_a_sample() -> None:
    assert loop_for(50_000, floor_ns=1e6, sample_ns=5e6) == 100
    assert loop_for(999_999, floor_ns=1e6, sample_ns=5e6) == 6
    assert loop_for(1_000_000, floor_ns=1e6, sample_ns=5e6) == 1


def test_the_stop_rule_forgives_as_many_spoilt_blocks_as_its_rank() -> None:
    blocks = [1.0, 1.005, 0.995] * 5 + [9.0]
    assert narrow_enough(blocks, 4, 0.01)
    assert not narrow_enough(blocks, 1, 0.01)
