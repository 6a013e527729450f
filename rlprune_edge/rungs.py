"""A ladder's rungs: how far each one goes, and what it may spend."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlprune_edge.records import Baseline, Target
from rlprune_edge.request import Request


@dataclass(frozen=True)
class Rung:
    """One search with the fine-tuning behind it; a run without a ladder is a single one."""

    number: int
    """from 0"""
    of: int
    target: Target
    budget: int
    """candidates until its end, those of the rungs before among them"""
    device_seconds: float | None
    """likewise"""
    finalists: int
    final_mode: str

    @property
    def last(self) -> bool:
        return self.number == self.of - 1

    def named(self, name: str) -> str:
        """What a file of this rung is called: `verified.json`, on the second one `verified-2.json`."""
        if self.number == 0:
            return name
        stem, dot, ending = name.rpartition(".")
        return f"{stem}-{self.number + 1}{dot}{ending}"


def whole(request: Request) -> Rung:
    """The last rung, or the only one: the request itself."""
    return Rung(
        number=request.ladder - 1,
        of=request.ladder,
        target=request.target,
        budget=request.budget,
        device_seconds=request.device_seconds,
        finalists=request.finalists,
        final_mode=request.final_mode,
    )


def rungs(request: Request, baseline: Baseline) -> list[Rung]:
    """All rungs of a request, the last one last: equal factors of latency and memory, equal shares of what is spent.

    What may be lost at most is asked of the last one alone. The others have one finalist and are measured quickly.
    """
    last = whole(request)
    return [_before(last, number, baseline) for number in range(last.of - 1)] + [last]


def _before(last: Rung, number: int, baseline: Baseline) -> Rung:
    part = (number + 1) / last.of
    target = last.target

    def towards(goal: float | None, start: float | None) -> float | None:
        if goal is None or start is None:
            return None
        return float(f"{start * (goal / start) ** part:.3g}")  # as it can be said

    return replace(
        last,
        number=number,
        target=Target(
            speedup=towards(target.speedup, 1.0),
            latency_ms=towards(target.latency_ms, baseline.latency_ms),
            memory_mb=towards(target.memory_mb, baseline.memory_mb),
        ),
        budget=max(1, round(last.budget * part)),
        device_seconds=None if last.device_seconds is None else last.device_seconds * part,
        finalists=1,
        final_mode="reward",
    )
