"""Which samples count, and in which order blocks are taken; the model and the kernel's counter are planted."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import pytest

from rlprune_agent.timed import Timed
from rlprune_agent.turns import _timed_pairs, _warm_up
from rlprune_agent.world import RunQueue, ThisDevice

_SETTINGS = {
    "block_ms": 0.01,
    "min_runs": 12,
    "slow_run_ms": 1000,
    "min_runs_slow": 4,
    "reference_runs": 2,
    "checks": [[4, 1], [6, 1], [8, 2]],
    "target_half_width": 0.0,
}


class _Queued(ThisDevice):
    """This device, with a run queue in which every n-th sample waits for a second; 0: none does."""

    def __init__(self, every: int) -> None:
        super().__init__()
        self.waited_ns = self._planted_ns
        self.reads = itertools.count()
        self.every = every

    def _planted_ns(self) -> int:
        read = next(self.reads)
        return 10**9 * (read // (2 * self.every) + (read % (2 * self.every) == 1)) if self.every else 0


def _timed(every: int = 0, run: Any = lambda _, feeds: feeds) -> Timed:
    return Timed(SimpleNamespace(run=run), {}, _Queued(every))


def test_samples_that_waited_are_taken_again() -> None:
    timed = _timed(every=2)
    assert len(timed.block(10, 0)) == 10
    assert (timed.samples, timed.contended, len(timed.set_aside)) == (20, 10, 10)


def test_without_any_peace_all_samples_are_kept() -> None:
    timed = _timed(every=1)
    assert len(timed.block(10, 0)) == 20
    assert (timed.contended, timed.set_aside) == (20, [])


def test_what_the_warm_up_set_aside_is_forgotten() -> None:
    timed = _timed(every=2)
    timed.block(4, 0)
    timed.begin()
    timed.block(10, 0)
    assert (timed.samples, timed.contended, len(timed.set_aside)) == (20, 10, 10)


def test_a_block_ends_with_the_sample_that_fills_it() -> None:
    timed = _timed()
    timed.loop = 50
    taken = timed.block(1, 2e6)
    assert sum(taken) * 50 <= 2e6 + max(taken) * 50


def test_the_kernels_counter_only_grows() -> None:
    queue = RunQueue()
    readings = [queue.waited_ns() for _ in range(100)]
    assert readings == sorted(readings)
    assert readings[0] >= 0


@pytest.mark.parametrize(("target", "pairs"), [(0.0, 8), (1e9, 4)])
def test_blocks_come_in_turns_a_b_b_a_until_the_interval_is_narrow(target: float, pairs: int) -> None:
    calls: list[str] = []
    candidate = _timed(run=lambda *_: calls.append("A"))
    reference = _timed(run=lambda *_: calls.append("B"))
    settings = {**_SETTINGS, "target_half_width": target}
    own, others, dropped = _timed_pairs(candidate, reference, settings, ThisDevice(), None, float("inf"))
    assert dropped == []
    order = [letter for letter, _ in itertools.groupby(calls)]
    assert [len(own), len(others)] == [pairs, pairs]
    assert min(len(block) for block in own) >= 3
    # Neighbours of one kind run together: A | A B | B A | A B | B A ...
    assert order == ["A", *itertools.islice(itertools.cycle("BA"), pairs)]


def test_the_cap_ends_the_blocks_after_the_first_pair() -> None:
    own, others, _ = _timed_pairs(_timed(), _timed(), _SETTINGS, ThisDevice(), None, 0.0)
    assert [len(own), len(others)] == [1, 1]


def _changing(warming: float) -> tuple[Timed, Timed, SimpleNamespace]:
    """Two models on a planted clock, twice as slow for three runs after a change; each run by `warming` faster."""
    clock = SimpleNamespace(ns=0, last="", since=0, runs=0)

    def runs_as(name: str) -> Any:
        def run(_: object, feeds: object) -> object:
            clock.since = clock.since + 1 if clock.last == name else 0
            clock.last, clock.runs = name, clock.runs + 1
            clock.ns += int((2e6 if clock.since < 3 else 1e6 + clock.runs % 7 * 1000) * (1 - warming) ** clock.runs)
            return feeds

        return run

    world = SimpleNamespace(now_ns=lambda: clock.ns, waited_ns=lambda: 0)
    candidate, reference = (Timed(SimpleNamespace(run=runs_as(name)), {}, world) for name in "ab")  # type: ignore[arg-type]
    candidate.run_ns = reference.run_ns = 1_000_000
    return candidate, reference, world


_WARM_UP = {
    "window_runs": 5,
    "window_ms": 125,
    "slow_run_ms": 1000,
    "warmup_runs": 5,
    "warmup_seconds": 0.5,
    "warmup_cap_runs": 50,
    "warmup_cap_seconds": 10,
}


@pytest.mark.parametrize(("warming", "steady"), [(0, True), (0.0003, False)])
def test_a_change_of_turns_is_no_sign_of_a_cold_model(warming: float, steady: bool) -> None:
    candidate, reference, world = _changing(warming)
    assert _warm_up([candidate, reference], _WARM_UP, world, 1e18) is steady  # type: ignore[arg-type]
