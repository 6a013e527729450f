"""Where the time of a run went, over all the processes that worked on it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace

from rlprune_edge.run_folder import RunFolder

FILE = "time.json"


@contextmanager
def timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    """Add the wall seconds of the block to `seconds[stage]`, whether it succeeds or not."""
    begun = time.perf_counter()
    try:
        yield
    finally:
        seconds[stage] = seconds.get(stage, 0.0) + time.perf_counter() - begun


@dataclass(frozen=True)
class TimeSpent:
    """Seconds on the clock, and for how many candidates."""

    wall_seconds: float = 0.0
    """of the whole run"""
    search_seconds: float = 0.0
    """of the searches, without what a resumed one does again until it comes to something new"""
    device_seconds: float = 0.0
    """of these, with a device at work"""
    candidates: int = 0
    """evaluated in them"""

    @property
    def figures(self) -> dict[str, float | None]:
        """For the report; `None` where nothing was evaluated."""
        new = self.candidates > 0
        return {
            "wall_seconds": self.wall_seconds,
            "search_seconds": self.search_seconds,
            "seconds_per_candidate": self.search_seconds / self.candidates if new else None,
            "device_idle_share": max(0.0, 1.0 - self.device_seconds / self.search_seconds) if new else None,
        }


class Stopwatch:
    """Adds this process's time to that of the ones before, in the run's folder.

    It is written after every candidate and every epoch: a process that is killed takes the time since then with it.
    """

    def __init__(
        self, folder: RunFolder, device_seconds: Callable[[], float], *, now: Callable[[], float] = time.perf_counter
    ) -> None:
        self._folder = folder
        self._device_seconds = device_seconds
        self._now = now
        self._kept_at = now()
        self._search_at: tuple[float, float] | None = None
        """clock and device up to where a search is accounted for; `None` outside of one"""
        self._new = False
        """this search has evaluated something"""
        self.spent = TimeSpent(**(folder.read_json(FILE) or {}))

    @contextmanager
    def searching(self) -> Iterator[None]:
        """What happens in the block is a search."""
        self._search_at, self._new = self._here(), False
        yield
        if self._new:
            self._add(0)
        self._search_at = None
        self.keep()

    def known(self) -> None:
        """A plan was asked for whose trial was there: until a search evaluates something, it repeats another one."""
        if self._search_at is not None and not self._new:
            self._search_at = self._here()

    def evaluated(self) -> None:
        """A candidate was evaluated."""
        if self._search_at is not None:
            self._new = True
            self._add(1)
        self.keep()

    def keep(self) -> None:
        """Write down what has passed until now."""
        now = self._now()
        self.spent = replace(self.spent, wall_seconds=self.spent.wall_seconds + now - self._kept_at)
        self._kept_at = now
        self._folder.write_json(FILE, asdict(self.spent))

    def _here(self) -> tuple[float, float]:
        return self._now(), self._device_seconds()

    def _add(self, candidates: int) -> None:
        assert self._search_at is not None
        (began, device_began), self._search_at = self._search_at, self._here()
        self.spent = replace(
            self.spent,
            search_seconds=self.spent.search_seconds + self._search_at[0] - began,
            device_seconds=self.spent.device_seconds + self._search_at[1] - device_began,
            candidates=self.spent.candidates + candidates,
        )
