"""The reward: what is asked for is what is rewarded, and every value of it is a finite number."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from planted import ACCURACY, CHANCE, Planted

from rlprune_edge.errors import UserError
from rlprune_edge.measurements import Interval
from rlprune_edge.records import Baseline, MetricSpec, Quality, Score, Target
from rlprune_edge.search.reward import (
    FAILED_REWARD,
    RewardWeights,
    judged_latency_ms,
    latency_target_ms,
    loss_quality,
    score,
)

BASELINE = Baseline(Quality(92.0, 0.3, 1000), latency_ms=10.0, memory_mb=100.0, parameters=1000, macs=1000)
GOOD = Quality(90.0, 0.4, 1000)


def reward(
    quality: Quality | None,
    latency_ms: float | None,
    memory_mb: float | None = 80.0,
    *,
    target: Target,
    metric: MetricSpec = ACCURACY,
    weights: RewardWeights | None = None,
    baseline: Baseline = BASELINE,
) -> Score:
    return score(
        quality,
        latency_ms,
        memory_mb,
        baseline=baseline,
        target=target,
        metric=metric,
        chance_loss=CHANCE,
        weights=weights,
    )


def test_quality_is_one_for_the_uncut_model_zero_for_guessing_and_falls_all_the_way() -> None:
    losses = [0.0, 0.3, 1.0, CHANCE, 3.0, 10.0, 1e6]
    q = [loss_quality(loss, uncut_loss=0.3, chance_loss=CHANCE) for loss in losses]
    assert q[1] == pytest.approx(1.0)
    assert q[3] == pytest.approx(0.0)
    assert q == sorted(q, reverse=True)
    assert len(set(q)) == len(q)
    assert q[-1] > -1.0
    assert loss_quality(math.nan, uncut_loss=0.3, chance_loss=CHANCE) == -1.0
    assert math.isfinite(loss_quality(5.0, uncut_loss=3.0, chance_loss=CHANCE))


@pytest.mark.parametrize(
    "target", [Target(speedup=2.0), Target(latency_ms=5.0), Target(latency_ms=5.0, speedup=1.5), Target(memory_mb=80.0)]
)
def test_a_met_budget_earns_the_quality(target: Target) -> None:
    met = reward(GOOD, 5.0, 80.0, target=target)
    assert met.feasible
    assert met.reward == met.quality == loss_quality(0.4, uncut_loss=0.3, chance_loss=CHANCE)


def test_a_missed_budget_costs_by_the_overshoot() -> None:
    target = Target(speedup=2.0, memory_mb=80.0)
    slightly, widely = reward(GOOD, 5.1, target=target), reward(GOOD, 8.0, target=target)
    both = reward(GOOD, 5.1, 90.0, target=target)
    assert not slightly.feasible
    assert not both.feasible
    assert slightly.reward == pytest.approx(slightly.quality - 0.08, abs=0.003)
    assert FAILED_REWARD < widely.reward < both.reward < slightly.reward
    assert widely.terms["over_latency"] == pytest.approx(0.6)


def test_the_stricter_of_two_latency_targets_counts() -> None:
    assert latency_target_ms(Target(speedup=2.0, latency_ms=4.0), BASELINE) == 4.0
    assert latency_target_ms(Target(speedup=4.0, latency_ms=4.0), BASELINE) == 2.5
    assert latency_target_ms(Target(memory_mb=4.0), BASELINE) is None


def test_max_drop_alone_rewards_speed_within_the_allowed_loss() -> None:
    target = Target(max_drop=1.0)
    slow, fast = reward(Quality(91.5, 0.3, 1), 8.0, target=target), reward(Quality(91.1, 0.3, 1), 5.0, target=target)
    worse, worst = reward(Quality(85.0, 0.5, 1), 2.0, target=target), reward(Quality(40.0, 2.0, 1), 1.0, target=target)
    assert fast.reward == pytest.approx(math.log(2.0))
    assert worst.reward < worse.reward < 0.0 <= slow.reward < fast.reward
    # Judged before fine-tuning: an allowance lets the search go further.
    loose = RewardWeights(drop_allowance=10.0)
    assert reward(Quality(85.0, 0.5, 1), 2.0, target=target, weights=loose).reward == pytest.approx(math.log(5.0))


def test_max_drop_beside_a_budget_costs_the_excess_but_does_not_make_it_infeasible() -> None:
    target = Target(speedup=2.0, max_drop=1.0)
    lost = reward(Quality(82.0, 0.6, 1), 5.0, target=target)
    kept = reward(Quality(91.5, 0.6, 1), 5.0, target=target)
    assert lost.feasible, "the drop is judged after fine-tuning"
    assert kept.reward - lost.reward == pytest.approx(0.05, abs=0.001)  # 10 points lost, 5 forgiven


def test_weighted_mode_weighs_metric_latency_and_memory() -> None:
    weights = RewardWeights(latency=0.5, memory=0.25)
    found = reward(Quality(46.0, 1.0, 1), 5.0, 50.0, target=Target(), weights=weights)
    assert found.reward == pytest.approx(0.5 + 0.5 * math.log(2.0) + 0.25 * math.log(2.0))
    assert found.feasible
    assert reward(Quality(46.0, 1.0, 1), 5.0, None, target=Target(), weights=weights).reward == pytest.approx(
        0.5 + 0.5 * math.log(2.0)
    )


def test_a_lower_is_better_metric_is_turned_round() -> None:
    wer = MetricSpec("wer", higher_is_better=False)
    baseline = Baseline(Quality(4.0, 0.3, 1), latency_ms=10.0, memory_mb=None, parameters=1, macs=1)
    uncut = reward(Quality(4.0, 0.3, 1), 10.0, target=Target(), metric=wer, baseline=baseline)
    worse = reward(Quality(52.0, 0.9, 1), 10.0, target=Target(), metric=wer, baseline=baseline)
    hopeless = reward(Quality(180.0, 9.0, 1), 10.0, target=Target(), metric=wer, baseline=baseline)
    assert (uncut.reward, worse.reward, hopeless.reward) == pytest.approx((1.0, 0.5, 0.0))
    assert worse.terms["drop"] == pytest.approx(48.0)


@pytest.mark.parametrize("target", [Target(), Target(speedup=2.0), Target(max_drop=1.0), Target(memory_mb=50.0)])
def test_whatever_fails_gets_the_same_poor_finite_reward(target: Target) -> None:
    failed = [
        reward(None, 5.0, target=target),
        reward(GOOD, None, target=target),
        reward(GOOD, math.nan, target=target),
        reward(Quality(math.nan, 1.0, 1), 5.0, target=target),
        reward(Quality(10.0, math.inf, 1), 5.0, target=target),
    ]
    assert {s.reward for s in failed} == {FAILED_REWARD}
    assert not any(s.feasible for s in failed)
    awful = reward(Quality(1.0, 1e9, 1), 1e6, 1e6, target=target)
    assert math.isfinite(awful.reward)


def test_the_worst_that_works_in_a_budget_is_better_than_a_failure() -> None:
    target = Target(speedup=2.0, memory_mb=50.0, max_drop=0.1)
    assert reward(Quality(0.0, 1e9, 1), 1e6, 1e6, target=target).reward > FAILED_REWARD


def test_unread_memory_is_not_taken_for_met() -> None:
    assert not reward(GOOD, 5.0, None, target=Target(memory_mb=80.0)).feasible
    blind = Baseline(BASELINE.quality, 10.0, None, 1, 1)
    with pytest.raises(UserError, match="memory of the uncut model"):
        reward(GOOD, 5.0, target=Target(memory_mb=80.0), baseline=blind)


def test_latency_is_judged_by_the_paired_ratio_where_there_is_one() -> None:
    planted = Planted()
    alone = planted.measurement(planted.space.uncut())
    assert judged_latency_ms(alone, planted.baseline) == alone.latency_ms.value
    paired = replace(alone, speedup=Interval(2.0, 1.9, 2.1))
    assert judged_latency_ms(paired, planted.baseline) == planted.baseline.latency_ms / 2.0
