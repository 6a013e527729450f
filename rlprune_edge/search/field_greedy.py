"""Greedy cutting, one measured step after the other: NetAdapt (ECCV 2018)."""

from __future__ import annotations

import numpy as np

from rlprune_edge.errors import BudgetSpent
from rlprune_edge.records import Plan
from rlprune_edge.search.end import SearchEnd
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.limits import fitted
from rlprune_edge.search.moves import mutated
from rlprune_edge.search.reward import scored_part
from rlprune_edge.search.tally import OnTrial, Tally, best_first

SHARE = 0.8
"""of the budget for cutting; the rest is for the neighbours of what it ends at"""
AGAIN = 10
"""options that are evaluated in a step after the first: those that were best in the step before"""
SMALLEST = 0.25
"""share of the uncut latency to cut down to where no budget is set"""


def search_with_greedy(
    env: PruningEnv, *, seed: int, budget: int | None = None, on_trial: OnTrial | None = None
) -> SearchEnd:
    """Cut step by step what costs least per use freed, each option evaluated; then search around where that ends.

    Every option frees at least a step's share of what has to go. NetAdapt evaluates all options in every step; with 57
    of them a budget of 200 would be spent after three, so from the second step on the 10 that were best are asked
    again. Runs until the budget is spent or hardly a proposal is new.
    """
    rng = np.random.default_rng(seed)
    tally = Tally(env, on_trial)
    try:
        _descend(env, tally, budget)
        known = best_first(env)
        while not tally.stale:
            start = known[int(rng.integers(min(3, len(known))))].plan if known else env.space.start()
            _, new = tally.propose(mutated(env, start, rng))
            if new:
                known = best_first(env)
    except BudgetSpent:
        return tally.end("budget")
    return tally.end("repeats")


def _descend(env: PruningEnv, tally: Tally, budget: int | None) -> None:
    here = env.space.start()
    options = len(env.space.groups) + len(env.space.blocks)
    evaluations = SHARE * budget if budget is not None else 3 * options
    steps = max(1, round((evaluations - options) / AGAIN))
    goal = 1.0 if env.limits.hard else SMALLEST
    ranking: dict[int, float] = {}
    for left in range(steps, 0, -1):
        if _arrived(env, here, goal):
            break
        step = (_used(env, here) - goal) / left
        offered = {i: plan for i in range(options) if (plan := _option(env, here, i, step)) is not None}
        if not offered:
            break
        first = sorted(offered, key=lambda i: ranking.get(i, 0.0))
        found: list[tuple[float, str, Plan]] = []
        for i in first[: AGAIN if ranking else options]:
            plan = offered[i]
            trial, _ = tally.propose(plan)
            freed = max(1e-9, _used(env, here) - _used(env, plan))
            ranking[i] = -scored_part(trial.score, env.target) / freed
            found.append((_price(env, trial.plan, here, freed), plan.key, plan))
        here = min(found)[2]
    tally.propose(env.completed(fitted(here, env.model, env.limits)))


def _price(env: PruningEnv, plan: Plan, here: Plan, freed: float) -> float:
    """What a step lost per use it freed."""
    before = env.trials.get(here.key)
    start = scored_part(before.score, env.target) if before else 1.0
    return (start - scored_part(env.trials[plan.key].score, env.target)) / freed


def _option(env: PruningEnv, here: Plan, which: int, step: float) -> Plan | None:
    """The smallest cut of one group that frees a step, or its last one; or one block removed; `None` if impossible."""
    space = env.space
    if which >= len(space.groups):
        block = space.blocks[which - len(space.groups)]
        return None if block.name in here.dropped else space.plan(here.widths, (*here.dropped, block.name))
    group = space.groups[which]
    if group.block in here.dropped:
        return None
    narrower = [n for n in group.levels if n < here.widths[group.name]]
    plans = [space.plan(here.widths | {group.name: n}, here.dropped) for n in narrower]
    enough = (plan for plan in plans if _used(env, here) - _used(env, plan) >= step)
    return next(enough, plans[-1] if plans else None)


def _used(env: PruningEnv, plan: Plan) -> float:
    return float(env.limits.used(env.model, *env.model.arrays.encode(plan))[0])


def _arrived(env: PruningEnv, plan: Plan, goal: float) -> bool:
    if not env.limits.hard:
        return _used(env, plan) <= goal
    return bool(env.limits.met(env.model, *env.model.arrays.encode(plan))[0])
