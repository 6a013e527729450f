"""What unevaluated plans are expected to be worth: the Gaussian process, and what is proposed by it."""

from __future__ import annotations

import numpy as np
import pytest
from planted import CHANCE, Planted

from rlprune_edge.records import Plan, Target
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.gaussian import PlanModel
from rlprune_edge.search.moves import mutated, random_plan
from rlprune_edge.search.promise import Promise
from rlprune_edge.search.reward import loss_quality

TWICE = Target(speedup=2.0)


def drawn(env: PruningEnv, count: int, seed: int) -> list[Plan]:
    rng = np.random.default_rng(seed)
    found: dict[str, Plan] = {}
    while len(found) < count:
        plan = random_plan(env, rng)
        found.setdefault(plan.key, plan)
    return list(found.values())


def encoded(env: PruningEnv, plans: list[Plan]) -> tuple[np.ndarray, np.ndarray]:
    rows = [env.model.arrays.encode(plan) for plan in plans]
    return np.concatenate([w for w, _ in rows]), np.concatenate([d for _, d in rows])


def truth(planted: Planted, plans: list[Plan]) -> np.ndarray:
    uncut = planted.baseline.quality.loss
    return np.array([loss_quality(planted.loss(p), uncut_loss=uncut, chance_loss=CHANCE) for p in plans])


def rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(np.argsort(np.argsort(a)), np.argsort(np.argsort(b)))[0, 1])


@pytest.mark.parametrize(("informed", "least"), [(True, 0.8), (False, 0.5)])
def test_forty_plans_tell_how_the_next_ones_will_rank(informed: bool, least: float) -> None:
    planted = Planted(seed=2)
    env = planted.env(TWICE, sensitivity=planted.sensitivity() if informed else None)
    plans = drawn(env, 90, seed=0)
    known, unknown = plans[:40], plans[40:]
    model = PlanModel(env.model.arrays, env.prior)
    model.fit(*encoded(env, known), truth(planted, known))
    mean, spread = model.predict(*encoded(env, unknown))
    assert rank_correlation(mean, truth(planted, unknown)) > least
    assert (spread > 0).all()


def test_it_is_sure_of_what_it_has_seen_and_less_of_what_lies_far_away() -> None:
    planted = Planted(seed=2)
    env = planted.env(TWICE)
    known = drawn(env, 40, seed=0)
    model = PlanModel(env.model.arrays, None)
    model.fit(*encoded(env, known), truth(planted, known))
    _, at_home = model.predict(*encoded(env, known))
    _, abroad = model.predict(*encoded(env, [planted.space.uncut()]))
    assert abroad.min() > 2 * at_home.max()


def test_one_ruined_network_does_not_move_the_others() -> None:
    planted = Planted(seed=2)
    env = planted.env(TWICE)
    known = drawn(env, 40, seed=0)
    values = truth(planted, known)
    spoiled = values.copy()
    spoiled[np.argmin(spoiled)] = -1000.0
    predictions = []
    for told in (values, spoiled):
        model = PlanModel(env.model.arrays, None)
        model.fit(*encoded(env, known), told)
        predictions.append(model.predict(*encoded(env, drawn(env, 30, seed=1)))[0])
    assert np.allclose(*predictions, atol=1e-6)


def test_asking_before_learning_is_an_error() -> None:
    env = Planted().env(TWICE)
    with pytest.raises(ValueError, match="nothing was learned"):
        PlanModel(env.model.arrays, None).predict(*encoded(env, [env.space.uncut()]))


def test_a_batch_is_spread_out_and_what_meets_the_budget_comes_first() -> None:
    planted = Planted(seed=3)
    env = planted.env(TWICE, 1000)
    for plan in drawn(env, 40, seed=0):
        env.try_plan(plan)
    promise = Promise(env, PlanModel(env.model.arrays, None))
    rng = np.random.default_rng(0)
    best = max(env.trials.values(), key=lambda t: t.score.reward).plan
    pool = list({p.key: p for p in (mutated(env, best, rng) for _ in range(150))}.values())
    assert len(pool) > 50
    chosen = promise.most(pool, 10)
    assert len({p.key for p in chosen}) == 10
    alone = promise.rewards(*encoded(env, pool))
    by_itself = [pool[i] for i in np.argsort(-alone, kind="stable")[:10]]
    assert chosen[0].key == by_itself[0].key

    def apart(plans: list[Plan]) -> float:
        widths, dropped = encoded(env, plans)
        x = np.concatenate([widths / env.model.arrays.full, dropped], axis=1)
        return float(np.linalg.norm(x[:, None] - x[None], axis=2).mean())

    assert apart(chosen) > apart(by_itself)
    slow = planted.space.uncut()
    assert promise.most([slow, *chosen[:2]], 2) != [slow]
    assert slow.key not in {p.key for p in promise.most([slow, *chosen[:2]], 2)}


@pytest.mark.parametrize("target", [TWICE, Target(memory_mb=30.6), Target(), Target(max_drop=2.0)])
def test_random_plans_and_neighbours_belong_to_the_space_and_fit(target: Target) -> None:
    planted = Planted()
    env, rng = planted.env(target), np.random.default_rng(3)
    for plan in drawn(env, 20, seed=1):
        near = mutated(env, plan, rng)
        for made in (plan, near):
            assert made == planted.space.plan(made.widths, made.dropped), "canonical"
            assert all(made.widths[g.name] in g.levels for g in planted.space.groups)
            assert env.limits.met(env.model, *env.model.arrays.encode(made))[0]
