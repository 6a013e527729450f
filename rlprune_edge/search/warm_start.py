"""What an earlier search leaves to another: its policy, and what it found of the same network."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlprune_edge.records import Plan, Score, Target, Trial
from rlprune_edge.search.reward import scored_part


@dataclass(frozen=True)
class WarmStart:
    """What an earlier search leaves to this one."""

    policy: Path | None
    """its saved policy"""
    known: tuple[tuple[Plan, float], ...] = ()
    """plans and what their scores were worth (`reward.scored_part`), where the same network was cut"""


def known_from(
    trials: Sequence[Trial], rewarded: Callable[[Trial], Score], target: Target
) -> tuple[tuple[Plan, float], ...]:
    """What former trials of the same network are worth under this target; `rewarded` scores one anew."""
    return tuple((t.plan, scored_part(rewarded(t), target)) for t in trials if t.quality is not None)
