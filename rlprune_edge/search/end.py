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
        """The trial with the highest reward among the feasible ones (among all if none is), the earliest of equals.

        A budget missed by 1 % costs little reward, so that the policy is not punished for noise; it is still missed.
        """
        return max(self.trials, key=lambda t: (t.score.feasible, t.score.reward), default=None)
