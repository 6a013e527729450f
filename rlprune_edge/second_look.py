"""The spine, part 3c: is a finalist as fast as the search has seen it? Asked before any training is spent on it.

Of many noisy figures a search picks the lucky ones. Fine-tuning changes weights alone, and the time hardly depends on
these: what an untrained finalist takes is what the trained one will take.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from rlprune_edge import deployment
from rlprune_edge.errors import CandidateError
from rlprune_edge.measurements import Measurement
from rlprune_edge.records import Target, Trial
from rlprune_edge.run import Run

VERIFIED, SETTLED = "verified.json", "settled.json"
QUICK = "reward"
THOROUGH = {"verify": "verify", "report": "verify"}
"""how a finalist is measured before its training, by how the winner will be; elsewhere the quick look will do"""
LOOKS = 10
"""rounds of finalists: one in which all are too slow takes minutes, not hours"""
WEIGHTS_MATTER = 0.03
"""a candidate timed with made-up weights whose speed-up differs by more with its own is spoken of"""


@dataclass(frozen=True)
class Verified:
    """What a quick second look at the best trials has left of them."""

    finalists: list[Trial]
    missed: dict[str, float | None]
    """those that failed or were too slow, by plan key: their speed-up as a share of the one that the search had seen"""


@dataclass(frozen=True)
class Settled:
    """What a finalist was found to be before its training, measured as thoroughly as the winner will be."""

    trial: Trial
    met: bool
    firm: bool
    share: float | None
    """of the speed-up that the search had promised; `None` where the finalist was not measured"""


class Left:
    """Which trials are left to be finalists: those not passed over that are fast enough, should they be as unlucky.

    Where the first ones turn out slower than the search had seen them, those come next that are faster by as much.
    """

    def __init__(self, target: Target) -> None:
        self._target = target
        self._passed_over: set[str] = set()
        self._shrunk = 1.0

    def of(self, trials: Sequence[Trial]) -> list[Trial]:
        return [t for t in trials if t.plan.key not in self._passed_over and with_margin(t, self._target, self._shrunk)]

    def pass_over(self, looked: Verified, shares: Mapping[str, float | None]) -> None:
        """All that were looked at; `shares` are their later speed-ups, each as a share of what was promised."""
        self._passed_over |= {trial.plan.key for trial in looked.finalists} | set(looked.missed)
        if known := [share for share in shares.values() if share is not None]:
            self._shrunk = min(self._shrunk, median(known))


def meets(measurement: Measurement, target: Target, *, firmly: bool = False) -> bool:
    """Whether a measurement meets the target on every board; `firmly`: also at the unfavourable end of its interval."""
    if not all(meets(other, target, firmly=firmly) for other in measurement.others):
        return False
    if firmly and "few_blocks" in measurement.flags:  # its ends are those of a range
        return False
    speedup, latency = measurement.speedup, measurement.latency_ms
    if target.speedup is not None and (speedup is None or (speedup.low if firmly else speedup.value) < target.speedup):
        return False
    if target.latency_ms is not None and (latency.high if firmly else latency.value) > target.latency_ms:
        return False
    return target.memory_mb is None or (measurement.memory_mb is not None and measurement.memory_mb <= target.memory_mb)


def missed_by(measurement: Measurement, target: Target) -> float:
    """The share of a target by which a measurement misses it, on the board where that is most; 0 where it does not."""
    shares = [0.0, *(missed_by(other, target) for other in measurement.others)]
    if target.speedup is not None and measurement.speedup is not None:
        shares.append(1 - measurement.speedup.value / target.speedup)
    if target.latency_ms is not None:
        shares.append(measurement.latency_ms.value / target.latency_ms - 1)
    if target.memory_mb is not None and measurement.memory_mb is not None:
        shares.append(measurement.memory_mb / target.memory_mb - 1)
    return max(shares)


def with_margin(trial: Trial, target: Target, shrunk: float) -> bool:
    """Whether a trial would meet the target if it lost its speed-up down to this share of it."""
    measured = trial.measurement
    if measured is None or measured.speedup is None:
        return True
    if target.speedup is not None and measured.speedup.value * shrunk < target.speedup:
        return False
    return target.latency_ms is None or measured.latency_ms.value <= target.latency_ms * shrunk


def share_of_seen(
    trial: Trial, measurement: Measurement, promised: Callable[[float], float] = lambda speedup: speedup
) -> float | None:
    """A later speed-up of a trial as a share of what the one that the search had seen `promised`."""
    seen = trial.measurement.speedup if trial.measurement else None
    return measurement.speedup.value / promised(seen.value) if seen and measurement.speedup else None


def verified(run: Run, trials: Sequence[Trial], *, most: int) -> Verified:
    """The best trials that meet the target when they are timed quickly once more, with their real weights."""
    ranked = sorted(
        (t for t in trials if t.failure is None and t.score.feasible),
        key=lambda t: -t.score.reward,
    )
    kept = run.rung.named(VERIFIED)
    known: dict[str, dict[str, Any]] = run.folder.read_json(kept) or {}
    firm: list[Trial] = []
    borderline: list[Trial] = []
    missed: dict[str, float | None] = {}
    for trial in ranked[: 2 * most + 2]:
        if len(firm) == most:
            break
        if trial.plan.key not in known:
            try:
                candidate = run.make_candidate(trial.plan, {})
                artifact, outputs = run.export(candidate.module, run.folder.scratch("finalist.onnx"), {})
                measurement = run.measure(artifact, outputs, QUICK)
            except CandidateError as error:
                run.watcher.note(f"finalist {trial.plan.key}: {error}")
                missed[trial.plan.key] = None
                continue
            run.watcher.note(f"finalist {trial.plan.key}: {reached(measurement, run.rung.target)}")
            known[trial.plan.key] = {
                "met": meets(measurement, run.rung.target),
                "firm": meets(measurement, run.rung.target, firmly=True),
                "share": share_of_seen(trial, measurement),
                "doubt": _weights_matter(trial, measurement),
            }
            run.folder.write_json(kept, known)
        if doubt := known[trial.plan.key].get("doubt"):
            tell(run, doubt)
        if known[trial.plan.key]["firm"]:
            firm.append(trial)
        elif known[trial.plan.key]["met"]:
            borderline.append(trial)
        else:
            missed[trial.plan.key] = known[trial.plan.key].get("share")
    return Verified((firm + borderline)[:most], missed)


def settled(run: Run, trials: Sequence[Trial]) -> Iterator[Settled]:
    """The finalists, each measured as it would be handed over when its turn comes: those that met are to be trained.

    Those that met the target firmly and those that missed it come in the order of the trials, what is in between at
    the end: its final measurement may go either way. Kept in the run's folder, since a resumed run has to train what
    it has begun to.
    """
    between: list[Settled] = []
    for place, trial in enumerate(trials, start=1):
        found = _settled(run, trial, place, len(trials))
        if found.met and not found.firm:
            between.append(found)
        else:
            yield found
    yield from between


def first_that_meets(run: Run, trials: Sequence[Trial]) -> Trial | None:
    """The best of the trials that is fast enough when it is measured as it would be handed over, `None` if none is."""
    left = Left(run.rung.target)
    for _ in range(LOOKS):
        looked = verified(run, left.of(trials), most=run.rung.finalists)
        if not looked.finalists and not looked.missed:
            break
        shares = dict(looked.missed)
        for found in settled(run, looked.finalists):
            if found.met:
                return found.trial
            shares[found.trial.plan.key] = found.share
        left.pass_over(looked, shares)
    return None


def _settled(run: Run, trial: Trial, place: int, of: int) -> Settled:
    mode = THOROUGH.get(run.rung.final_mode)
    if mode is None:
        return Settled(trial, met=True, firm=True, share=None)
    kept, key = run.rung.named(SETTLED), trial.plan.key
    known: dict[str, dict[str, Any]] = run.folder.read_json(kept) or {}
    if key not in known:
        run.watcher.stage(f"finalist {place} of {of}, measured as it would be handed over, before it is trained")
        try:
            ready = deployment.deployed(run, run.make_candidate(trial.plan, {}).module)
            measurement = deployment.measured(run, ready, mode)
        except CandidateError as error:
            tell(run, f"finalist {key} failed before its fine-tuning: {error}")
            return Settled(trial, met=False, firm=False, share=None)
        known[key] = {
            "met": meets(measurement, run.rung.contained),
            "firm": meets(measurement, run.rung.contained, firmly=True),
            "share": share_of_seen(trial, measurement, run.promised),
            "said": reached(measurement, run.rung.contained),
        }
        run.folder.write_json(kept, known)
        if known[key]["met"]:
            run.watcher.note(f"finalist {key}: {known[key]['said']}")
    found = Settled(trial, known[key]["met"], known[key]["firm"], known[key]["share"])
    if not found.met:
        tell(run, f"finalist {key} was {known[key]['said']}, and was not trained")
    return found


def _weights_matter(trial: Trial, own: Measurement) -> str | None:
    """A note where a candidate is not as fast with its own weights as it was with made-up ones."""
    made_up = trial.measurement
    if made_up is None or made_up.options.get("weights") != "made up" or not made_up.speedup or not own.speedup:
        return None
    ratio = own.speedup.value / made_up.speedup.value
    if abs(ratio - 1) <= WEIGHTS_MATTER:
        return None
    return (
        f"finalist {trial.plan.key} is {own.speedup.value:.2f}x faster with its own weights and was "
        f"{made_up.speedup.value:.2f}x with made-up ones; its own count"
    )


def tell(run: Run, text: str) -> None:
    """Say something of a finalist, now and at the end of the run; once, though a later round comes to it again."""
    if text not in run.notes:
        run.notes.append(text)
        run.watcher.note(text)


def reached(measurement: Measurement, target: Target | None = None) -> str:
    """How fast a network was found to be, in words, and how far that is from a target that it misses.

    That is said beside the figure, which is rounded: 1.998x reads like the 2.00x that was asked for.
    """
    said = f"{measurement.latency_ms.value:.3f} ms"
    if (s := measurement.speedup) is not None:
        word = "faster" if s.value >= 1 else "as fast"
        said = f"{s.value:.2f}x {word} ({s.low:.2f} to {s.high:.2f}), {said}"
    if target is not None and (short := missed_by(measurement, target)):
        said += f", {100 * short:.2f} % short of the target"
    return said
