"""Bayesian optimisation: a Gaussian process over plans, and local search for the plan it promises most of."""

from __future__ import annotations

import numpy as np

from rlprune_edge.errors import BudgetSpent
from rlprune_edge.records import Plan
from rlprune_edge.search.end import SearchEnd
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.gaussian import PlanModel
from rlprune_edge.search.moves import mutated, random_plan
from rlprune_edge.search.promise import Promise
from rlprune_edge.search.tally import OnTrial, Tally, best_first

FIRST = 12
"""random plans before the first model"""
BATCH = 5
"""evaluations between two models"""
ELITES = 8
NEIGHBOURS = 120
RANDOM = 30
"""plans that one model is asked about, beside the neighbours of the best"""


def search_with_gp(env: PruningEnv, *, seed: int, on_trial: OnTrial | None = None) -> SearchEnd:
    """Propose, five at a time, the plans of the highest upper confidence bound among neighbours of the best.

    BANANAS (AAAI 2021) in small, with a process in place of its network. Without probes. Runs until the budget is spent
    or hardly a proposal is new.
    """
    rng = np.random.default_rng(seed)
    tally = Tally(env, on_trial)
    try:
        for _ in range(FIRST):
            tally.propose(random_plan(env, rng))
        while not tally.stale:
            promise = Promise(env, PlanModel(env.model.arrays, None))
            elites = best_first(env)[:ELITES]
            pool: dict[str, Plan] = {}
            for _ in range(NEIGHBOURS):
                plan = mutated(env, elites[int(rng.integers(len(elites)))].plan, rng)
                pool.setdefault(plan.key, plan)
            for _ in range(RANDOM):
                plan = random_plan(env, rng)
                pool.setdefault(plan.key, plan)
            fresh = [plan for key, plan in pool.items() if key not in env.trials]
            tally.propose_all(promise.most(fresh, BATCH) or list(pool.values())[:BATCH])
    except BudgetSpent:
        return tally.end("budget")
    return tally.end("repeats")
