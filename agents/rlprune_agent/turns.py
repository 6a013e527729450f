"""Warm up a candidate and its reference and time blocks of both in turns A B B A; blocks that were disturbed again."""

from __future__ import annotations

import array
import gc
from statistics import median
from typing import Any, List, NamedTuple

from rlprune_agent import pace
from rlprune_agent.gates import Gates, Trouble
from rlprune_agent.timed import Timed
from rlprune_agent.world import World

Blocks = List[List[int]]

_CONTENDED_SHARE = 0.10
_SLOW_WINDOW_RUNS = 2
_SETTLE_NS = 5e6
"""what a model runs for after a change of turns before a window begins: its first runs find the caches taken, and would
make each window look as if it began cold (CIFAR networks of 0.6 and 1.2 ms in turns: steady 0 times in 30 without; a
ResNet-50 of 36 ms is none the colder)"""


class DroppedPair(NamedTuple):
    """A pair of blocks that was disturbed: on the record, but no figure rests on it."""

    pair: int
    """which pair it would have been, from 0"""
    kind: str
    why: str
    candidate: list[int]
    reference: list[int]


class Turns(NamedTuple):
    """What timing in turns gave."""

    own: Blocks
    others: Blocks
    dropped: list[DroppedPair]
    steady: bool
    warmup_runs: int
    flags: list[str]


def take_turns(
    candidate: Timed,
    reference: Timed | None,
    settings: dict[str, Any],
    world: World,
    *,
    gates: Gates | None,
    deadline_ns: float,
) -> Turns:
    """Everything from the first warm-up run to the last block. Raises `Failure` where the gates refuse the board.

    `deadline_ns` is in the time of `world`; pauses that the gates ask for do not count against it.
    """
    models = [candidate] if reference is None else [candidate, reference]
    gc.collect()
    gc.disable()
    try:
        for timed in models:
            timed.choose_loop(settings["sample_ms"])
        steady = _warm_up(models, settings, world, deadline_ns + (gates.waited_ns if gates else 0))
        warmup_runs = candidate.samples * candidate.loop
        faults = world.major_faults()
        for timed in models:
            timed.begin()
        if gates:
            gates.begin()
        own, others, dropped = _timed_pairs(candidate, reference, settings, world, gates, deadline_ns)
        if gates:
            gates.finish()
    finally:
        gc.enable()
    flags = set(gates.flags if gates else ())
    if len(own) < settings["checks"][0][0]:
        flags.add("capped")
    if not gates and world.major_faults() > faults:
        flags.add("swapping")
    if any(timed.contended > _CONTENDED_SHARE * timed.samples for timed in models):
        flags.add("contended")
    return Turns(own, others, dropped, steady, warmup_runs, sorted(flags))


def figures(
    turns: Turns, candidate: Timed, reference: Timed | None, gates: Gates | None
) -> tuple[dict[str, Any], bytes]:
    """The part of a result that timing gives, and its body: every sample as an int64, in the order of the header.

    Candidate blocks, reference blocks, what each set aside, then pair by pair what was dropped.
    """
    header: dict[str, Any] = {
        "candidate_blocks": [len(block) for block in turns.own],
        "reference_blocks": [len(block) for block in turns.others],
        "candidate_set_aside": len(candidate.set_aside),
        "reference_set_aside": len(reference.set_aside) if reference else 0,
        "candidate_loop": candidate.loop,
        "reference_loop": reference.loop if reference else 1,
        "warmup_runs": turns.warmup_runs,
        "steady": turns.steady,
        "flags": turns.flags,
    }
    if gates:
        header["gates"] = gates.record()
        header["gates"]["dropped"] = [
            {
                "pair": dropped.pair,
                "kind": dropped.kind,
                "why": dropped.why[:200],
                "candidate": len(dropped.candidate),
                "reference": len(dropped.reference),
            }
            for dropped in turns.dropped
        ]
    set_aside = [timed.set_aside for timed in (candidate, reference) if timed]
    lost = [samples for dropped in turns.dropped for samples in (dropped.candidate, dropped.reference)]
    return header, packed(turns.own) + packed(turns.others) + packed(set_aside) + packed(lost)


def packed(blocks: Blocks) -> bytes:
    """Samples as int64, one block after the other."""
    return b"".join(array.array("q", block).tobytes() for block in blocks)


