"""The searchers on a planted board: they find, they stop, they can be continued, and they disturb nobody."""

from __future__ import annotations

import contextlib
import random
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from planted import Planted

from rlprune_edge import request
from rlprune_edge.errors import BudgetSpent, DeviceError, UserError
from rlprune_edge.records import Plan, Target, Trial
from rlprune_edge.search.agents import AGENTS, search
from rlprune_edge.search.baselines import uniform_ladder
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.ppo import LITERAL, PpoSettings, search_with_ppo

TWICE = Target(speedup=2.0)
Evaluate = Callable[[Plan], Trial]


def env_for(agent: str, planted: Planted, target: Target, budget: int = 10_000, **options: Any) -> PruningEnv:
    """The planted problem, with the single cuts scored for those who ask for it."""
    return planted.env(target, budget, sensitivity=planted.sensitivity() if AGENTS[agent].probes else None, **options)


def keys(trials: tuple[Trial, ...] | list[Trial]) -> list[str]:
    return [t.plan.key for t in trials]


def test_ppo_learns_on_the_planted_board() -> None:
    planted = Planted(seed=1)
    end = search("ppo-cold", planted.env(TWICE, 150), seed=0)
    rewards = [t.score.reward for t in end.trials]
    assert np.mean(rewards[-40:]) > np.mean(rewards[:40]) + 0.1, "the policy itself must improve, not only its luck"
    assert end.best is not None
    assert end.best.score.feasible
    assert max(rewards[40:]) > max(rewards[:40])
    uniform = search("uniform", planted.env(TWICE, 150), seed=0).best
    assert uniform is not None
    assert end.best.score.reward > uniform.score.reward


@pytest.mark.parametrize("agent", AGENTS)
def test_a_spent_budget_ends_the_search_with_that_many_candidates(agent: str) -> None:
    told: list[Trial] = []
    end = search(agent, env_for(agent, Planted(), TWICE, 5), seed=0, on_trial=told.append)
    assert end.reason == "budget"
    assert len(end.trials) == 5
    assert len(set(keys(end.trials))) == 5
    assert keys(told) == keys(end.trials)
    assert end.episodes >= 5


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("target", [Target(), Target(memory_mb=30.5), Target(max_drop=1.0)])
def test_every_agent_searches_in_every_mode(agent: str, target: Target) -> None:
    planted = Planted()
    end = search(agent, env_for(agent, planted, target, 30), seed=0, budget=30)
    assert end.best is not None
    met = [t.score.reward for t in end.trials if t.score.feasible]
    assert end.best.score.reward == max(met)
    if not target.hard and target.max_drop is None:
        assert end.best.score.reward > 1.0, "some cut must be worth more than the uncut model"


@pytest.mark.parametrize("agent", AGENTS)
@pytest.mark.parametrize("error", [DeviceError("agent_crashed", "gone"), KeyboardInterrupt()])
def test_faults_of_the_device_and_ctrl_c_pass_through(agent: str, error: BaseException) -> None:
    planted = Planted()
    inner, calls = planted.evaluator(TWICE, 100), []

    def evaluate(plan: Plan) -> Trial:
        calls.append(plan)
        if len(calls) == 4:
            raise error
        return inner(plan)

    env = env_for(agent, planted, TWICE, evaluate=evaluate)
    with pytest.raises(type(error)) as raised:
        search(agent, env, seed=0)
    assert raised.value is error
    assert len(env.trials) <= 3
    assert env.evaluate is evaluate


def run_disturbed(planted: Planted, journal: dict[str, Trial], stop_at: int, agent: str) -> list[str]:
    """A search over a journal: known plans cost nothing; a new one draws random numbers, as fine-tuning does."""
    inner = planted.evaluator(TWICE, 10_000)
    proposed: list[str] = []

    def evaluate(plan: Plan) -> Trial:
        proposed.append(plan.key)
        if plan.key not in journal:
            if len(journal) >= stop_at:
                raise BudgetSpent("enough") if stop_at == 40 else KeyboardInterrupt
            torch.manual_seed(len(journal))
            np.random.seed(len(journal))
            torch.rand(3)
            np.random.rand(3)
            random.random()
            journal[plan.key] = inner(plan)
        return journal[plan.key]

    with contextlib.suppress(KeyboardInterrupt):
        search(agent, env_for(agent, planted, TWICE, evaluate=evaluate), seed=7, budget=40)
    return proposed


