"""What PPO is helped by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parts:
    """What PPO is helped by, each to be left out by itself. The prior is the environment's."""

    demonstrations: bool = True
    surrogate: bool = True
    neighbours: bool = True
    masks: bool = True
