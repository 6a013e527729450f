"""The latency knapsack, and a search for the factors that its costs should have had: SPDY (ICML 2022) in small."""

from __future__ import annotations

import numpy as np

from rlprune_edge.errors import BudgetSpent
from rlprune_edge.search.end import SearchEnd
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.knapsack import Knapsack
from rlprune_edge.search.limits import Limits
from rlprune_edge.search.moves import mutated
from rlprune_edge.search.tally import OnTrial, Tally, best_first

SHOTS = 20
"""solutions with independent factors, after the first with none; then the best ones are changed"""
CHANGED = 0.15
"""share of the factors that a change draws anew"""
LEFT = (0.25, 0.95)
"""shares of the uncut latency that are solved for where no budget is set"""
BLOCKED = 30
"""solutions in a row that are known: the costs no longer lead anywhere new"""


def search_with_knapsack(env: PruningEnv, *, seed: int, on_trial: OnTrial | None = None) -> SearchEnd:
    """Solve the knapsack of the probed costs, then with random factors on them, keeping the factors that did better.

    Once they yield nothing new, neighbours of the best plan. Where no budget is set, each is solved for another one.
    Needs probes (`sensitivity`); raises ValueError without. Runs until the budget is spent or hardly a proposal is new.
    """
    if env.prior is None:
        raise ValueError("a knapsack needs what single cuts cost")
    rng = np.random.default_rng(seed)
    tally, knapsack = Tally(env, on_trial), Knapsack(env.model, env.prior)
    best, best_reward, known_in_a_row = knapsack.ones, -np.inf, 0
    shot = 0
    try:
        while not tally.stale:
            factors = best
            if 0 < shot <= SHOTS:
                factors = knapsack.ones.redrawn(rng)
            elif shot > SHOTS:
                factors = best.redrawn(rng, share=CHANGED)
            shot += 1
            plan = knapsack.solve(_limits(env, rng), factors) if known_in_a_row < BLOCKED else None
            if plan is None:
                known = best_first(env)
                start = known[int(rng.integers(min(3, len(known))))].plan if known else env.space.start()
                tally.propose(mutated(env, start, rng))
                continue
            if plan.key in env.trials:
                known_in_a_row += 1
                continue
            known_in_a_row = 0
            trial, _ = tally.propose(plan)
            reward = trial.score.reward if trial.score.feasible else -np.inf  # without a budget all are
            if reward > best_reward:
                best, best_reward = factors, reward
    except BudgetSpent:
        return tally.end("budget")
    return tally.end("repeats")


def _limits(env: PruningEnv, rng: np.random.Generator) -> Limits:
    return env.limits if env.limits.hard else Limits(env.baseline.latency_ms * rng.uniform(*LEFT), None)
