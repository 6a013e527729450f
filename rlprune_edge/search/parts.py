"""What PPO is helped by: parts that can be left out one by one, and what an earlier search left behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rlprune_edge.records import Plan, Score, Target, Trial
from rlprune_edge.search.reward import scored_part


@dataclass(frozen=True)
class Parts:
    """What PPO is helped by, each to be left out by itself. The prior is the environment's."""

    demonstrations: bool = True
    surrogate: bool = True
    neighbours: bool = True
    masks: bool = True


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
