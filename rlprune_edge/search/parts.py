"""What PPO is helped by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Parts:
    """What PPO is helped by, each a switch of its own; on is what was found to help (tools/bench/README.md).

    The prior is the environment's.
    """

    demonstrations: bool = True
    surrogate: bool = True
    neighbours: bool = False
    masks: bool = False
