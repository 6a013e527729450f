"""A search that begins with what a ladder's rung has left: nobody proposes what is no longer there."""

from __future__ import annotations

import numpy as np
from planted import Planted

from rlprune_edge.records import Target
from rlprune_edge.search.knapsack import Knapsack
from rlprune_edge.search.moves import mutated, random_plan


def test_a_space_from_a_rung_offers_nothing_wider_and_no_removed_block() -> None:
    planted = Planted(seed=3)
    first = planted.space.plan(
        {g.name: g.levels[min(1, len(g.levels) - 1)] for g in planted.space.groups}, (planted.space.blocks[1].name,)
    )
    planted.space = planted.space.from_rung(first)
    assert planted.space.start() == first
    assert planted.space.plan({}, [b.name for b in planted.space.blocks]).dropped
    env = planted.env(Target(speedup=3.0), sensitivity=planted.sensitivity())
    assert env.prior is not None
    rng = np.random.default_rng(0)
    found = [random_plan(env, rng) for _ in range(20)]
    found += [mutated(env, plan, rng) for plan in found]
    knapsack = Knapsack(env.model, env.prior)
    for seed in range(5):
        solved = knapsack.solve(env.limits, knapsack.ones.redrawn(np.random.default_rng(seed)))
        assert solved is not None
        found.append(solved)
    env.reset()
    for _ in range(200):
        possible = np.flatnonzero(env.action_masks())
        *_, ended, _, info = env.step(int(rng.choice(possible)))
        if ended:
            found.append(info["trial"].plan)
            env.reset()
    assert len({plan.key for plan in found}) > 20
    for plan in found:
        assert set(plan.dropped) >= set(first.dropped)
        assert all(plan.widths[g] <= n for g, n in first.widths.items())
