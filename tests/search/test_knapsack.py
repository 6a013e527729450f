"""The knapsack against all plans there are, on spaces small enough to try them all."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from encoder_samples import encoder, inputs, parts
from planted import Planted

from rlprune_edge.records import Plan, PruningSpace, Target
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.knapsack import Coefficients, Knapsack
from rlprune_edge.search.limits import Limits
from rlprune_edge.search.sensitivity import Sensitivity, probes

TWICE = Target(speedup=2.0)


def small(seed: int) -> Planted:
    """Nine groups of which five can be cut, to two widths each, and three blocks."""
    planted = Planted(seed=seed, blocks=2, noise=0.0)
    levels = {
        g.name: (g.width, g.levels[len(g.levels) // 2]) if i % 2 else (g.width,)
        for i, g in enumerate(planted.space.groups)
    }
    planted.space = planted.space.with_levels(levels)
    return planted


def all_plans(space: PruningSpace) -> list[Plan]:
    found: dict[str, Plan] = {}
    for widths in product(*(g.levels for g in space.groups)):
        named = dict(zip((g.name for g in space.groups), widths, strict=True))
        for gone in product((False, True), repeat=len(space.blocks)):
            plan = space.plan(named, tuple(b.name for b, drop in zip(space.blocks, gone, strict=True) if drop))
            found.setdefault(plan.key, plan)
    return list(found.values())


def cost(env: PruningEnv, plan: Plan) -> float:
    assert env.prior is not None
    return float(env.prior.total(*env.model.arrays.encode(plan), env.model.arrays.block_of_group)[0])


def fits(env: PruningEnv, plan: Plan) -> bool:
    return bool(env.limits.met(env.model, *env.model.arrays.encode(plan))[0])


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("speedup", [1.3, 1.8])
def test_its_plan_costs_hardly_more_than_the_cheapest_of_all(seed: int, speedup: float) -> None:
    planted = small(seed)
    env = planted.env(Target(speedup=speedup), sensitivity=planted.sensitivity())
    assert env.prior is not None
    knapsack = Knapsack(env.model, env.prior)
    plan = knapsack.solve(env.limits, knapsack.ones)
    plans = [plan for plan in all_plans(planted.space) if fits(env, plan)]
    assert plan is not None
    assert fits(env, plan)
    costs = sorted(cost(env, plan) for plan in plans)
    assert len(costs) >= 40
    # Cuts that interact are priced as if they did not, and times are rounded: a few plans may be cheaper.
    assert cost(env, plan) <= costs[len(costs) // 20]


def test_factors_change_the_plan_and_what_they_make_dear_is_kept() -> None:
    planted = Planted(seed=1)
    env = planted.env(TWICE, sensitivity=planted.sensitivity())
    assert env.prior is not None
    knapsack = Knapsack(env.model, env.prior)
    plain = knapsack.solve(env.limits, knapsack.ones)
    assert plain is not None
    assert plain.dropped
    dear = Coefficients(knapsack.ones.groups, np.full(len(planted.space.blocks), 1e6))
    other = knapsack.solve(env.limits, dear)
    assert other is not None
    assert other.dropped == ()
    assert fits(env, other)


def test_where_nothing_fits_there_is_no_plan() -> None:
    planted = Planted()
    env = planted.env(Target(speedup=1000.0), sensitivity=planted.sensitivity())
    assert env.prior is not None
    knapsack = Knapsack(env.model, env.prior)
    assert knapsack.solve(env.limits, knapsack.ones) is None


@pytest.mark.parametrize("limits", [Limits(None, 31.0), Limits(0.5, 31.0)])
def test_memory_counts_as_well(limits: Limits) -> None:
    planted = Planted()
    env = planted.env(TWICE, sensitivity=planted.sensitivity())
    assert env.prior is not None
    knapsack = Knapsack(env.model, env.prior)
    plan = knapsack.solve(limits, knapsack.ones)
    assert plan is not None
    assert limits.met(env.model, *env.model.arrays.encode(plan))[0]


def test_a_layer_is_removed_whole_or_by_its_parts_and_priced_as_it_was_probed() -> None:
    space = parts(encoder("bert"), inputs("bert"))[1]
    space = space.with_levels({g.name: (g.width, g.width // 2, 1) for g in space.groups})
    blocks = {name: 0.5 for name, width, _ in probes(space) if width is None}
    first = space.blocks[-1]
    assert first.parts
    cheap = Sensitivity({g.name: {1: 0.9, g.width // 2: 0.4} for g in space.groups}, blocks | {first.name: 0.01})
    planted = Planted()
    env = PruningEnv(
        space,
        planted.evaluator(TWICE, 1),
        baseline=planted.baseline,
        target=Target(speedup=1.2),
        sensitivity=cheap,
    )
    assert env.prior is not None
    knapsack = Knapsack(env.model, env.prior)
    plan = knapsack.solve(env.limits, knapsack.ones)
    assert plan is not None
    assert {first.name, *first.parts} <= set(plan.dropped)
