"""A ladder's rungs: how far each one goes, and what it may spend."""

from __future__ import annotations

from dataclasses import dataclass, replace

from rlprune_edge.records import Baseline, Target
from rlprune_edge.request import Request

MARGIN = 0.03
"""by which cutting is asked for more than fewer bits leave to it"""
LEAST = 0.05
"""that cutting is asked for, whatever fewer bits gain"""


@dataclass(frozen=True)
class Rung:
    """One search with the fine-tuning behind it; a run without a ladder is a single one."""

    number: int
    """from 0"""
    of: int
    target: Target
    """of its search, which times networks without their preprocessing"""
    contained: Target
    """of its finalists, which have it inside"""
    final: Target
    """of what it hands over, which may be faster than that: in fewer bits"""
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


def whole(request: Request, baseline: Baseline | None = None, gain: float = 1.0, preprocessing_ms: float = 0.0) -> Rung:
    """The last rung, or the only one: the request itself.

    For the search it is eased by what fewer bits gain, and made stricter by what the preprocessing adds.
    """
    contained = request.target if baseline is None else eased(request.target, baseline, gain)
    return Rung(
        number=request.ladder - 1,
        of=request.ladder,
        target=contained if baseline is None else bare(contained, baseline, preprocessing_ms),
        contained=contained,
        final=request.target,
        budget=request.budget,
        device_seconds=request.device_seconds,
        finalists=request.finalists,
        final_mode=request.final_mode,
    )


def eased(target: Target, baseline: Baseline, gain: float) -> Target:
    """What is left for cutting where fewer bits make the uncut model `gain` times faster.

    A little more than that, since small networks gain less; and never nothing.
    """
    if gain <= 1:
        return target
    least, speedup, latency_ms = 1 + LEAST, target.speedup, target.latency_ms
    if speedup is not None:
        speedup = max(least, speedup / gain * (1 + MARGIN))
    if latency_ms is not None:
        latency_ms = min(baseline.latency_ms / least, latency_ms * gain / (1 + MARGIN))
    return replace(target, speedup=speedup, latency_ms=latency_ms)


def bare(target: Target, baseline: Baseline, preprocessing_ms: float) -> Target:
    """What a network has to come to without its preprocessing, to meet a target with it.

    The uncut model carries it as well, so that of a speed-up some is lost: with 2 ms uncut and 0.04 ms of
    preprocessing, 2.04x is 2x. Never less than half of the latency that is asked for: where preprocessing alone takes
    longer than that, no cut will do.
    """
    if not preprocessing_ms:
        return target

    def left(latency_ms: float) -> float:
        return max(latency_ms - preprocessing_ms, latency_ms / 2)

    speedup, latency_ms = target.speedup, target.latency_ms
    if speedup is not None:
        speedup = round(baseline.latency_ms / left((baseline.latency_ms + preprocessing_ms) / speedup), 3)
    if latency_ms is not None:
        latency_ms = left(latency_ms)
    return replace(target, speedup=speedup, latency_ms=latency_ms)


def with_preprocessing(speedup: float, baseline: Baseline, preprocessing_ms: float) -> float:
    """What a speed-up comes to once both networks carry their preprocessing."""
    return (baseline.latency_ms + preprocessing_ms) / (baseline.latency_ms / speedup + preprocessing_ms)


def rungs(request: Request, baseline: Baseline, gain: float = 1.0, preprocessing_ms: float = 0.0) -> list[Rung]:
    """All rungs of a request, the last one last: equal factors of latency and memory, equal shares of what is spent.

    What may be lost at most is asked of the last one alone. The others have one finalist and are measured quickly.
    """
    last = whole(request, baseline, gain, preprocessing_ms)
    return [_before(last, number, baseline, preprocessing_ms) for number in range(last.of - 1)] + [last]


def _before(last: Rung, number: int, baseline: Baseline, preprocessing_ms: float) -> Rung:
    part = (number + 1) / last.of
    target = last.contained

    def towards(goal: float | None, start: float | None) -> float | None:
        if goal is None or start is None:
            return None
        return float(f"{start * (goal / start) ** part:.3g}")  # as it can be said

    towards_it = Target(
        speedup=towards(target.speedup, 1.0),
        latency_ms=towards(target.latency_ms, baseline.latency_ms),
        memory_mb=towards(target.memory_mb, baseline.memory_mb),
    )
    return replace(
        last,
        number=number,
        target=bare(towards_it, baseline, preprocessing_ms),
        contained=towards_it,
        final=towards_it,
        budget=max(1, round(last.budget * part)),
        device_seconds=None if last.device_seconds is None else last.device_seconds * part,
        finalists=1,
        final_mode="reward",
    )
