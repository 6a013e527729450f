"""The environment: the user's decision process, kept to the letter."""

from __future__ import annotations

import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from planted import Planted

from rlprune_edge.errors import BudgetSpent, DeviceError, UserError
from rlprune_edge.records import Failure, Plan, PruningSpace, Score, Target, Trial
from rlprune_edge.search.env import PruningEnv
from rlprune_edge.search.limits import Limits, filled
from rlprune_edge.search.reward import FAILED_REWARD

TARGETS = [Target(speedup=2.0), Target(memory_mb=31.0), Target(max_drop=2.0), Target()]


def counted(planted: Planted, target: Target, asked: list[Plan], **options: bool) -> PruningEnv:
    inner = planted.evaluator(target, 10_000)

    def evaluate(plan: Plan) -> Trial:
        asked.append(plan)
        return inner(plan)

    return planted.env(target, evaluate=evaluate, **options)


def test_check_env_is_clean(recwarn: pytest.WarningsRecorder) -> None:
    for target in TARGETS:
        check_env(Planted().env(target), skip_render_check=True)
    assert [str(w.message) for w in recwarn] == []


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("seed", [0, 1])
def test_masks_allow_exactly_the_actions_that_change_something(target: Target, seed: int) -> None:
    env, rng = Planted().env(target), np.random.default_rng(seed)
    space = env.space
    for _ in range(15):
        obs, _ = env.reset()
        ended = False
        while not ended:
            masks, level, dropped = env.action_masks(), env.walk.level[0].copy(), env.walk.dropped[0].copy()
            gone = {b.name for b, d in zip(space.blocks, dropped, strict=True) if d}
            for i, group in enumerate(space.groups):
                assert masks[i] == (level[i] < len(group.levels) - 1 and group.block not in gone)
            assert (masks[len(space.groups) : -1] == ~dropped).all()
            assert masks[-1]
            assert env.observation_space.contains(obs)
            action = int(rng.choice(np.flatnonzero(masks)))
            obs, _, ended, truncated, _ = env.step(action)
            changed = int((env.walk.level[0] != level).sum() + (env.walk.dropped[0] != dropped).sum())
            assert changed == (action != len(masks) - 1)
            assert not truncated
        assert env.observation_space.contains(obs)


@pytest.mark.parametrize("target", TARGETS)
def test_an_episode_costs_exactly_one_evaluation_and_pays_at_its_end(target: Target) -> None:
    asked: list[Plan] = []
    env, rng = counted(Planted(), target, asked), np.random.default_rng(0)
    assert asked == [], "building the environment must cost nothing"
    for episode in range(10):
        env.reset()
        ended = False
        while not ended:
            assert len(asked) == episode
            _, reward, ended, _, info = env.step(int(rng.choice(np.flatnonzero(env.action_masks()))))
            assert ended or reward == 0.0
        assert len(asked) == episode + 1
        assert info["trial"].plan.key == asked[-1].key
        assert reward == info["trial"].score.reward


def test_a_hard_budget_ends_the_episode_when_it_is_predicted_to_be_met() -> None:
    planted = Planted()
    env = planted.env(Target(speedup=2.0), fill=False)
    env.reset()
    limit, ended = planted.baseline.latency_ms / 2.0, False
    while not ended:
        assert env.model.predict_ms(env.proposal()) > limit * (1.0 - env.model.margin())
        predicted = env.model
        plan_before = env.proposal()
        _, _, ended, _, info = env.step(int(np.flatnonzero(env.action_masks())[0]))
    assert plan_before.key != info["trial"].plan.key
    assert predicted.predict_ms(info["trial"].plan) < predicted.predict_ms(plan_before)


def test_doing_nothing_passes_a_step_while_the_budget_is_missed_and_ends_where_there_is_none() -> None:
    hard, free = Planted().env(Target(speedup=2.0), horizon=5), Planted().env(Target())
    nothing = int(hard.action_space.n) - 1
    hard.reset()
    ends = [hard.step(nothing)[2] for _ in range(5)]
    assert ends == [False, False, False, False, True], "the horizon of 5 ends it"
    free.reset()
    _, reward, ended, _, info = free.step(nothing)
    assert ended
    assert info["trial"].plan == free.space.uncut()
    assert reward == pytest.approx(1.0, abs=0.01), "the board's noise aside"


def test_an_impossible_action_changes_nothing_and_costs_a_step() -> None:
    env = Planted().env(Target(), horizon=4)
    env.reset()
    block = len(env.space.groups)
    inside = next(i for i, g in enumerate(env.space.groups) if g.block == env.space.blocks[0].name)
    env.step(block)
    before = env.proposal().key
    env.step(block)
    env.step(inside)
    assert env.proposal().key == before
    assert env.step(block)[2], "the fourth step is the horizon"


