"""What a run tells whoever watches it: stages, trials, epochs."""

from __future__ import annotations

from typing import Protocol

from rlprune_edge.records import Trial


class Watcher(Protocol):
    """Receives what happens, in order; the command line prints it, a test may collect it."""

    def stage(self, text: str) -> None:
        """A new stage of the run begins."""

    def note(self, text: str) -> None:
        """Something a reader should know about the stage."""

    def trial(self, trial: Trial, *, best: Trial | None, spent: int, budget: int) -> None:
        """A candidate was evaluated; `best` is the best so far that meets the target."""

    def step(self, text: str, done: int, total: int) -> None:
        """Progress inside a stage, such as an epoch of training."""


class Silent:
    """Tells nobody."""

    def stage(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def trial(self, trial: Trial, *, best: Trial | None, spent: int, budget: int) -> None: ...

    def step(self, text: str, done: int, total: int) -> None: ...


def threads_in_words(threads: int) -> str:
    """As a person reads it."""
    return "1 thread" if threads == 1 else f"{threads} threads"


def duration(seconds: float) -> str:
    """As a person reads it: whole seconds, minutes where there are any; from an hour on no seconds."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60:02d} min"
    return f"{minutes} min {rest:02d} s" if minutes else f"{rest} s"
