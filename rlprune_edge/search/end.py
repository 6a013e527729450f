"""What a search comes back with."""

from __future__ import annotations

from dataclasses import dataclass

from rlprune_edge.records import Trial


@dataclass(frozen=True)
class SearchEnd:
    """The distinct trials of one search, in the order they were proposed, and why it stopped."""

    trials: tuple[Trial, ...]
    episodes: int
    """proposals, those seen before included"""
    reason: str
    """`budget`: candidates or device seconds used up; `repeats`: hardly a new proposal; `exhausted`: all were tried"""

    @property
    def best(self) -> Trial | None:
        """The trial with the highest reward, the earliest of equals."""
        return max(self.trials, key=lambda t: t.score.reward, default=None)
