"""Optuna's NSGA-II and TPE over levels and removals (home of optuna)."""

from __future__ import annotations

import warnings

import numpy as np
import optuna
from optuna.samplers import BaseSampler, NSGAIISampler, TPESampler

from rlprune_edge.errors import BudgetSpent
from rlprune_edge.records import Plan, PruningSpace, Trial
from rlprune_edge.search.end import SearchEnd
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.limits import fitted
from rlprune_edge.search.moves import mutated, random_plan
from rlprune_edge.search.reward import FAILED_REWARD
from rlprune_edge.search.tally import OnTrial, Tally

POPULATION = (8, 12)
GENERATIONS = 6
"""of NSGA-II at least, if the population may be that small"""
FIRST = 12
"""random plans before TPE's first model"""


def search_with_evolution(
    env: PruningEnv, *, seed: int, budget: int | None = None, on_trial: OnTrial | None = None
) -> SearchEnd:
    """NSGA-II (Deb et al. 2002) on the reward, the budget as its constraint.

    With what is used as a second objective it would spread over plans that leave the budget unused.
    """
    least, most = POPULATION
    size = max(least, min(most, (budget or 100) // GENERATIONS))
    return _search(env, NSGAIISampler(population_size=size, seed=seed), size, seed, on_trial)


def search_with_tpe(env: PruningEnv, *, seed: int, on_trial: OnTrial | None = None) -> SearchEnd:
    """Tree-structured Parzen estimator (Bergstra et al. 2011) on the reward, the budget as its constraint."""
    with warnings.catch_warnings():
        # `multivariate` is called experimental; without it the estimator takes every group for itself
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        sampler = TPESampler(n_startup_trials=FIRST, seed=seed, multivariate=True)
    return _search(env, sampler, FIRST, seed, on_trial)


def _search(env: PruningEnv, sampler: BaseSampler, first: int, seed: int, on_trial: OnTrial | None) -> SearchEnd:
    """Begin with random plans as the other searchers draw them; where the sampler comes to a known plan, go next to it.

    What is told belongs to the plan as it was made to fit: the same genes always come to the same plan.
    """
    rng = np.random.default_rng(seed)
    tally = Tally(env, on_trial)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler, direction="maximize")
    for _ in range(first):
        study.enqueue_trial(_genes(env.space, random_plan(env, rng)))
    try:
        while not tally.stale:
            asked = study.ask()
            plan = env.completed(fitted(_plan(env.space, asked), env.model, env.limits))
            trial, new = tally.propose(plan)
            if not new:
                study.enqueue_trial(_genes(env.space, _unknown_neighbour(env, plan, rng)))
            asked.set_constraint("budget", 0.0 if trial.score.feasible else max(1e-6, _used(env, trial) - 1.0))
            study.tell(asked, trial.score.reward)
    except BudgetSpent:
        return tally.end("budget")
    return tally.end("repeats")


def _plan(space: PruningSpace, asked: optuna.trial.Trial) -> Plan:
    widths = {g.name: g.levels[asked.suggest_int(g.name, 0, len(g.levels) - 1)] for g in space.groups}
    dropped = tuple(b.name for b in space.blocks if asked.suggest_categorical(_drop(b.name), [False, True]))
    return space.plan(widths, dropped)


def _genes(space: PruningSpace, plan: Plan) -> dict[str, int | bool]:
    """The parameters that `_plan` makes this plan of."""
    genes: dict[str, int | bool] = {g.name: g.levels.index(plan.widths[g.name]) for g in space.groups}
    return genes | {_drop(b.name): b.name in plan.dropped for b in space.blocks}


def _unknown_neighbour(env: PruningEnv, plan: Plan, rng: np.random.Generator) -> Plan:
    """A plan next to this one, or next to that, and so on: one that was not evaluated, if 20 steps lead to one."""
    for _ in range(20):
        plan = mutated(env, plan, rng)
        if plan.key not in env.trials:
            break
    return plan


def _drop(block: str) -> str:
    return f"drop {block}"


def _used(env: PruningEnv, trial: Trial) -> float:
    """What the budget's use was: as measured by its latency where that is what is limited, else as predicted."""
    if trial.measurement is None:
        return -FAILED_REWARD
    if env.limits.latency_ms is not None and env.limits.memory_mb is None:
        return env.judged_ms(trial) / env.limits.latency_ms
    return float(env.limits.used(env.model, *env.model.arrays.encode(trial.plan))[0])
