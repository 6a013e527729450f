"""Plans drawn at random, and plans next to others: what searchers without a policy propose."""

from __future__ import annotations

import numpy as np

from rlprune_edge.records import Plan
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.limits import fitted

MOST_STEPS = 3
"""of a mutation"""


def random_plan(env: PruningEnv, rng: np.random.Generator) -> Plan:
    """Random widths and removals, cut on at random until the budget is predicted to be met, slack given back.

    How much is cut before that is random, too: without a budget plans of every size are drawn.
    """
    walk = env.walks(1)
    share = rng.random()
    walk.level[0] = np.floor(rng.random(walk.groups) * share * [len(g.levels) for g in env.space.groups])
    drops = rng.random(walk.blocks) < share * rng.random()
    for block in np.flatnonzero(drops):
        walk.dropped[0] = env.model.arrays.removed(walk.dropped, np.array([block]))[0]
    met = env.limits.met(env.model, walk.widths, walk.dropped)[0]
    while env.limits.hard and not met and walk.masks()[0, :-1].any():
        met = walk.take(np.array([rng.choice(np.flatnonzero(walk.masks()[0, :-1]))]))[0]
    return env.completed(walk.plan())


def mutated(env: PruningEnv, plan: Plan, rng: np.random.Generator) -> Plan:
    """The plan after 1 to 3 random changes (a group one level up or down, a block removed or back).

    Made to fit the budget again, slack given back.
    """
    arrays, space = env.model.arrays, env.space
    widths, dropped = (rows[0].copy() for rows in arrays.encode(plan))
    for _ in range(rng.integers(1, MOST_STEPS + 1)):
        place = int(rng.integers(len(widths) + len(dropped)))
        if place < len(widths):
            levels = space.groups[place].levels
            here = levels.index(int(widths[place])) + (1 if rng.random() < 0.5 else -1)
            widths[place] = levels[min(max(here, 0), len(levels) - 1)]
        elif arrays.gone[block := place - len(widths)]:
            continue
        elif dropped[block]:
            dropped = arrays.restored(dropped, block)
        else:
            dropped = arrays.removed(dropped[None], np.array([block]))[0]
    return env.completed(fitted(arrays.decode(widths, dropped), env.model, env.limits))