@pytest.mark.parametrize("agent", AGENTS)
def test_a_killed_search_replays_to_the_same_plans(agent: str) -> None:
    # The bug to prevent: recorded candidates skip the fine-tuning that draws random numbers, and the resumed policy,
    # sampling from the same global generator, goes another way.
    planted = Planted()
    whole: dict[str, Trial] = {}
    uninterrupted = run_disturbed(planted, whole, 40, agent)
    journal: dict[str, Trial] = {}
    run_disturbed(planted, journal, 9, agent)
    assert len(journal) == min(9, len(whole))
    resumed = run_disturbed(planted, journal, 40, agent)
    assert list(journal) == list(whole)
    assert resumed == uninterrupted


def test_seeds_differ() -> None:
    planted = Planted()
    one, two = (search("ppo", planted.env(TWICE, 8), seed=s).trials for s in (0, 1))
    assert keys(one) != keys(two)


def test_evaluate_sees_the_callers_threads_and_random_numbers_and_so_does_the_caller_afterwards() -> None:
    planted = Planted()
    inner = planted.evaluator(TWICE, 6)
    threads_before = torch.get_num_threads()
    seen: list[tuple[int, float, float, float]] = []

    def evaluate(plan: Plan) -> Trial:
        trial = inner(plan)
        seen.append((torch.get_num_threads(), float(torch.rand(1)), float(np.random.rand()), random.random()))
        return trial

    def seed_all() -> None:
        torch.manual_seed(5)
        np.random.seed(5)
        random.seed(5)

    try:
        torch.set_num_threads(2)
        seed_all()
        search("ppo", planted.env(TWICE, evaluate=evaluate), seed=0)
        after = (torch.get_num_threads(), float(torch.rand(1)), float(np.random.rand()), random.random())
        seed_all()
        alone = [(2, float(torch.rand(1)), float(np.random.rand()), random.random()) for _ in range(len(seen) + 1)]
    finally:
        torch.set_num_threads(threads_before)
    assert [*seen, after] == alone, "the caller's stream of numbers must run on as if there were no policy"


def test_a_policy_that_repeats_itself_is_stopped() -> None:
    planted = Planted(widths=(16, 16, 16), blocks=1)
    few = {g.name: (g.width,) for g in planted.space.groups[1:]}
    planted.space = planted.space.with_levels(few)
    assert search("random", planted.env(Target(), 10_000), seed=0).reason == "repeats"
    end = search("ppo", planted.env(Target(), 10_000), seed=0)
    assert end.reason == "repeats"
    assert end.episodes == 200
    assert len(end.trials) < 20


def test_settings_reach_the_policy() -> None:
    planted = Planted()
    default, wide = (
        search_with_ppo(planted.env(TWICE, 30), seed=0, settings=s, parts=LITERAL)
        for s in (None, PpoSettings(learning_rate=3e-3, episodes_per_update=4, hidden=(16,)))
    )
    assert keys(default.trials) != keys(wide.trials)
    assert PpoSettings().learning_rate == 3e-4
    assert (PpoSettings().gamma, PpoSettings().clip_range, PpoSettings().entropy) == (0.99, 0.2, 0.01)


def test_uniform_meets_the_budget_with_the_widest_plan_that_does() -> None:
    planted = Planted(noise=0.0)
    env = planted.env(TWICE, 1000)
    end = search("uniform", env, seed=0)
    assert end.reason == "exhausted"
    ladder = uniform_ladder(planted.space)
    limit = planted.baseline.latency_ms / 2.0
    widest = next(p for p in ladder if planted.latency_ms(p) <= limit)
    found = [t for t in end.trials if t.score.feasible]
    assert max(planted.space.macs(t.plan) for t in found) == planted.space.macs(widest)
    assert widest.key in keys(end.trials[:3]), "found by bisection, not by walking the ladder"
    assert set(keys(end.trials)) == {p.key for p in ladder}


def test_uniform_plans_keep_about_the_same_share_of_every_group() -> None:
    planted = Planted()
    for plan in uniform_ladder(planted.space):
        assert plan.dropped == ()
        wide = [plan.widths[g.name] / g.width for g in planted.space.groups if g.width == 64]
        assert max(wide) - min(wide) <= 0.13, "64 channels offer steps of an eighth"


def test_an_unknown_agent_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"no agent called 'sac'\. Known are: ppo, ppo-cold, .*, uniform"):
        search("sac", Planted().env(TWICE, 1), seed=0)


def test_the_request_knows_the_same_agents() -> None:
    assert tuple(AGENTS) == request.AGENTS


def test_naming_the_agents_needs_no_torch() -> None:
    code = "import sys, rlprune_edge.search.agents; print(sorted({'torch', 'gymnasium', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
