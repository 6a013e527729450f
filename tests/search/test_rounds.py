"""PPO in rounds: what it is shown, what it is left, and that it is worth its trouble on a planted problem."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from planted import Planted
from sb3_contrib import MaskablePPO

from rlprune_edge.errors import UserError
from rlprune_edge.records import Target
from rlprune_edge.search.agents import AGENTS, Entrant, entrant, search
from rlprune_edge.search.imagination import Imagination
from rlprune_edge.search.imitation import imitate, lesson
from rlprune_edge.search.knapsack import Knapsack
from rlprune_edge.search.moves import mutated
from rlprune_edge.search.parts import Parts
from rlprune_edge.search.ppo import PpoSettings, _agent
from rlprune_edge.search.rounds import SHOWN, Demonstrator
from rlprune_edge.search.warm_start import WarmStart, known_from

TWICE = Target(speedup=2.0)


def best(planted: Planted, agent: str, seed: int, budget: int, parts: Parts | None = None) -> float:
    """What a search comes to within a budget of which its probes are a part."""
    known = planted.sensitivity() if AGENTS[agent].probes else None
    probes = sum(map(len, known.groups.values())) + len(known.blocks) if known else 0
    env = planted.env(TWICE, budget - probes, sensitivity=known)
    end = search(agent, env, seed=seed, budget=budget - probes, parts=parts or Parts())
    found = end.best
    assert found is not None
    return found.score.reward if found.score.feasible else -1.0


def test_it_finds_better_plans_than_random_search_by_more_than_luck() -> None:
    # Paired by problem and seed: if the two were equal, winning all 6 would have a chance of 1 in 64.
    problems = [(Planted(seed=s), s) for s in range(6)]
    ours = np.array([best(p, "ppo", s, 60) for p, s in problems])
    random = np.array([best(p, "random", s, 60) for p, s in problems])
    assert (ours > random).all()
    assert (ours - random).mean() > 0.03


def test_it_is_never_worse_than_the_knapsack_plan_it_starts_from() -> None:
    for seed in range(3):
        planted = Planted(seed=seed)
        env = planted.env(TWICE, 12, sensitivity=planted.sensitivity())
        assert env.prior is not None
        knapsack = Knapsack(env.model, env.prior)
        plan = knapsack.solve(env.limits, knapsack.ones)
        assert plan is not None
        end = search("ppo", env, seed=seed, budget=12)
        assert plan.key in env.trials, "the first to be evaluated"
        assert end.best is not None
        first = env.trials[plan.key]
        assert (end.best.score.feasible, end.best.score.reward) >= (first.score.feasible, first.score.reward)


@pytest.mark.parametrize("part", ["demonstrations", "surrogate", "neighbours", "masks"])
def test_every_part_is_a_switch(part: str) -> None:
    planted = Planted()
    usual: bool = getattr(Parts(), part)
    other_way = entrant(f"ppo:no-{part}" if usual else f"ppo:{part}")
    assert other_way.parts == replace(Parts(), **{part: not usual})
    env = planted.env(TWICE, 30, sensitivity=planted.sensitivity(), masks=other_way.parts.masks)
    end = search("ppo", env, seed=0, budget=30, parts=other_way.parts)
    assert len(end.trials) == 30
    other = search("ppo", planted.env(TWICE, 30, sensitivity=planted.sensitivity()), seed=0, budget=30)
    assert [t.plan.key for t in end.trials] != [t.plan.key for t in other.trials]


def test_an_entrant_is_named_by_what_it_has_and_has_not() -> None:
    assert entrant("ppo") == Entrant("ppo", prior=True, parts=Parts())
    named = entrant("ppo:no-prior+no-surrogate+neighbours")
    assert named == Entrant("ppo", prior=False, parts=Parts(surrogate=False, neighbours=True))


@pytest.mark.parametrize("text", ["sac", "ppo:no-brain", "gp:no-masks", "ppo:masks-no", "knapsack:neighbours"])
def test_an_entrant_that_is_not_understood_is_answered_with_what_is(text: str) -> None:
    with pytest.raises(UserError, match=r"Known are|Write for instance"):
        entrant(text)


def test_imitation_makes_good_plans_likely_whatever_the_order_of_their_cuts() -> None:
    planted, rng = Planted(), np.random.default_rng(0)
    env = planted.env(TWICE)
    dream = Imagination(env, count=4, masked=True)
    agent = _agent(dream, env, 0, PpoSettings(), episodes=8, epochs=1)
    plans = [planted.space.plan({planted.space.groups[0].name: planted.space.groups[0].levels[-1]})]
    taught = lesson(env, plans, rng)
    assert taught.wanted.any(dim=1).all()
    assert not (taught.wanted.numpy() & ~taught.possible).any(), "only what is possible"
    before = imitate(agent.policy, taught, steps=1, until=2.0, rng=rng)
    assert before < 0.3
    after = imitate(agent.policy, taught, steps=200, until=0.6, rng=rng)
    assert after >= 0.6


def test_the_policy_is_saved_and_a_warm_start_uses_it_and_what_was_found(tmp_path: Path) -> None:
    planted = Planted(seed=1)
    file = tmp_path / "policy.zip"
    env = planted.env(TWICE, 30, sensitivity=planted.sensitivity())
    first = search("ppo", env, seed=0, budget=30, policy=file)
    assert file.is_file()
    saved = MaskablePPO.load(file, device="cpu")
    other = Target(speedup=2.5)
    evaluate = planted.evaluator(other, 10_000)
    known = known_from(first.trials, lambda t: evaluate(t.plan).score, other)
    assert len(known) == 30
    again = planted.env(other, 12, sensitivity=planted.sensitivity())
    warm = search("ppo", again, seed=0, budget=12, policy=tmp_path / "b.zip", warm_start=WarmStart(file, known))
    cold = search("ppo", planted.env(other, 12, sensitivity=planted.sensitivity()), seed=0, budget=12)
    assert warm.best is not None
    assert cold.best is not None
    assert warm.best.score.reward >= cold.best.score.reward - 0.01
    begun = {name: value.clone() for name, value in saved.policy.state_dict().items()}
    ended = MaskablePPO.load(tmp_path / "b.zip", device="cpu").policy.state_dict()
    assert begun.keys() == ended.keys()
    assert any(not torch.equal(begun[name], ended[name]) for name in begun), "it has learned on"
    with pytest.raises(UserError, match="policy of another search"):
        search("ppo", planted.env(other, 12), seed=0, budget=12, warm_start=WarmStart(file))


def test_whoever_raises_the_best_has_more_of_the_next_round() -> None:
    planted = Planted(seed=2)
    env = planted.env(TWICE, 1000, sensitivity=planted.sensitivity())
    assert env.prior is not None
    rng = np.random.default_rng(0)
    shown = Demonstrator(env, env.prior, rng)
    least, first, most = SHOWN
    assert shown.share == first
    for plan in shown.one_by_one(1):
        env.try_plan(plan)
    assert shown.share == most, "the first plan that meets the budget was its own"
    best = next(iter(env.trials.values()))
    while len(env.trials) < 40:
        env.try_plan(mutated(env, max(env.trials.values(), key=lambda t: t.score.reward).plan, rng))
    assert max(t.score.reward for t in env.trials.values()) > best.score.reward
    assert least <= shown.share < first, "since then others have raised it"


def test_knapsack_plans_are_solved_when_they_are_asked_for() -> None:
    """So that each rests on what was measured of the one before."""
    planted = Planted(seed=2)
    env = planted.env(TWICE, 1000, sensitivity=planted.sensitivity())
    assert env.prior is not None
    shown = Demonstrator(env, env.prior, np.random.default_rng(0))
    errors = []
    for plan in shown.one_by_one(6):
        errors.append(abs(env.model.predict_ms(plan) / planted.latency_ms(plan) - 1))
        env.try_plan(plan)
    assert errors[-1] < errors[0]