def test_an_unreachable_budget_ends_with_nothing_left_to_cut_and_is_not_feasible() -> None:
    env = Planted().env(Target(speedup=1000.0))
    env.reset()
    ended = False
    while not ended:
        _, reward, ended, _, info = env.step(int(np.flatnonzero(env.action_masks())[0]))
    assert not info["trial"].score.feasible
    assert reward < 0.0


def test_the_fill_gives_back_slack_and_still_meets_the_budget() -> None:
    planted = Planted()
    env, rng = planted.env(Target(speedup=2.0)), np.random.default_rng(0)
    limits, model = env.limits, env.model
    for _ in range(20):
        offered = {g.name: int(rng.choice(g.levels)) for g in planted.space.groups}
        plan = planted.space.plan(offered, tuple(b.name for b in planted.space.blocks if rng.random() < 0.6))
        widths, dropped = model.arrays.encode(plan)
        more = filled(plan, model, limits)
        if not limits.met(model, widths, dropped)[0]:
            assert more == plan
            continue
        assert limits.met(model, *model.arrays.encode(more))[0]
        assert planted.space.macs(more) >= planted.space.macs(plan)
        assert set(more.dropped) <= set(plan.dropped)
        assert filled(more, model, limits) == more, "nothing more may fit"
    assert filled(planted.space.plan({"stage2": 32}), model, Limits(None, None)).widths["stage2"] == 32


def test_a_memory_budget_alone_is_met() -> None:
    planted = Planted()
    uncut = planted.baseline.memory_mb
    assert uncut is not None
    limit = 30.0 + 0.5 * (uncut - 30.0)
    env, rng = planted.env(Target(memory_mb=limit)), np.random.default_rng(0)
    feasible = []
    for _ in range(10):
        env.reset()
        ended = False
        while not ended:
            _, _, ended, _, info = env.step(int(rng.choice(np.flatnonzero(env.action_masks()))))
        feasible.append(info["trial"].score.feasible)
    assert sum(feasible) >= 9


def test_a_plan_met_again_is_not_new_and_the_model_learns_it_once() -> None:
    env = Planted().env(Target())
    flags = []
    for _ in range(2):
        env.reset()
        env.step(0)
        flags.append(env.step(int(env.action_space.n) - 1)[4]["new"])
    assert flags == [True, False]
    assert env.episodes == 2
    assert len(env.trials) == 1
    assert len(env.model._errors) == 1


def test_a_failed_candidate_is_rewarded_and_teaches_the_model_nothing() -> None:
    planted = Planted()
    failed = Score(FAILED_REWARD, -1.0, feasible=False)

    def evaluate(plan: Plan) -> Trial:
        return Trial(1, plan, None, None, None, None, None, Failure("oom", "killed"), failed, {})

    env = planted.env(Target(), evaluate=evaluate)
    env.reset()
    assert env.step(int(env.action_space.n) - 1)[1] == FAILED_REWARD
    assert env.model.error() is None


@pytest.mark.parametrize("error", [BudgetSpent("used up"), DeviceError("connection_lost", "gone"), KeyboardInterrupt()])
def test_whatever_evaluate_raises_passes_through(error: BaseException) -> None:
    def evaluate(_: Plan) -> Trial:
        raise error

    env = Planted().env(Target(), evaluate=evaluate)
    env.reset()
    with pytest.raises(type(error)) as raised:
        env.step(int(env.action_space.n) - 1)
    assert raised.value is error


def test_a_model_with_nothing_to_cut_is_refused() -> None:
    planted = Planted()
    empty = PruningSpace(groups=(), blocks=(), ops=planted.space.ops[:1], parameters=1)
    with pytest.raises(UserError, match="Nothing in this model can be cut"):
        PruningEnv(empty, planted.evaluator(Target(), 1), baseline=planted.baseline, target=Target())


def test_groups_alone_and_blocks_alone_are_spaces_too() -> None:
    planted = Planted()
    full = planted.space.with_levels({g.name: (g.width,) for g in planted.space.groups})
    env = PruningEnv(full, planted.evaluator(Target(), 100), baseline=planted.baseline, target=Target(speedup=1.5))
    env.reset()
    assert not env.action_masks()[: len(full.groups)].any()
    ended = False
    while not ended:
        _, _, ended, _, info = env.step(int(np.flatnonzero(env.action_masks())[0]))
    assert info["trial"].score.feasible
    assert info["trial"].plan.dropped
