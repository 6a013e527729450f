"""Searchers that learn nothing: random policy, random plans, uniform shrinking."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from rlprune_edge.errors import BudgetSpent
from rlprune_edge.records import Plan, PruningSpace
from rlprune_edge.search.end import SearchEnd
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.moves import random_plan
from rlprune_edge.search.tally import OnTrial, Tally


def search_with_random_policy(env: PruningEnv, *, seed: int, on_trial: OnTrial | None = None) -> SearchEnd:
    """Every possible action with the same probability, through the same episodes as PPO.

    Runs until the budget is spent or hardly a proposal is new. `on_trial` is told each distinct trial.
    """
    rng = np.random.default_rng(seed)
    tally, walk = Tally(env, on_trial), env.walks(1)
    try:
        while not tally.stale:
            walk.start()
            ended = False
            while not ended:
                action = rng.choice(np.flatnonzero(walk.masks()[0]))
                ended = bool(walk.take(np.array([action]))[0]) or walk.steps[0] >= env.horizon
            tally.propose(env.completed(walk.plan()))
    except BudgetSpent:
        return tally.end("budget")
    return tally.end("repeats")


def search_with_random(env: PruningEnv, *, seed: int, on_trial: OnTrial | None = None) -> SearchEnd:
    """Random widths and removals, cut on until the budget is predicted to be met, slack given back.

    Li et al. (CVPR 2022) found such plans to match many pruning methods. Runs until the budget is spent or hardly a
    proposal is new.
    """
    rng = np.random.default_rng(seed)
    tally = Tally(env, on_trial)
    try:
        while not tally.stale:
            tally.propose(random_plan(env, rng))
    except BudgetSpent:
        return tally.end("budget")
    return tally.end("repeats")


def search_with_uniform(env: PruningEnv, *, on_trial: OnTrial | None = None) -> SearchEnd:
    """The same share of every group, to the nearest offered width; no block is removed, and nothing is random.

    With a hard budget: the widest plan predicted to meet it, predicted anew after every measurement, then its
    neighbours on either side. Without one: the whole ladder, coarse to fine. Runs until the budget is spent or the
    ladder is exhausted.
    """
    ladder, tally = uniform_ladder(env.space), Tally(env, on_trial)
    order = _around_boundary(env, ladder) if env.limits.hard else _coarse_to_fine(ladder)
    try:
        for plan in order:
            tally.propose(plan)
    except BudgetSpent:
        return tally.end("budget")
    return tally.end("exhausted")


def uniform_ladder(space: PruningSpace) -> list[Plan]:
    """All distinct uniform plans of the offered widths, widest first, the one a search begins with left out."""
    plans: dict[str, Plan] = {}
    for share in np.linspace(1.0, 0.0, 401):
        plan = space.plan({g.name: _nearest(g.levels, share * g.width) for g in space.groups})
        plans.setdefault(plan.key, plan)
    plans.pop(space.start().key, None)
    return list(plans.values())


def _nearest(levels: tuple[int, ...], width: float) -> int:
    return min(levels, key=lambda n: (abs(n - width), -n))


def _coarse_to_fine(ladder: list[Plan]) -> Iterator[Plan]:
    done: set[int] = set()
    stride = max(1, len(ladder) // 4)
    while len(done) < len(ladder):
        for i in range(0, len(ladder), stride):
            if i not in done:
                done.add(i)
                yield ladder[i]
        stride = max(1, stride // 2)


def _around_boundary(env: PruningEnv, ladder: list[Plan]) -> Iterator[Plan]:
    """Each time the untried plan nearest to where the budget is now predicted to be met, the cheaper side first."""
    if not ladder:
        return
    encoded = [env.model.arrays.encode(plan) for plan in ladder]
    widths = np.concatenate([w for w, _ in encoded])
    dropped = np.concatenate([d for _, d in encoded])
    left = set(range(len(ladder)))
    while left:
        met = np.flatnonzero(env.limits.met(env.model, widths, dropped))
        boundary = int(met[0]) if len(met) else len(ladder) - 1
        i = min(left, key=lambda i: (abs(i - boundary), -i))
        left.remove(i)
        yield ladder[i]
