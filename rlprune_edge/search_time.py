"""Where the time of a search went."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SearchTime:
    """Where the time of this process's search went; what an earlier one had evaluated is not in it."""

    seconds: float
    """on the clock"""
    device_seconds: float
    candidates: int

    def __add__(self, other: SearchTime) -> SearchTime:
        """Of two rungs."""
        return SearchTime(
            self.seconds + other.seconds,
            self.device_seconds + other.device_seconds,
            self.candidates + other.candidates,
        )

    @property
    def figures(self) -> dict[str, float | None]:
        """For the report; `None` where nothing was evaluated."""
        new = self.candidates > 0
        return {
            "search_seconds": self.seconds,
            "seconds_per_candidate": self.seconds / self.candidates if new else None,
            "device_idle_share": max(0.0, 1.0 - self.device_seconds / self.seconds) if new else None,
        }