def _warm_up(models: list[Timed], settings: dict[str, Any], world: World, deadline_ns: float) -> bool:
    """Run windows of all models in turns until each is steady, or the cap; says whether all were.

    The minimum time is for the process as a whole (it is the board's clock that has to come up), the windows are each
    model's own. The cap in runs counts only once twice the minimum time is spent: 50 runs of a 1 ms model are 50 ms.
    """
    windows: list[list[list[int]]] = [[] for _ in models]
    began = world.now_ns()
    while True:
        for model, seen in zip(models, windows):
            if len(models) > 1 and model.run_ns < _SETTLE_NS:
                model.block(1, _SETTLE_NS)
            seen.append(_window(model, settings))
        seconds = (world.now_ns() - began) / 1e9
        runs = min(sum(len(w) for w in seen) for seen in windows)
        steady = all(len(seen) > 1 and pace.is_steady(seen[-2], seen[-1]) for seen in windows)
        if steady and runs >= settings["warmup_runs"] and seconds >= settings["warmup_seconds"]:
            return True
        spent = runs >= settings["warmup_cap_runs"] and seconds >= 2 * settings["warmup_seconds"]
        if spent or seconds >= settings["warmup_cap_seconds"] or world.now_ns() >= deadline_ns:
            return steady


def _window(timed: Timed, settings: dict[str, Any]) -> list[int]:
    """Runs to see whether a model is warm by; two will do of those that take a second each."""
    runs = settings["window_runs"] if timed.run_ns <= settings["slow_run_ms"] * 1e6 else _SLOW_WINDOW_RUNS
    return timed.block(runs, settings["window_ms"] * 1e6)


def _block_runs(run_ns: float, settings: dict[str, Any]) -> int:
    least: int = settings["min_runs"] if run_ns <= settings["slow_run_ms"] * 1e6 else settings["min_runs_slow"]
    blocks: int = settings["checks"][0][0]
    return -(-least // blocks)


def _timed_pairs(
    candidate: Timed,
    reference: Timed | None,
    settings: dict[str, Any],
    world: World,
    gates: Gates | None,
    deadline_ns: float,
) -> tuple[Blocks, Blocks, list[DroppedPair]]:
    """Pairs of blocks in turns A B B A, so that a linear drift cancels between neighbouring pairs.

    `settings["checks"]` is a list of [pairs, rank]: the only points at which the stop rule is asked (each look costs
    coverage), the first being the minimum and the last the maximum. A pair that the gates find disturbed is taken
    again in the same order, after a pause and a window of each model to bring clock and caches back.
    """
    runs = _block_runs(candidate.sample()[0], settings)
    own: Blocks = []
    others: Blocks = []
    dropped: list[DroppedPair] = []
    ranks = dict((pairs, rank) for pairs, rank in settings["checks"])
    last = settings["checks"][-1][0]
    extended = False

    def in_time() -> bool:
        return world.now_ns() < deadline_ns + (gates.waited_ns if gates else 0)

    while len(own) < last and (not own or in_time()):
        mine, theirs, trouble = _pair(candidate, reference, len(own), runs, settings, world, gates)
        if trouble and gates:
            dropped.append(DroppedPair(len(own), *trouble, mine, theirs))
            gates.dropped(trouble)
            for timed in (candidate, reference):
                if timed:
                    _window(timed, settings)
            gates.begin()
            continue
        if gates:
            gates.kept()
        own.append(mine)
        if reference:
            others.append(theirs)
        if len(own) in ranks and _narrow(own, others, ranks[len(own)], settings):
            # Several speeds at once: one more round may show that they were a passing trouble.
            if not gates or extended or not pace.is_multimodal([v for block in own for v in block]):
                break
            extended = True
    return own, others, dropped


def _narrow(own: Blocks, others: Blocks, rank: int, settings: dict[str, Any]) -> bool:
    values = [median(block) for block in own]
    if others:
        values = [median(r) / c for r, c in zip(others, values)]
    return pace.narrow_enough(values, rank, settings["target_half_width"])


# The kernel's driver clears the firmware's sticky bits every 2 s and reading them costs a process: not more often.
_LOOK_NS = 1e8


def _pair(
    candidate: Timed,
    reference: Timed | None,
    number: int,
    runs: int,
    settings: dict[str, Any],
    world: World,
    gates: Gates | None,
) -> tuple[list[int], list[int], Trouble | None]:
    """One block of the candidate and its neighbour, and what disturbed them; the second is left out if the first was.

    The gates look after the pair, and between its blocks where the first lasted long enough.
    """
    block_ns = settings["block_ms"] * 1e6
    mine: list[int] = []
    theirs: list[int] = []
    turns = [True] if reference is None else [True, False] if number % 2 == 0 else [False, True]
    looked = world.now_ns()
    trouble: Trouble | None = None
    for place, own_turn in enumerate(turns):
        if own_turn:
            mine = candidate.block(runs, block_ns)
        elif reference:
            theirs = reference.block(settings["reference_runs"], block_ns)
        if gates and (place == len(turns) - 1 or world.now_ns() - looked >= _LOOK_NS):
            trouble = gates.check()
            looked = world.now_ns()
            if trouble:
                break
    return mine, theirs, trouble
